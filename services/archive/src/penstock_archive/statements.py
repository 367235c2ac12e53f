"""The projector's SQL: one statement per table and kind of change, for rows by the thousand.

Both databases take the same columns in the same order, many rows per statement: SQLite as one
long list of values, PostgreSQL as one array per column. Every statement is harmless when repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["int8", "text", "timestamptz", "float8", "bool", "jsonb"]


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change to one table; rows are tuples in the order of ``columns``.

    ``keys`` are the first columns. ``fixed`` columns keep their first value when a row is there
    already; where ``updates`` is false, such a row stays as it is.
    """

    table: str
    columns: dict[str, Kind]
    keys: int = 1
    updates: bool = True
    fixed: frozenset[str] = frozenset()

    @property
    def key_names(self) -> tuple[str, ...]:
        """The columns that name a row."""
        return tuple(self.columns)[: self.keys]

    @property
    def value_names(self) -> tuple[str, ...]:
        """The columns that an update sets."""
        return tuple(name for name in tuple(self.columns)[self.keys :] if name not in self.fixed)


_USAGE: Final[dict[str, Kind]] = {
    "input_tokens": "int8",
    "output_tokens": "int8",
    "cost_usd": "float8",
    "unknown_price": "bool",
    "model_calls": "int8",
    "steps": "int8",
}
_RUN_PROGRESS: Final[dict[str, Kind]] = {
    "tenant": "text",
    "run_id": "text",
    "last_seq": "int8",
    "updated_at": "timestamptz",
    "status": "text",
    "output": "text",
    "error": "text",
    "ended_at": "timestamptz",
    **_USAGE,
    "decisions": "int8",
    "paused": "bool",
    "pending": "text",
    "error_code": "text",
    "profile": "text",
}

FACTS: Final = Change(
    "facts",
    {
        "seq": "int8",
        "tenant": "text",
        "run_id": "text",
        "subject": "text",
        "type": "text",
        "body": "text",
        "occurred_at": "timestamptz",
    },
    updates=False,
)
RUNS: Final = Change(
    "runs",
    {
        **_RUN_PROGRESS,
        "seq": "int8",
        "name": "text",
        "kind": "text",
        "version": "int8",
        "plan_digest": "text",
        "session_id": "text",
        "trigger": "text",
        "requested_by": "text",
        "tags": "jsonb",
        "input": "text",
        "created_at": "timestamptz",
        "parent_run_id": "text",
        "root_run_id": "text",
        "forked_from": "text",
    },
    keys=2,
)
RUN_PROGRESS: Final = Change("runs", _RUN_PROGRESS, keys=2)
"""For runs whose beginning is stored; an upsert, because it is the cheapest update of many."""
STEPS: Final = Change(
    "steps",
    {
        "tenant": "text",
        "run_id": "text",
        "step_id": "text",
        "kind": "text",
        "queue": "text",
        "node_id": "text",
        "name": "text",
        "decision": "int8",
        "attempt": "int8",
        "status": "text",
        "scheduled_at": "timestamptz",
        "started_at": "timestamptz",
        "ended_at": "timestamptz",
        "output": "text",
        "output_truncated": "bool",
        "error": "text",
        "usage": "text",
        "model": "text",
        "earlier": "text",
    },
    keys=3,
)
SESSIONS: Final = Change(
    "sessions",
    {
        "tenant": "text",
        "session_id": "text",
        "name": "text",
        "created_at": "timestamptz",
        "updated_at": "timestamptz",
        "last_run_id": "text",
        "last_seq": "int8",
    },
    keys=2,
    fixed=frozenset({"created_at"}),
)
MESSAGES: Final = Change(
    "messages",
    {
        "seq": "int8",
        "tenant": "text",
        "session_id": "text",
        "run_id": "text",
        "role": "text",
        "content": "text",
        "occurred_at": "timestamptz",
    },
    updates=False,
)
USAGE: Final = Change(
    "usage",
    {
        "seq": "int8",
        "tenant": "text",
        "run_id": "text",
        "step_id": "text",
        "attempt": "int8",
        "name": "text",
        "provider": "text",
        "model": "text",
        **_USAGE,
        "occurred_at": "timestamptz",
    },
    updates=False,
)

SIGNALS: Final = Change(
    "signals",
    {
        "seq": "int8",
        "tenant": "text",
        "run_id": "text",
        "signal_id": "text",
        "kind": "text",
        "name": "text",
        "target": "text",
        "from_run": "text",
        "sent_by": "text",
        "payload": "text",
        "occurred_at": "timestamptz",
    },
    updates=False,
)
CLAIMS: Final = Change(
    "claims",
    {"seq": "int8", "tenant": "text", "run_id": "text", "sha256": "text"},
    updates=False,
)

CHANGES: Final = (
    FACTS,
    RUNS,
    RUN_PROGRESS,
    STEPS,
    SESSIONS,
    MESSAGES,
    USAGE,
    SIGNALS,
    CLAIMS,
)
"""In the order in which a batch applies them."""


def for_sqlite(change: Change, rows: int) -> str:
    """Return the statement for so many rows at once, their values one after the other."""
    names = ", ".join(change.columns)
    row = f"({', '.join('?' * len(change.columns))})"
    values = ", ".join([row] * rows)
    return (
        f"INSERT INTO {change.table} ({names}) VALUES {values} "  # noqa: S608 - our own names
        + _on_conflict(change)
    )


def for_postgres(change: Change) -> str:
    """Return the statement for many rows; each parameter is one column as an array."""
    names = tuple(change.columns)
    # An array of jsonb would need a codec; text is cast per row instead.
    arrays = ", ".join(
        f"${number}::{'text' if kind == 'jsonb' else kind}[]"
        for number, kind in enumerate(change.columns.values(), 1)
    )
    source = f"unnest({arrays}) AS given ({', '.join(names)})"
    picked = ", ".join(
        f"{name}::jsonb" if kind == "jsonb" else name for name, kind in change.columns.items()
    )
    return (
        f"INSERT INTO {change.table} ({', '.join(names)}) "  # noqa: S608 - our own names
        f"SELECT {picked} FROM {source} " + _on_conflict(change)
    )


def _on_conflict(change: Change) -> str:
    target = f"ON CONFLICT ({', '.join(change.key_names)}) DO"
    if not change.updates:
        return f"{target} NOTHING"
    sets = ", ".join(f"{name} = excluded.{name}" for name in change.value_names)
    return f"{target} UPDATE SET {sets}"


# Values that an open run needs after a restart: columns in the order of RUNS and STEPS.

_RUN_COLUMNS: Final = ", ".join((*_RUN_PROGRESS, "seq", "session_id", "created_at"))
_STEP_COLUMNS: Final = ", ".join(STEPS.columns)

SQLITE_RUNS: Final = (
    f"SELECT {_RUN_COLUMNS} FROM json_each(?) AS given "  # noqa: S608 - our own names
    "CROSS JOIN runs ON tenant = json_extract(given.value, '$[0]') "
    "AND run_id = json_extract(given.value, '$[1]')"
)
SQLITE_STEPS: Final = (
    f"SELECT {_STEP_COLUMNS} FROM json_each(?) AS given "  # noqa: S608
    "CROSS JOIN steps ON tenant = json_extract(given.value, '$[0]') "
    "AND run_id = json_extract(given.value, '$[1]')"
)
POSTGRES_RUNS: Final = (
    f"SELECT {_RUN_COLUMNS} FROM runs JOIN unnest($1::text[], $2::text[]) "  # noqa: S608
    "AS given (tenant, run_id) USING (tenant, run_id)"
)
POSTGRES_STEPS: Final = (
    f"SELECT {_STEP_COLUMNS} FROM steps JOIN unnest($1::text[], $2::text[]) "  # noqa: S608
    "AS given (tenant, run_id) USING (tenant, run_id)"
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
