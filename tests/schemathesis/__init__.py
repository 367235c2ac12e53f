"""Schemathesis against a stack of its own: `make test-schemathesis`."""
