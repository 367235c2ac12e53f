"""Settings of the archive."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from penstock.settings import DatabaseSettings


class ArchiveSettings(DatabaseSettings):
    """The archive: projector and queries."""

    database_file: ClassVar[str] = "archive.db"

    projector_batch_size: int = Field(
        default=2_000,
        ge=1,
        le=20_000,
        description="Most facts in one transaction. 2000: beyond it the cost of a fact no longer "
        "falls, and a batch stays below a few megabytes.",
    )
    projector_flush_seconds: float = Field(
        default=0.25,
        gt=0,
        le=10,
        description="Longest wait for a batch to fill. 0.25: lists are a blink behind the log, "
        "and a busy log fills whole batches.",
    )
    projector_niceness: int = Field(
        default=5,
        ge=0,
        le=19,
        description="How far the projector yields the processor to others. 5: on a busy "
        "machine runs continue and the archive catches up later.",
    )
    archive_keep_days: float | None = Field(
        default=None,
        gt=0,
        description="Days after its end when a run is deleted from archive and log, with all that "
        "belongs to it. None: runs stay, because only the operator can decide what may be lost.",
    )
