"""Alembic's entry: runs the migrations that ``penstock.db.upgrade`` asked for."""

from penstock.db import run_migrations
from penstock_registry.tables import Table

run_migrations(Table.metadata)
