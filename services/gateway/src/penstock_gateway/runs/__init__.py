"""Runs over HTTP: start, wait, read, stream, control, fork."""
