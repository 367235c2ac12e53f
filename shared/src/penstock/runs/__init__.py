"""The run library: what can be computed from the facts of a run, without I/O.

State and its fold, client events, views, forks and seeds, profiles and bundles. The engine,
the gateway, the archive and the CLI all use the same functions.
"""
