"""The archive's tables, as SQLAlchemy knows them: for migrations, queries and the projector.

``statements.py`` generates the statements of the projector from them.
No foreign keys: rows come only from the log, in one order, in one transaction per batch.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.types import TypeEngine

from penstock.db import NAMING_CONVENTION
from penstock_archive.instants import from_micros, to_micros


class Instant(TypeDecorator[datetime]):
    """An aware UTC time: ``timestamptz`` on PostgreSQL, microseconds since 1970 on SQLite."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Write it."""
        if value is None or dialect.name == "postgresql":
            return value
        return to_micros(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Read it."""
        if value is None:
            return None
        return value.astimezone(UTC) if dialect.name == "postgresql" else from_micros(value)


METADATA: Final = MetaData(naming_convention=NAMING_CONVENTION)

_SEQ: Final = BigInteger().with_variant(Integer(), "sqlite")
"""``INTEGER PRIMARY KEY`` is SQLite's row id, which needs no separate index."""
_TAGS: Final = Text().with_variant(JSONB(), "postgresql")


def _usage_columns() -> tuple[Column[Any], ...]:
    return (
        Column("input_tokens", BigInteger, nullable=False),
        Column("output_tokens", BigInteger, nullable=False),
        Column("cost_usd", Double, nullable=False),
        Column("unknown_price", Boolean, nullable=False),
        Column("model_calls", BigInteger, nullable=False),
        Column("steps", BigInteger, nullable=False, comment="attempts, of child runs as well"),
    )


def _where(condition: str) -> dict[str, Any]:
    """Return the arguments of an index over some rows only."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


facts: Final = Table(
    "facts",
    METADATA,
    Column("seq", _SEQ, primary_key=True, autoincrement=False, comment="stream sequence"),
    Column("tenant", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("body", Text, nullable=False, comment="JSON as it stands in the log"),
    Column("occurred_at", Instant, nullable=False),
    Index(None, "run_id", "seq"),
)

runs: Final = Table(
    "runs",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("run_id", Text, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("updated_at", Instant, comment="null: only facts that change nothing were seen"),
    Column("status", Text, nullable=False),
    Column("output", Text, comment="JSON; null above 16 KiB, see facts"),
    Column("error", Text, comment="JSON"),
    Column("ended_at", Instant),
    *_usage_columns(),
    Column("error_code", Text),
    Column("profile", Text, comment="JSON: of runs of many facts, once it was asked for"),
    Column("seq", BigInteger, comment="of the invoking fact; null while that is not seen"),
    Column("name", Text),
    Column("kind", Text),
    Column("version", BigInteger),
    Column("plan_digest", Text),
    Column("session_id", Text),
    Column("trigger", Text),
    Column("requested_by", Text),
    Column("tags", _TAGS),
    Column("input", Text, comment="JSON; null above 16 KiB, see facts"),
    Column("created_at", Instant),
    Column("parent_run_id", Text),
    Column("root_run_id", Text, comment="null: it has no parent"),
    Column("forked_from", Text),
    Index(None, "tenant", "seq"),
    Index(None, "tenant", "name", "seq"),
    Index(None, "tenant", "ended_at", "seq", **_where("ended_at IS NOT NULL")),
    Index(None, "seq", **_where("ended_at IS NULL")),
    Index(None, "tenant", "parent_run_id", **_where("parent_run_id IS NOT NULL")),
    Index(None, "tenant", "root_run_id", **_where("root_run_id IS NOT NULL")),
    Index(
        None,
        "tenant",
        "session_id",
        "seq",
        **_where("session_id IS NOT NULL"),
    ),
)

traits: Final = Table(
    "traits",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("trait", Text, primary_key=True, comment="status, error, cost_usd or tag.NAME"),
    Column("value", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, comment="of the run's invoking fact"),
    Column("run_id", Text, nullable=False),
    Index(None, "tenant", "run_id"),
    sqlite_with_rowid=False,
)
"""What few runs have in common: filters that match little find runs here."""

steps: Final = Table(
    "steps",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("run_id", Text, primary_key=True),
    Column("step_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("decision", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("scheduled_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    Column("output", Text, comment="JSON, cut off where output_truncated; whole in facts"),
    Column("output_truncated", Boolean, nullable=False),
    Column("error", Text, comment="JSON"),
    Column("usage", Text, comment="JSON"),
    Column("model", Text),
    Index(None, "tenant", "scheduled_at"),
)

sessions: Final = Table(
    "sessions",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Text, primary_key=True),
    Column("name", Text, nullable=False, comment="what its latest run executes"),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("last_run_id", Text, nullable=False),
    Column("last_seq", BigInteger, nullable=False, comment="of the latest run's invoking fact"),
    Column("deleted_seq", BigInteger, comment="rows up to it are deleted"),
    Index(None, "tenant", "last_seq"),
)

messages: Final = Table(
    "messages",
    METADATA,
    Column("seq", _SEQ, primary_key=True, autoincrement=False, comment="of the fact behind it"),
    Column("tenant", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("occurred_at", Instant, nullable=False),
    Index(None, "tenant", "session_id", "seq"),
)

usage: Final = Table(
    "usage",
    METADATA,
    Column("seq", _SEQ, primary_key=True, autoincrement=False, comment="of the fact behind it"),
    Column("tenant", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("step_id", Text, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("name", Text, nullable=False, comment="agent or tool"),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    *_usage_columns(),
    Column("occurred_at", Instant, nullable=False),
    Index(None, "tenant", "occurred_at"),
    Index(None, "tenant", "run_id"),
)

signals: Final = Table(
    "signals",
    METADATA,
    Column("seq", _SEQ, primary_key=True, autoincrement=False, comment="of the fact behind it"),
    Column("tenant", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("signal_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("from_run", Text),
    Column("sent_by", Text),
    Column("payload", Text, comment="JSON; null above 16 KiB, see facts"),
    Column("occurred_at", Instant, nullable=False),
    Index(None, "tenant", "kind", "seq"),
    Index(None, "tenant", "run_id"),
)

claims: Final = Table(
    "claims",
    METADATA,
    Column("seq", _SEQ, primary_key=True, autoincrement=False, comment="of the claiming fact"),
    Column("tenant", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Index(None, "sha256"),
    Index(None, "tenant", "run_id"),
)

tombstones: Final = Table(
    "tombstones",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("run_id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False, comment="rows up to it are deleted"),
    Column("deleted_at", Instant, nullable=False),
    Column("erased_at", Instant, comment="null: perhaps not yet gone from the bus"),
    Index(None, "deleted_at"),
)

projection: Final = Table(
    "projection",
    METADATA,
    Column("stream", Text, primary_key=True),
    Column("last_seq", BigInteger, nullable=False, comment="all up to it is projected"),
    Column("created", Text, nullable=False, comment="when the stream came to be, its identity"),
    Column("generation", BigInteger, nullable=False, comment="grows when rows were deleted"),
    Column("rebuild_until", BigInteger, comment="null: the tables were never rebuilt"),
)
