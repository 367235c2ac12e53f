"""The projector's SQL, generated from the tables: one statement per kind of change.

Both databases take the same columns in the same order, many rows per statement: SQLite as one
long list of values, PostgreSQL as one array per column. Every statement is harmless when repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Table
from sqlalchemy.dialects import postgresql

from penstock_archive import tables

_POSTGRES: Final = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change to one table.

    ``columns`` give the order of a row's values. A stored row is replaced, except for its ``kept``
    columns; where it stands for one fact, by its sequence, it never changes.
    """

    table: Table
    columns: tuple[Column[Any], ...]
    kept: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)


def _whole(table: Table, *, kept: frozenset[str] = frozenset()) -> Change:
    return Change(table, tuple(table.columns), kept)


RUNS: Final = _whole(tables.runs)
RUN_PROGRESS: Final = Change(tables.runs, RUNS.columns[: RUNS.names.index("seq")])
"""For runs whose beginning is stored; an upsert, because it is the cheapest update of many."""
SESSIONS: Final = Change(
    tables.sessions,
    tuple(column for column in tables.sessions.columns if column.name != "deleted_seq"),
    kept=frozenset({"created_at"}),
)

CHANGES: Final = (
    _whole(tables.facts),
    RUNS,
    RUN_PROGRESS,
    _whole(tables.traits),
    _whole(tables.steps),
    SESSIONS,
    _whole(tables.messages),
    _whole(tables.usage),
    _whole(tables.signals),
    _whole(tables.claims),
)
"""In the order in which a batch applies them."""


def for_sqlite(change: Change, rows: int) -> str:
    """Return the statement for so many rows at once, their values one after the other."""
    row = f"({', '.join('?' * len(change.columns))})"
    return _insert(change, f"VALUES {', '.join([row] * rows)}")


def for_postgres(change: Change) -> str:
    """Return the statement for many rows; each parameter is one column as an array."""
    types = [column.type.compile(_POSTGRES) for column in change.columns]
    # An array of jsonb would need a codec; text is cast per row instead.
    arrays = ", ".join(
        f"${number}::{'TEXT' if kind == 'JSONB' else kind}[]"
        for number, kind in enumerate(types, 1)
    )
    picked = ", ".join(
        f"{name}::jsonb" if kind == "JSONB" else name
        for name, kind in zip(change.names, types, strict=True)
    )
    given = f"unnest({arrays}) AS given ({', '.join(change.names)})"
    return _insert(change, f"SELECT {picked} FROM {given}")  # noqa: S608 - our own names


def _insert(change: Change, source: str) -> str:
    keys = tuple(column.name for column in change.table.primary_key.columns)
    sets = ", ".join(
        f"{name} = excluded.{name}"
        for name in change.names
        if name not in keys and name not in change.kept
    )
    action = "NOTHING" if keys == ("seq",) else f"UPDATE SET {sets}"
    return (
        f"INSERT INTO {change.table.name} ({', '.join(change.names)}) "
        f"{source} ON CONFLICT ({', '.join(keys)}) DO {action}"
    )


SQLITE_TOMBSTONES: Final = (
    "SELECT tenant, run_id, seq FROM json_each(?) AS given "
    "CROSS JOIN tombstones ON tenant = json_extract(given.value, '$[0]') "
    "AND run_id = json_extract(given.value, '$[1]')"
)
POSTGRES_TOMBSTONES: Final = (
    "SELECT tenant, run_id, seq FROM tombstones JOIN unnest($1::text[], $2::text[]) "
    "AS given (tenant, run_id) USING (tenant, run_id)"
)
SQLITE_FACTS: Final = (
    "SELECT seq, subject, body FROM json_each(?) AS given "
    "CROSS JOIN facts ON run_id = given.value WHERE seq <= ? ORDER BY seq"
)
POSTGRES_FACTS: Final = (
    "SELECT seq, subject, body FROM facts WHERE run_id = ANY($1::text[]) AND seq <= $2 ORDER BY seq"
)
