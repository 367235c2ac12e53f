"""Measurements of Penstock: `make bench`."""
