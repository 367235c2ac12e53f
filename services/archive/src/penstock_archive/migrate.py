"""``python -m penstock_archive.migrate``: bring the archive's tables up to date."""

from __future__ import annotations

import asyncio
import sys

from penstock.contracts.errors import TransientError
from penstock.db import create_engine, upgrade
from penstock.telemetry import logs
from penstock.telemetry.logs import EventLog
from penstock_archive.settings import ArchiveSettings

PACKAGE = "penstock_archive"

log = EventLog(__name__)


async def migrate(url: str) -> None:
    """Run the migrations that are missing.

    Raises:
        TransientError: ``database_unavailable``.
    """
    engine = create_engine(url)
    try:
        await upgrade(engine, package=PACKAGE)
    finally:
        await engine.dispose()


def main() -> None:
    """Read the settings and migrate.

    Raises:
        SystemExit: With 1 while the database is away.
    """
    settings = ArchiveSettings()
    logs.configure(
        service="archive-migrate",
        instance_id=settings.instance_id,
        level=settings.log_level,
        style=settings.log_format,
    )
    try:
        asyncio.run(migrate(settings.resolved_database_url))
    except TransientError as error:
        log.warning("archive.not_migrated", code=error.code, reason=error.message)
        sys.exit(1)


if __name__ == "__main__":
    main()
