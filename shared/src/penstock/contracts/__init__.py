"""Contracts: everything that crosses a process boundary, as pure data and pure functions.

Nothing in this package does I/O, reads a clock or draws randomness.
"""
