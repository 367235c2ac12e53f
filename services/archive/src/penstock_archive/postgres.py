"""The archive in PostgreSQL, written over one connection by asyncpg."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import asyncpg

from penstock.contracts.errors import ConflictError, RejectedError, TransientError
from penstock_archive import statements
from penstock_archive.rows import Batch, Key
from penstock_archive.store import VERSION_TABLE, Loaded, Position, StoredFact

_CONNECT_SECONDS: Final = 10.0
_STATEMENT_SECONDS: Final = 60.0
_CHANGES: Final = tuple(statements.for_postgres(change) for change in statements.CHANGES)
_REFUSED: Final = ("22", "23", "54")
"""Classes of SQLSTATE that a value is to blame for: data, integrity, limits. All else may pass."""


class PostgresStore:
    """A ``Store`` in PostgreSQL; reconnects by itself."""

    def __init__(self, dsn: str) -> None:
        """Describe the store; it connects on first use."""
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None

    def instant(self, at: datetime) -> datetime:
        """Return the time as it is: asyncpg takes aware ones."""
        return at

    async def revision(self) -> str | None:
        """Return the migration that the tables are at."""
        async with self._open() as connection:
            if await connection.fetchval("SELECT to_regclass($1)", VERSION_TABLE) is None:
                return None
            found = await connection.fetchval(
                f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - our own name
            )
        return None if found is None else str(found)

    async def position(self, stream: str) -> Position | None:
        """Return how far ``stream`` is projected."""
        async with self._open() as connection:
            row = await connection.fetchrow(
                "SELECT last_seq, created, generation, rebuild_until FROM projection "
                "WHERE stream = $1",
                stream,
            )
        return None if row is None else Position(*row)

    async def begin(self, stream: str, created: str) -> None:
        """Note that ``stream`` is projected from its beginning on."""
        async with self._open() as connection:
            await connection.execute(
                "INSERT INTO projection (stream, last_seq, created, generation) "
                "VALUES ($1, 0, $2, 0) "
                "ON CONFLICT (stream) DO NOTHING",
                stream,
                created,
            )

    async def load(self, keys: Sequence[Key], until: int) -> Loaded:
        """Return the facts of runs up to the sequence ``until``, and their tombstones."""
        tenants, run_ids = [tenant for tenant, _ in keys], [run_id for _, run_id in keys]
        async with self._open() as connection:
            tombstones = await connection.fetch(statements.POSTGRES_TOMBSTONES, tenants, run_ids)
            facts = await connection.fetch(statements.POSTGRES_FACTS, run_ids, until)
        return Loaded([StoredFact(*row) for row in facts], [tuple(row) for row in tombstones])

    async def facts_after(self, seq: int, until: int, limit: int) -> list[StoredFact]:
        """Return facts after ``seq`` and up to ``until``, in order."""
        async with self._open() as connection:
            rows = await connection.fetch(
                "SELECT seq, subject, body FROM facts WHERE seq > $1 AND seq <= $2 "
                "ORDER BY seq LIMIT $3",
                seq,
                until,
                limit,
            )
        return [StoredFact(*row) for row in rows]

    async def subjects_of(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Return the subjects of the facts of runs, each with its lowest sequence."""
        async with self._open() as connection:
            rows = await connection.fetch(
                "SELECT subject, min(seq) FROM facts WHERE run_id = ANY($1::text[]) "
                "GROUP BY subject",
                list(run_ids),
            )
        return {row[0]: row[1] for row in rows}

    async def unfinished_deletions(self) -> int:
        """Return how many deleted runs may have left something on the bus."""
        async with self._open() as connection:
            count = await connection.fetchval(
                "SELECT count(*) FROM tombstones WHERE erased_at IS NULL"
            )
        return int(count)

    async def commit(self, stream: str, batch: Batch, *, after: Position) -> None:
        """Write a batch in one transaction."""
        async with self._open() as connection, connection.transaction():
            # Also a lock: a second projector waits here, and then finds that it is too late.
            moved = await connection.execute(
                "UPDATE projection SET last_seq = $1 "
                "WHERE stream = $2 AND last_seq = $3 AND generation = $4",
                batch.last_seq,
                stream,
                after.last_seq,
                after.generation,
            )
            if moved != "UPDATE 1":
                raise ConflictError(
                    "projected_elsewhere", f"{stream} is not projected to {after.last_seq}"
                )
            if batch.replaces_after is not None:
                await connection.execute(
                    "DELETE FROM facts WHERE seq > $1 AND seq <= $2",
                    batch.replaces_after,
                    batch.last_seq,
                )
            for statement, rows in zip(_CHANGES, batch.parts(), strict=True):
                if rows:
                    await connection.execute(statement, *zip(*rows, strict=True))
            for tenant, run_id in batch.revived:
                await connection.execute(
                    "DELETE FROM tombstones WHERE tenant = $1 AND run_id = $2", tenant, run_id
                )

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close(timeout=_CONNECT_SECONDS)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._dsn, timeout=_CONNECT_SECONDS, command_timeout=_STATEMENT_SECONDS
                )
            yield self._connection
        except asyncpg.DataError as error:
            raise RejectedError("rows_refused", str(error)) from error
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "")[:2] in _REFUSED:
                raise RejectedError("rows_refused", str(error)) from error
            raise TransientError("archive_unavailable", str(error)) from error
        except (
            OSError,
            TimeoutError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            self._drop()
            raise TransientError("archive_unavailable", repr(error)) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
