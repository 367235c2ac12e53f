"""Test handlers without a server.

``LocalRunner`` calls the handlers of a ``Runner`` as a process of runners would: it checks the
arguments, fills in secrets, watches deadline and heartbeats, and returns what would be recorded.
"""

from penstock.testing.handlers import LocalCall, LocalRunner, Outcome

__all__ = ["LocalCall", "LocalRunner", "Outcome"]
