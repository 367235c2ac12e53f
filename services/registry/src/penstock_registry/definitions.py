"""Definitions: storing, publishing, reading and deleting them.

A change is one unit of work: all of its documents compile, or nothing is stored. Plans are on the
bus before a version names them; aliases move after the versions are committed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from penstock.contracts.errors import ConflictError, finding
from penstock.contracts.json import JsonObject
from penstock.contracts.rpc import (
    Applied,
    AppliedDefinition,
    ApplyDocuments,
    ArchiveDefinition,
    Definition,
    DefinitionPage,
    Deleted,
    DeleteDefinition,
    DocumentKind,
    GetDefinition,
    ListDefinitions,
    ListVersions,
    PatchDefinition,
    PublishDefinition,
    PutDefinition,
    Version,
    VersionPage,
)
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.changes import Changes, Origin, load, origin_of
from penstock_registry.core.catalog import Catalog, key_of, uses
from penstock_registry.core.checks import all_faults
from penstock_registry.core.places import invalid_document
from penstock_registry.core.reading import merge_patch, parse_documents, place_document
from penstock_registry.publisher import Publisher
from penstock_registry.store import Store, Stored
from penstock_registry.tables import DefinitionRow, VersionRow

log = EventLog(__name__)

_PAGE_BYTES: Final = 500_000


@dataclass(frozen=True, slots=True)
class Definitions:
    """The registry's verbs on agents, tools, workflows and webhooks."""

    _store: Store
    _publisher: Publisher
    _now: Callable[[], datetime]

    # Changing

    @asynccontextmanager
    async def _changing(self, tenant: str) -> AsyncIterator[Changes]:
        async with self._store.changing(tenant) as session:
            yield await load(session, tenant, self._publisher, self._now)

    async def apply(self, request: ApplyDocuments) -> Applied:
        """Store documents, and publish them if asked to; all or none.

        Raises:
            RejectedError: ``invalid_document`` with every fault; ``plan_too_large``.
            TransientError: Database or bus did not answer; apply again.
        """
        parsed = parse_documents(request.documents)
        async with self._changing(request.tenant) as changes:
            if parsed.faults:
                catalog = changes.in_force if request.publish else changes.drafts
                raise invalid_document(all_faults(parsed, catalog))
            results = await changes.change(parsed.placed, publish=request.publish)
        await self._announce(request.tenant, results)
        return Applied(results=tuple(results))

    async def put(self, request: PutDefinition, *, origin: Origin = "document") -> Definition:
        """Store one document.

        Raises:
            ConflictError: ``name_taken`` (mode ``create``), ``wrong_revision``.
            RejectedError: ``unknown_definition`` (mode ``replace``), ``invalid_document``.
            TransientError: Database or bus did not answer.
        """
        placed = place_document(request.document, expected=request.kind)
        name = placed.document.metadata.name
        if request.name is not None and name != request.name:
            raise invalid_document([finding("metadata.name", f"got {name!r}", request.name)])
        async with self._changing(request.tenant) as changes:
            stored = changes.rows.get((request.kind, name))
            if stored is not None and request.mode == "create":
                raise ConflictError("name_taken", f"there is {request.kind} {name!r} already")
            if stored is None and request.mode == "replace":
                raise store.unknown_definition(request.kind, name)
            if stored is not None and origin == "registration" != stored[0].origin:
                raise ConflictError("name_taken", f"{name!r} is an agent that has a document")
            _require_revision(stored, request.expected_revision)
            results = await changes.change([placed], publish=request.publish, origin=origin)
        await self._announce(request.tenant, results)
        return await self.get(GetDefinition(tenant=request.tenant, kind=request.kind, name=name))

    async def patch(self, request: PatchDefinition) -> Definition:
        """Change a stored document by a JSON merge patch.

        Raises:
            ConflictError: ``wrong_revision``.
            RejectedError: ``unknown_definition``, ``invalid_document``.
            TransientError: Database or bus did not answer.
        """
        async with self._changing(request.tenant) as changes:
            stored = changes.require(request.kind, request.name)
            _require_revision(stored, request.expected_revision)
            merged = merge_patch(stored[0].document, request.patch)
            placed = place_document(merged, expected=request.kind)
            if (name := placed.document.metadata.name) != request.name:
                raise invalid_document(
                    [finding("metadata.name", f"got {name!r}; a name never changes", request.name)]
                )
            results = await changes.change(
                [placed], publish=request.publish, origin=origin_of(stored[0])
            )
        await self._announce(request.tenant, results)
        return await self.get(
            GetDefinition(tenant=request.tenant, kind=request.kind, name=request.name)
        )

    async def publish(self, request: PublishDefinition) -> AppliedDefinition:
        """Bring a definition into force as it is stored now, or an older version of it again.

        Raises:
            RejectedError: ``unknown_definition``, ``unknown_version``, ``invalid_document``.
            TransientError: Database or bus did not answer.
        """
        async with self._changing(request.tenant) as changes:
            stored = changes.require(request.kind, request.name)
            if request.version is None:
                placed = place_document(stored[0].document, expected=request.kind)
                results = await changes.change([placed], publish=True)
            else:
                results = await changes.return_to(stored, request.version)
        await self._announce(request.tenant, results)
        return next(
            result
            for result in results
            if result.kind is request.kind and result.name == request.name
        )

    async def delete(self, request: DeleteDefinition, *, origin: Origin | None = None) -> Deleted:
        """Delete a definition; runs cannot start it any more.

        Args:
            request: Which one.
            origin: Only if it has this origin; any other counts as unchanges.

        Raises:
            ConflictError: ``in_use`` with those that name it.
            RejectedError: ``unknown_definition``.
            TransientError: Database or bus did not answer.
        """
        async with self._changing(request.tenant) as changes:
            row, _ = changes.require(request.kind, request.name)
            if origin not in (None, row.origin):
                raise store.unknown_definition(request.kind, request.name)
            _require_unused(request.kind, request.name, changes.drafts, changes.in_force)
            row.deleted_at = row.updated_at = self._now()
            row.revision += 1
            row.published_version = None
        await self._withdraw(request.tenant, request.kind, request.name)
        log.info("definition.deleted", tenant=request.tenant, kind=request.kind, name=request.name)
        return Deleted(kind=request.kind, name=request.name)

    async def archive(self, request: ArchiveDefinition) -> Definition:
        """Archive a definition with all its versions.

        Raises:
            ConflictError: ``in_use`` with those in force that name it.
            RejectedError: ``unknown_definition``.
            TransientError: Database or bus did not answer.
        """
        async with self._changing(request.tenant) as changes:
            row, _ = changes.require(request.kind, request.name)
            _require_unused(request.kind, request.name, changes.in_force)
            if row.archived_at is None:
                row.archived_at = row.updated_at = self._now()
                row.published_version = None
        await self._withdraw(request.tenant, request.kind, request.name)
        log.info("definition.archived", tenant=request.tenant, kind=request.kind, name=request.name)
        return await self.get(
            GetDefinition(tenant=request.tenant, kind=request.kind, name=request.name)
        )

    async def _withdraw(self, tenant: str, kind: DocumentKind, name: str) -> None:
        """Remove superseded versions from the buckets."""
        await self._publisher.assert_definition(tenant, kind, name)
        await self._publisher.assert_selectors(tenant, kind, name)

    # Reading

    async def get(self, request: GetDefinition) -> Definition:
        """Return one definition.

        Raises:
            RejectedError: ``unknown_definition``.
            TransientError: The database did not answer.
        """
        async with self._store.reading() as session:
            found = await store.require_definition(
                session, request.tenant, request.kind, request.name
            )
        return _shown(*found)

    async def page(self, request: ListDefinitions) -> DefinitionPage:
        """Return definitions of one kind, by name.

        Raises:
            TransientError: The database did not answer.
        """
        async with self._store.reading() as session:
            found = await store.list_definitions(
                session, request.tenant, request.kind, after=request.after, limit=request.limit + 1
            )
        count = _fitting([row.document for row, _ in found], request.limit)
        items = tuple(_shown(*stored) for stored in found[:count])
        more = len(found) > count
        return DefinitionPage(items=items, next_after=items[-1].name if more else None)

    async def versions(self, request: ListVersions) -> VersionPage:
        """Return the versions of a definition, newest first.

        Raises:
            RejectedError: ``unknown_definition``.
            TransientError: The database did not answer.
        """
        async with self._store.reading() as session:
            definition, _ = await store.require_definition(
                session, request.tenant, request.kind, request.name
            )
            rows = await store.list_versions(
                session, definition, before=request.before, limit=request.limit + 1
            )
        count = _fitting([row.document for row in rows], request.limit)
        items = tuple(
            Version(
                version=row.version,
                plan_digest=row.digest,
                in_force=row.version == definition.published_version,
                document=row.document,
                published_at=row.created_at,
            )
            for row in rows[:count]
        )
        more = len(rows) > count
        return VersionPage(items=items, next_before=items[-1].version if more else None)

    async def _announce(self, tenant: str, results: Iterable[AppliedDefinition]) -> None:
        """Move the aliases; also of what did not change, should the bus have lost it."""
        for result in results:
            if result.version is None:
                continue
            await self._publisher.assert_definition(tenant, result.kind, result.name)
            # A name that was out of force has all of its versions again.
            only = result.version if result.change == "unchanged" else None
            await self._publisher.assert_selectors(tenant, result.kind, result.name, version=only)
            if result.change != "unchanged":
                log.info(
                    "definition.published",
                    tenant=tenant,
                    kind=result.kind,
                    name=result.name,
                    version=result.version,
                    plan_digest=result.plan_digest,
                )


def _require_unused(kind: DocumentKind, name: str, *catalogs: Catalog) -> None:
    """Check that no definition of some catalogs names another one.

    Raises:
        ConflictError: ``in_use``.
    """
    users = {
        "/".join(key_of(document))
        for catalog in catalogs
        for document in catalog.documents()
        if (kind, name) in uses(document)
    }
    if users:
        raise ConflictError(
            "in_use",
            f"{kind} {name!r} is used by {', '.join(sorted(users))}",
            details=tuple(finding(user, f"names {name!r}") for user in sorted(users)),
        )


def _fitting(documents: list[JsonObject], limit: int) -> int:
    """Return how many documents go into one page: a reply is one message."""
    total = 0
    for index, document in enumerate(documents[:limit]):
        total += len(json.dumps(document))
        if total > _PAGE_BYTES and index:
            return index
    return min(limit, len(documents))


def _require_revision(stored: Stored | None, expected: int | None) -> None:
    if expected is None:
        return
    revision = stored[0].revision if stored is not None else 0
    if revision != expected:
        raise ConflictError("wrong_revision", f"revision {expected} was expected, it is {revision}")


def _shown(row: DefinitionRow, version: VersionRow | None) -> Definition:
    return Definition(
        tenant=row.tenant_id,
        kind=DocumentKind(row.kind),
        name=row.name,
        description=row.description,
        labels=row.labels,
        document=row.document,
        revision=row.revision,
        origin=origin_of(row),
        published_version=version.version if version is not None else None,
        plan_digest=version.digest if version is not None else None,
        status=_status(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _status(row: DefinitionRow) -> Literal["draft", "published", "archived"]:
    if row.archived_at is not None:
        return "archived"
    return "published" if row.published_version is not None else "draft"
