"""What Alembic runs: the archive's tables, on the connection that it was given."""

from penstock.db import run_migrations
from penstock_archive.tables import METADATA

run_migrations(METADATA)
