"""What the projector asks of a database.

A store is written by raw drivers and not through SQLAlchemy: a row then costs a third
(``bench/projector.py`` has the figures), and idle processes stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from penstock_archive.rows import Batch, Key, Row

REVISION: Final = "0002"
"""The migration that the statements are written for; a test holds it to the latest."""
VERSION_TABLE: Final = "alembic_version_penstock_archive"


class Position(NamedTuple):
    """How far the log is projected, and which stream it was read from."""

    last_seq: int
    created: str
    generation: int = 0
    """Grows when rows are deleted: values loaded before that are invalid."""
    rebuild_until: int | None = None
    """Up to here the tables are made anew where ``last_seq`` is below it."""

    @property
    def rebuilding(self) -> bool:
        """Whether facts are being projected again."""
        return self.rebuild_until is not None and self.last_seq < self.rebuild_until


class StoredFact(NamedTuple):
    """A fact as the archive has it."""

    seq: int
    subject: str
    body: str


class Loaded(NamedTuple):
    """What the tables have of some runs, as ``Projection.load`` takes it."""

    facts: list[StoredFact]
    """In the order of the log."""
    tombstones: list[Row]
    """Tenant, run id, sequence."""


class Store(Protocol):
    """The archive's database, for the projector. Nothing of it blocks the event loop.

    All methods raise ``TransientError`` (``archive_unavailable``) while the database is away.
    """

    def instant(self, at: datetime) -> Any:
        """Return a time as columns take it."""

    async def revision(self) -> str | None:
        """Return the migration that the tables are at, ``None`` where there are no tables."""

    async def position(self, stream: str) -> Position | None:
        """Return how far ``stream`` is projected, ``None`` before the first time."""

    async def begin(self, stream: str, created: str) -> None:
        """Note that ``stream`` is projected from its beginning on."""

    async def load(self, keys: Sequence[Key], until: int) -> Loaded:
        """Return the facts of runs up to the sequence ``until``, and their tombstones."""

    async def facts_after(self, seq: int, until: int, limit: int) -> list[StoredFact]:
        """Return facts after ``seq`` and up to ``until``, in order, ``limit`` at most."""

    async def subjects_of(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Return the subjects of the facts of runs, each with its lowest sequence."""

    async def unfinished_deletions(self) -> int:
        """Return how many deleted runs may have left something on the bus."""

    async def commit(self, stream: str, batch: Batch, *, after: Position) -> None:
        """Write a batch in one transaction, if ``after`` is still the projected position.

        Raises:
            ConflictError: ``projected_elsewhere``.
            RejectedError: ``rows_refused``: something in the batch cannot be stored.
            TransientError: ``archive_unavailable``.
        """

    async def close(self) -> None:
        """Close the connection."""
