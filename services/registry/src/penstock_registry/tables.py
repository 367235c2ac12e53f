"""Tables of the registry's database.

Every row belongs to one tenant. Nothing is removed: a deleted row keeps the time of its deletion.
Versions never change.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from pydantic import JsonValue
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from penstock.contracts.json import JsonObject
from penstock.db import NAMING_CONVENTION

PACKAGE: Final = "penstock_registry"
"""Whose ``migrations`` make the tables."""
REVISION: Final = "0002"
"""The migration that these tables are; a test compares it with the latest."""
ROW_ID: Final = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store in UTC."""
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Read in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {
        datetime: UtcDateTime(),
        float: Double(),
        JsonObject: JSON(),
        dict[str, str]: JSON(),
        list[str]: JSON(),
        JsonValue: JSON(),
    }

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class DefinitionRow(Table):
    """A definition as it was last stored. A name that comes back after deletion is the same row."""

    __tablename__ = "definitions"
    __table_args__ = (UniqueConstraint("tenant_id", "namespace", "name"),)

    namespace: Mapped[str] = mapped_column(String(16))
    """``tool``, ``webhook``, or ``runnable`` for agents and workflows: both are started by name."""
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(Text)
    labels: Mapped[dict[str, str]]
    document: Mapped[JsonObject]
    origin: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int]
    published_version: Mapped[int | None]
    archived_at: Mapped[datetime | None]
    """When the definition was archived; ``None`` once it is published again."""


class VersionRow(Table):
    """What a definition was when it was published."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("definition_id", "version"),)

    definition_id: Mapped[int] = mapped_column(ROW_ID, ForeignKey("definitions.id"))
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    compiled: Mapped[bytes] = mapped_column(LargeBinary)
    document: Mapped[JsonObject]


class AliasRow(Table):
    """A name for a version, and for some of its runs for another one."""

    __tablename__ = "aliases"
    __table_args__ = (UniqueConstraint("definition_id", "alias"),)

    definition_id: Mapped[int] = mapped_column(ROW_ID, ForeignKey("definitions.id"))
    alias: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    canary_version: Mapped[int | None]
    canary_weight: Mapped[int | None]
    """Of a hundred runs so many go to ``canary_version``."""


class KeyRow(Table):
    """An API key; ``deleted_at`` is when it was revoked."""

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("key_id"),
        UniqueConstraint("sha256"),
        Index(None, "tenant_id", "id"),
    )

    key_id: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64))
    roles: Mapped[list[str]]
    expires_at: Mapped[datetime | None]


class AgentRow(Table):
    """An agent that registered by HTTP; ``deleted_at`` is when it deregistered."""

    __tablename__ = "http_agents"
    __table_args__ = (UniqueConstraint("tenant_id", "agent_id"),)

    agent_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    endpoint: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(String(200))
    ttl_seconds: Mapped[float]
