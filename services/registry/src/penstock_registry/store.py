"""The registry's database: units of work and the queries in them, each bound to one tenant."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    column,
    func,
    inspect,
    select,
    table,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, defer

from penstock import db
from penstock.contracts.errors import RejectedError
from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.catalog import RUNNABLE
from penstock_registry.tables import (
    PACKAGE,
    AgentRow,
    AliasRow,
    DefinitionRow,
    KeyRow,
    Table,
    VersionRow,
)

RowT = TypeVar("RowT", bound=Table)

_RUNNABLE: Final = "runnable"
_VERSION_TABLE: Final = f"alembic_version_{PACKAGE}"

Stored = tuple[DefinitionRow, VersionRow | None]
"""A definition with the version of it that is in force."""


def namespace_of(kind: DocumentKind) -> str:
    """Return the namespace in which a name must be unique; all that a name starts shares one."""
    if kind in RUNNABLE:
        return _RUNNABLE
    return kind.value


class Store:
    """Makes units of work."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Use an engine whose schema is up to date; the caller disposes of it."""
        self._engine = engine
        self._sessions = db.session_factory(engine)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """One unit of work that only reads.

        Raises:
            TransientError: ``database_unavailable``.
        """
        async with db.session_scope(self._sessions, read_only=True) as session:
            yield session

    @asynccontextmanager
    async def changing(self, tenant: str) -> AsyncIterator[AsyncSession]:
        """One unit of work that changes a tenant's rows; those of one tenant run in sequence.

        Raises:
            TransientError: ``database_unavailable``.
        """
        async with db.session_scope(self._sessions) as session:
            if self._engine.dialect.name == "postgresql":
                # SQLite has one writer at a time anyway.
                key = zlib.crc32(f"registry:{tenant}".encode())
                await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield session


async def revision(engine: AsyncEngine) -> str | None:
    """Return the migration that the database is at; ``None`` where it has no tables yet.

    Raises:
        TransientError: ``database_unavailable``.
    """

    def there(session: Session) -> bool:
        return inspect(session.connection()).has_table(_VERSION_TABLE)

    async with db.session_scope(db.session_factory(engine), read_only=True) as session:
        if not await session.run_sync(there):
            return None
        versions = table(_VERSION_TABLE, column("version_num", String))
        return (await session.execute(select(versions.c.version_num))).scalar_one_or_none()


def _with_version() -> Select[DefinitionRow, VersionRow]:
    in_force = and_(
        VersionRow.definition_id == DefinitionRow.id,
        VersionRow.version == DefinitionRow.published_version,
    )
    return select(DefinitionRow, VersionRow).outerjoin(VersionRow, in_force)


async def _all_stored(
    session: AsyncSession, query: Select[DefinitionRow, VersionRow]
) -> list[Stored]:
    return [(definition, version) for definition, version in await session.execute(query)]


async def all_definitions(session: AsyncSession, tenant: str) -> list[Stored]:
    """Return all of a tenant's definitions that are not deleted."""
    query = _with_version().where(
        DefinitionRow.tenant_id == tenant, DefinitionRow.deleted_at.is_(None)
    )
    return await _all_stored(session, query)


async def list_definitions(
    session: AsyncSession, tenant: str, kind: DocumentKind, *, after: str | None, limit: int
) -> list[Stored]:
    """Return definitions of one kind in the order of their names."""
    query = _with_version().where(
        DefinitionRow.tenant_id == tenant,
        DefinitionRow.kind == kind.value,
        DefinitionRow.deleted_at.is_(None),
    )
    if after is not None:
        query = query.where(DefinitionRow.name > after)
    return await _all_stored(session, query.order_by(DefinitionRow.name).limit(limit))


async def find_named(
    session: AsyncSession, tenant: str, kind: DocumentKind, name: str
) -> Stored | None:
    """Return the row of a name, deleted or not, of whichever kind shares its namespace."""
    query = _with_version().where(
        DefinitionRow.tenant_id == tenant,
        DefinitionRow.namespace == namespace_of(kind),
        DefinitionRow.name == name,
    )
    return next(iter(await _all_stored(session, query)), None)


async def find_definition(
    session: AsyncSession, tenant: str, kind: DocumentKind, name: str
) -> Stored | None:
    """Return a definition that is not deleted."""
    found = await find_named(session, tenant, kind, name)
    if found is None or found[0].deleted_at is not None or found[0].kind != kind.value:
        return None
    return found


async def require_definition(
    session: AsyncSession, tenant: str, kind: DocumentKind, name: str
) -> Stored:
    """Return a definition that is not deleted.

    Raises:
        RejectedError: ``unknown_definition``.
    """
    found = await find_definition(session, tenant, kind, name)
    if found is None:
        raise unknown_definition(kind, name)
    return found


def unknown_definition(kind: DocumentKind, name: str) -> RejectedError:
    """Return the error of a name without a definition."""
    return RejectedError("unknown_definition", f"there is no {kind} {name!r}")


async def every(
    session: AsyncSession, table: type[RowT], *, after_id: int, limit: int
) -> list[RowT]:
    """Return rows of all tenants, deleted ones too, in the order of their ids."""
    query = select(table).where(table.id > after_id).order_by(table.id).limit(limit)
    return list(await session.scalars(query))


def _of(rows: type[VersionRow | AliasRow], definition: DefinitionRow) -> ColumnElement[bool]:
    """Return the condition that rows belong to a definition."""
    return and_(rows.tenant_id == definition.tenant_id, rows.definition_id == definition.id)


async def find_version(
    session: AsyncSession, definition: DefinitionRow, version: int
) -> VersionRow | None:
    """Return one version of a definition."""
    query = select(VersionRow).where(_of(VersionRow, definition), VersionRow.version == version)
    return await session.scalar(query)


async def all_versions(session: AsyncSession, definition: DefinitionRow) -> list[VersionRow]:
    """Return the versions of a definition's kind without what they compiled to."""
    query = (
        select(VersionRow)
        .options(defer(VersionRow.compiled))
        .where(_of(VersionRow, definition), VersionRow.kind == definition.kind)
    )
    return list(await session.scalars(query.order_by(VersionRow.version)))


async def list_versions(
    session: AsyncSession, definition: DefinitionRow, *, before: int | None, limit: int
) -> list[VersionRow]:
    """Return versions of a definition, newest first."""
    query = select(VersionRow).where(_of(VersionRow, definition))
    if before is not None:
        query = query.where(VersionRow.version < before)
    return list(await session.scalars(query.order_by(VersionRow.version.desc()).limit(limit)))


async def last_version(session: AsyncSession, definition: DefinitionRow) -> int:
    """Return the highest version number of a definition, 0 where it has none."""
    query = select(func.max(VersionRow.version)).where(_of(VersionRow, definition))
    return await session.scalar(query) or 0


async def find_alias(
    session: AsyncSession, definition: DefinitionRow, alias: str
) -> AliasRow | None:
    """Return the row of an alias, removed or not."""
    query = select(AliasRow).where(_of(AliasRow, definition), AliasRow.alias == alias)
    return await session.scalar(query)


async def list_aliases(session: AsyncSession, definition: DefinitionRow) -> list[AliasRow]:
    """Return the aliases of a definition by name."""
    query = select(AliasRow).where(_of(AliasRow, definition), AliasRow.deleted_at.is_(None))
    return list(await session.scalars(query.order_by(AliasRow.alias)))


async def find_agent(session: AsyncSession, tenant: str, agent_id: str) -> AgentRow | None:
    """Return the row of an HTTP agent, deregistered or not."""
    query = select(AgentRow).where(AgentRow.tenant_id == tenant, AgentRow.agent_id == agent_id)
    return await session.scalar(query)


async def list_agents(session: AsyncSession, tenant: str) -> list[AgentRow]:
    """Return the HTTP agents that are registered, alive or not."""
    query = select(AgentRow).where(AgentRow.tenant_id == tenant, AgentRow.deleted_at.is_(None))
    return list(await session.scalars(query.order_by(AgentRow.agent_id)))


async def find_key(session: AsyncSession, tenant: str, key_id: str) -> KeyRow | None:
    """Return an API key, revoked or not."""
    query = select(KeyRow).where(KeyRow.tenant_id == tenant, KeyRow.key_id == key_id)
    return await session.scalar(query)


async def list_keys(session: AsyncSession, tenant: str, *, revoked: bool) -> list[KeyRow]:
    """Return a tenant's API keys, newest first."""
    query = select(KeyRow).where(KeyRow.tenant_id == tenant)
    if not revoked:
        query = query.where(KeyRow.deleted_at.is_(None))
    return list(await session.scalars(query.order_by(KeyRow.id.desc())))
