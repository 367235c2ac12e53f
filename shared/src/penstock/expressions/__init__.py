"""Expressions: CEL conditions, ``{{ }}`` templates and JSONPath, parsed, typed and evaluated.

Pure: no I/O, no clock, no randomness. Every evaluation is bounded in cost.
"""
