"""The choice between the two databases; only the driver of the chosen one is imported."""

from __future__ import annotations

from penstock.db import sqlite_file
from penstock_archive.store import Store


def open_store(url: str) -> Store:
    """Return the store behind a database URL; it connects when it is first used.

    Args:
        url: ``sqlite:///file`` or ``postgresql://...``, with or without a driver's name.
    """
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] == "sqlite":
        from penstock_archive.sqlite import SqliteStore  # noqa: PLC0415 - one of two

        return SqliteStore(sqlite_file(url))
    from penstock_archive.postgres import PostgresStore  # noqa: PLC0415 - one of two

    return PostgresStore(f"postgresql://{rest}")
