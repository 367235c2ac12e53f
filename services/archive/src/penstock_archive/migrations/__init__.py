"""Alembic's revisions of the archive's tables."""
