"""Tests of Penstock. Folders are kinds; see the markers in pyproject.toml."""
