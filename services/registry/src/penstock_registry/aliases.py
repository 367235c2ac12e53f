"""Aliases: names for versions, by which runs are started as ``name@alias``.

An alias may send some of the runs to another version. What it stands for is written to the bus
after it is committed; a registry that dies in between finds the difference when it repairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.rpc import (
    Alias,
    Aliases,
    Canary,
    DeleteAlias,
    Deleted,
    DocumentKind,
    ListAliases,
    SetAlias,
)
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.core.catalog import RUNNABLE
from penstock_registry.publisher import Publisher
from penstock_registry.store import Store
from penstock_registry.tables import AliasRow, DefinitionRow

log = EventLog(__name__)


@dataclass(frozen=True, slots=True)
class VersionAliases:
    """The registry's verbs on aliases."""

    _store: Store
    _publisher: Publisher
    _now: Callable[[], datetime]

    async def set(self, request: SetAlias) -> Alias:
        """Let an alias stand for a version; the same once more changes nothing.

        Raises:
            RejectedError: ``unknown_definition``, ``unknown_version``, ``invalid_alias``.
            TransientError: Database or bus did not answer.
        """
        _require_alias(request.kind, request.alias)
        async with self._store.changing(request.tenant) as session:
            row, _ = await store.require_definition(
                session, request.tenant, request.kind, request.name
            )
            await _require_version(session, row, request.version, "version")
            canary = request.canary
            if canary is not None:
                await _require_version(session, row, canary.version, "canary.version")
            alias = await store.find_alias(session, row, request.alias)
            if alias is None:
                alias = AliasRow(
                    tenant_id=row.tenant_id,
                    definition_id=row.id,
                    alias=request.alias,
                    created_at=self._now(),
                )
                session.add(alias)
            alias.version, alias.deleted_at = request.version, None
            alias.canary_version = canary.version if canary is not None else None
            alias.canary_weight = canary.weight if canary is not None else None
            if session.is_modified(alias):
                alias.updated_at = self._now()
            shown = _shown(row, alias)
        await self._publisher.assert_selectors(request.tenant, request.kind, request.name)
        log.info(
            "alias.set",
            tenant=request.tenant,
            kind=request.kind,
            name=request.name,
            alias=request.alias,
            version=request.version,
        )
        return shown

    async def delete(self, request: DeleteAlias) -> Deleted:
        """Remove an alias.

        Raises:
            RejectedError: ``unknown_definition``, ``unknown_version``.
            TransientError: Database or bus did not answer.
        """
        async with self._store.changing(request.tenant) as session:
            row, _ = await store.require_definition(
                session, request.tenant, request.kind, request.name
            )
            alias = await store.find_alias(session, row, request.alias)
            if alias is None or alias.deleted_at is not None:
                raise RejectedError(
                    "unknown_version", f"{request.name} has no alias {request.alias!r}"
                )
            alias.deleted_at = alias.updated_at = self._now()
        await self._publisher.assert_selectors(request.tenant, request.kind, request.name)
        return Deleted(kind=request.kind, name=request.name)

    async def all(self, request: ListAliases) -> Aliases:
        """Return the aliases of a definition by name.

        Raises:
            RejectedError: ``unknown_definition``.
            TransientError: The database did not answer.
        """
        async with self._store.reading() as session:
            row, _ = await store.require_definition(
                session, request.tenant, request.kind, request.name
            )
            aliases = await store.list_aliases(session, row)
        return Aliases(items=tuple(_shown(row, alias) for alias in aliases))


def _require_alias(kind: DocumentKind, alias: str) -> None:
    """Refuse what could be mistaken for a version, or stands for nothing that is started."""
    if kind not in RUNNABLE:
        allowed = ", ".join(one.value for one in RUNNABLE)
        message = f"a {kind} is not started by name"
        detail = finding("kind", message, allowed)
        raise RejectedError("invalid_alias", message, details=(detail,))
    if alias.isdigit():
        message = f"{alias!r} is the number of a version"
        detail = finding("alias", message, "a name, such as stable")
        raise RejectedError("invalid_alias", message, details=(detail,))


async def _require_version(
    session: AsyncSession, row: DefinitionRow, number: int, path: str
) -> None:
    version = await store.find_version(session, row, number)
    if version is None or version.kind != row.kind:
        last = await store.last_version(session, row)
        allowed = f"1 to {last}" if last else "no version yet"
        detail = finding(path, f"there is no version {number}", allowed)
        raise RejectedError(
            "unknown_version", f"{row.name} has no version {number}", details=(detail,)
        )


def _shown(row: DefinitionRow, alias: AliasRow) -> Alias:
    canary = None
    if alias.canary_version is not None and alias.canary_weight is not None:
        canary = Canary(version=alias.canary_version, weight=alias.canary_weight)
    return Alias(
        name=row.name,
        alias=alias.alias,
        version=alias.version,
        canary=canary,
        updated_at=alias.updated_at,
    )
