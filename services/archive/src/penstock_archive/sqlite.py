"""The archive in a SQLite file, written by one dedicated thread."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

from pydantic_core import to_json

from penstock.contracts.errors import ConflictError, RejectedError, TransientError
from penstock_archive import statements
from penstock_archive.instants import to_micros
from penstock_archive.rows import Batch, Key
from penstock_archive.store import VERSION_TABLE, Loaded, Position, StoredFact

T = TypeVar("T")

_BUSY_SECONDS: Final = 5.0
_PRAGMAS: Final = (
    # Of use for a new file only; a fifth less CPU per row than the usual 4096.
    "PRAGMA page_size = 8192",
    "PRAGMA journal_mode = WAL",
    # A commit survives the end of the process; one that power loss undoes is projected again.
    "PRAGMA synchronous = NORMAL",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -8000",
)
_ROWS_AT_ONCE: Final = (512, 64, 8, 1)
"""Not ``executemany``: it gives the interpreter's lock away for every single row, and waits up to
5 ms for each while the event loop is busy. Few sizes, so that statements stay prepared."""
_CHANGES: Final = tuple(
    tuple((count, statements.for_sqlite(change, count)) for count in _ROWS_AT_ONCE)
    for change in statements.CHANGES
)
_REFUSED: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    OverflowError,
    UnicodeError,
)
"""What a value is to blame for. All else may pass, and dead letters are no place to wait in."""


class SqliteStore:
    """A ``Store`` in a file; readers may use the file at the same time."""

    def __init__(self, path: str) -> None:
        """Describe the store; the file is opened on first use."""
        self._path = Path(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="archive")
        self._connection: sqlite3.Connection | None = None

    instant = staticmethod(to_micros)

    async def revision(self) -> str | None:
        """Return the migration that the tables are at."""

        def read(connection: sqlite3.Connection) -> str | None:
            known = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE name = ?", (VERSION_TABLE,)
            ).fetchone()
            if not known[0]:
                return None
            row = connection.execute(
                f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - our own name
            ).fetchone()
            return None if row is None else str(row[0])

        return await self._run(read)

    async def position(self, stream: str) -> Position | None:
        """Return how far ``stream`` is projected."""

        def read(connection: sqlite3.Connection) -> Position | None:
            row = connection.execute(
                "SELECT last_seq, created, generation, rebuild_until FROM projection "
                "WHERE stream = ?",
                (stream,),
            ).fetchone()
            return None if row is None else Position(*row)

        return await self._run(read)

    async def begin(self, stream: str, created: str) -> None:
        """Note that ``stream`` is projected from its beginning on."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO projection (stream, last_seq, created, generation) "
                "VALUES (?, 0, ?, 0) "
                "ON CONFLICT (stream) DO NOTHING",
                (stream, created),
            )

        await self._run(write)

    async def load(self, keys: Sequence[Key], until: int) -> Loaded:
        """Return the facts of runs up to the sequence ``until``, and their tombstones."""
        pairs = (to_json(keys).decode(),)
        run_ids = (to_json({run_id for _, run_id in keys}).decode(), until)

        def read(connection: sqlite3.Connection) -> Loaded:
            tombstones = connection.execute(statements.SQLITE_TOMBSTONES, pairs).fetchall()
            facts = connection.execute(statements.SQLITE_FACTS, run_ids)
            return Loaded([StoredFact(*row) for row in facts], tombstones)

        return await self._run(read)

    async def facts_after(self, seq: int, until: int, limit: int) -> list[StoredFact]:
        """Return facts after ``seq`` and up to ``until``, in order."""

        def read(connection: sqlite3.Connection) -> list[StoredFact]:
            rows = connection.execute(
                "SELECT seq, subject, body FROM facts WHERE seq > ? AND seq <= ? "
                "ORDER BY seq LIMIT ?",
                (seq, until, limit),
            )
            return [StoredFact(*row) for row in rows]

        return await self._run(read)

    async def subjects_of(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Return the subjects of the facts of runs, each with its lowest sequence."""
        wanted = (to_json(run_ids).decode(),)

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            rows = connection.execute(
                "SELECT subject, min(seq) FROM json_each(?) AS given "
                "CROSS JOIN facts ON run_id = given.value GROUP BY subject",
                wanted,
            )
            return dict(rows.fetchall())

        return await self._run(read)

    async def unfinished_deletions(self) -> int:
        """Return how many deleted runs may have left something on the bus."""

        def read(connection: sqlite3.Connection) -> int:
            count = "SELECT count(*) FROM tombstones WHERE erased_at IS NULL"
            return int(connection.execute(count).fetchone()[0])

        return await self._run(read)

    async def commit(self, stream: str, batch: Batch, *, after: Position) -> None:
        """Write a batch in one transaction."""
        await self._run(lambda connection: _write(connection, stream, batch, after))

    async def close(self) -> None:
        """Close the file and end the thread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_thread, work)

    def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = _open(self._path)
            return work(self._connection)
        except _REFUSED as error:
            raise RejectedError("rows_refused", str(error)) from error
        except sqlite3.Error as error:
            raise TransientError("archive_unavailable", str(error)) from error


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Without an isolation level the driver leaves transactions to us.
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    return connection


def _write(connection: sqlite3.Connection, stream: str, batch: Batch, after: Position) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        moved = connection.execute(
            "UPDATE projection SET last_seq = ? "
            "WHERE stream = ? AND last_seq = ? AND generation = ?",
            (batch.last_seq, stream, after.last_seq, after.generation),
        )
        if moved.rowcount != 1:
            raise ConflictError(
                "projected_elsewhere", f"{stream} is not projected to {after.last_seq}"
            )
        if batch.replaces_after is not None:
            connection.execute(
                "DELETE FROM facts WHERE seq > ? AND seq <= ?",
                (batch.replaces_after, batch.last_seq),
            )
        for sizes, rows in zip(_CHANGES, batch.parts(), strict=True):
            begin = 0
            for count, statement in sizes:
                while len(rows) - begin >= count:
                    values = list(chain.from_iterable(rows[begin : begin + count]))
                    connection.execute(statement, values)
                    begin += count
        for key in batch.revived:
            connection.execute("DELETE FROM tombstones WHERE tenant = ? AND run_id = ?", key)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
