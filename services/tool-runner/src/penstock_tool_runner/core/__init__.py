"""The pure part of this service: no I/O, no clock, no randomness."""
