"""Definitions and participants, as the registry holds them."""
