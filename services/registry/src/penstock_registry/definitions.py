"""Definitions: storing, publishing, reading and deleting them.

A change is one unit of work: all of its documents compile, or nothing is stored. Plans are on the
bus before a version names them; aliases move after the versions are committed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from penstock.contracts.errors import ConflictError, ErrorDetail, RejectedError
from penstock.contracts.rpc import (
    Applied,
    AppliedDefinition,
    ApplyDocuments,
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
from penstock_registry.core.compiler import (
    PUBLISHING_ORDER,
    Artifact,
    Catalog,
    Key,
    all_faults,
    compile_document,
    dependants,
    key_of,
    uses,
)
from penstock_registry.core.documents import (
    Document,
    Placed,
    at,
    invalid_document,
    kind_of,
    merge_patch,
    parse_document,
    parse_documents,
    place_document,
)
from penstock_registry.publisher import Publisher
from penstock_registry.store import Store, Stored, namespace_of
from penstock_registry.tables import DefinitionRow, VersionRow

log = EventLog("penstock.registry")

_PAGE_BYTES: Final = 500_000

Origin = Literal["document", "registration"]
Change = Literal["created", "updated", "unchanged"]


@dataclass(slots=True)
class _Known:
    """A tenant's definitions, as rows and as documents."""

    rows: dict[Key, Stored]
    drafts: Catalog
    in_force: Catalog

    def namesake(self, kind: DocumentKind, name: str) -> Stored | None:
        """Return the row that takes a name: of its own kind, or of one that shares the names."""
        for (other, taken), stored in self.rows.items():
            if taken == name and namespace_of(other) == namespace_of(kind):
                return stored
        return None


class Definitions:
    """The registry's verbs on agents, tools, workflows and webhooks."""

    def __init__(self, database: Store, publisher: Publisher, now: Callable[[], datetime]) -> None:
        """Use a database, a publisher and a clock."""
        self._store = database
        self._publisher = publisher
        self._now = now

    # Changing

    async def apply(self, request: ApplyDocuments) -> Applied:
        """Store documents, and publish them if asked to; all or none.

        Raises:
            RejectedError: ``invalid_document`` with every fault; ``plan_too_large``.
            TransientError: Database or bus did not answer; apply again.
        """
        parsed = parse_documents(request.documents)
        async with self._store.changing(request.tenant) as session:
            known = await _load(session, request.tenant)
            if parsed.faults:
                catalog = known.in_force if request.publish else known.drafts
                raise invalid_document(all_faults(parsed, catalog))
            results = await self._change(
                session, request.tenant, known, parsed.placed, publish=request.publish
            )
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
            raise invalid_document(
                [ErrorDetail(path="metadata.name", message=f"got {name!r}", allowed=request.name)]
            )
        async with self._store.changing(request.tenant) as session:
            known = await _load(session, request.tenant)
            stored = known.rows.get((request.kind, name))
            if stored is not None and request.mode == "create":
                raise ConflictError("name_taken", f"there is {request.kind} {name!r} already")
            if stored is None and request.mode == "replace":
                raise _unknown(request.kind, name)
            if stored is not None and origin == "registration" != stored[0].origin:
                raise ConflictError("name_taken", f"{name!r} is an agent that has a document")
            _require_revision(stored, request.expected_revision)
            results = await self._change(
                session, request.tenant, known, [placed], publish=request.publish, origin=origin
            )
        await self._announce(request.tenant, results)
        return await self.get(GetDefinition(tenant=request.tenant, kind=request.kind, name=name))

    async def patch(self, request: PatchDefinition) -> Definition:
        """Change a stored document by a JSON merge patch.

        Raises:
            ConflictError: ``wrong_revision``.
            RejectedError: ``unknown_definition``, ``invalid_document``.
            TransientError: Database or bus did not answer.
        """
        async with self._store.changing(request.tenant) as session:
            known = await _load(session, request.tenant)
            stored = known.rows.get((request.kind, request.name))
            if stored is None:
                raise _unknown(request.kind, request.name)
            _require_revision(stored, request.expected_revision)
            merged = merge_patch(stored[0].document, request.patch)
            placed = place_document(merged, expected=request.kind)
            if (name := placed.document.metadata.name) != request.name:
                raise invalid_document(
                    [
                        ErrorDetail(
                            path="metadata.name",
                            message=f"got {name!r}; a name never changes",
                            allowed=request.name,
                        )
                    ]
                )
            results = await self._change(
                session, request.tenant, known, [placed], publish=request.publish
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
        async with self._store.changing(request.tenant) as session:
            known = await _load(session, request.tenant)
            stored = known.rows.get((request.kind, request.name))
            if stored is None:
                raise _unknown(request.kind, request.name)
            if request.version is None:
                placed = place_document(stored[0].document, expected=request.kind)
                results = await self._change(session, request.tenant, known, [placed], publish=True)
            else:
                results = await self._return_to(session, known, stored, request.version)
        await self._announce(request.tenant, results)
        return next(
            result
            for result in results
            if result.kind is request.kind and result.name == request.name
        )

    async def delete(self, request: DeleteDefinition, *, origin: Origin | None = None) -> Deleted:
        """Take a definition out of force and delete it.

        Args:
            request: Which one.
            origin: Only if it has this origin; any other counts as unknown.

        Raises:
            ConflictError: ``in_use`` with those that name it.
            RejectedError: ``unknown_definition``.
            TransientError: Database or bus did not answer.
        """
        async with self._store.changing(request.tenant) as session:
            known = await _load(session, request.tenant)
            stored = known.rows.get((request.kind, request.name))
            if stored is None or origin not in (None, stored[0].origin):
                raise _unknown(request.kind, request.name)
            users = _users(known, (request.kind, request.name))
            if users:
                raise ConflictError(
                    "in_use",
                    f"{request.kind} {request.name!r} is used by {', '.join(users)}",
                    details=tuple(
                        ErrorDetail(path=user, message=f"names {request.name!r}") for user in users
                    ),
                )
            row = stored[0]
            row.deleted_at = row.updated_at = self._now()
            row.revision += 1
            row.published_version = None
        await self._publisher.assert_definition(request.tenant, request.kind, request.name)
        log.info("definition.deleted", tenant=request.tenant, kind=request.kind, name=request.name)
        return Deleted(kind=request.kind, name=request.name)

    # Reading

    async def get(self, request: GetDefinition) -> Definition:
        """Return one definition.

        Raises:
            RejectedError: ``unknown_definition``.
            TransientError: The database did not answer.
        """
        async with self._store.reading() as session:
            found = await store.find_definition(session, request.tenant, request.kind, request.name)
        if found is None:
            raise _unknown(request.kind, request.name)
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
            found = await store.find_definition(session, request.tenant, request.kind, request.name)
            if found is None:
                raise _unknown(request.kind, request.name)
            rows = await store.list_versions(
                session, found[0], before=request.before, limit=request.limit + 1
            )
        count = _fitting([row.document for row in rows], request.limit)
        items = tuple(
            Version(
                version=row.version,
                plan_digest=row.digest,
                in_force=row.version == found[0].published_version,
                document=row.document,
                published_at=row.created_at,
            )
            for row in rows[:count]
        )
        more = len(rows) > count
        return VersionPage(items=items, next_before=items[-1].version if more else None)

    # One unit of work

    async def _change(
        self,
        session: AsyncSession,
        tenant: str,
        known: _Known,
        placed: Iterable[Placed],
        *,
        publish: bool,
        origin: Origin = "document",
    ) -> list[AppliedDefinition]:
        """Store documents and, to publish them, what they and their dependants compile to."""
        ordered = sorted(placed, key=lambda one: PUBLISHING_ORDER.index(kind_of(one.document)))
        documents = [one.document for one in ordered]
        _refuse_taken_names(known, ordered)
        catalog = (known.in_force if publish else known.drafts).plus(documents)
        also = dependants(catalog, map(key_of, documents)) if publish else []
        paths = [one.path for one in ordered] + ["/".join(key_of(document)) for document in also]
        artifacts = _compile_all([*documents, *also], paths, catalog)
        results: list[AppliedDefinition] = []
        for one in ordered:
            key = key_of(one.document)
            stored, change = await self._save(session, tenant, known, one, origin)
            if publish:
                results.append(
                    await self._publish(session, stored, one.raw, artifacts[key], change)
                )
            else:
                results.append(_result(*stored, change))
        for document in also:
            stored = known.rows[key_of(document)]
            row, version = stored
            if version is None or version.digest == artifacts[key_of(document)].digest:
                continue
            result = await self._publish(
                session, stored, version.document, artifacts[key_of(document)], "unchanged"
            )
            results.append(result.model_copy(update={"dependant": True}))
            log.info("definition.republished", tenant=tenant, kind=row.kind, name=row.name)
        return results

    async def _save(
        self, session: AsyncSession, tenant: str, known: _Known, one: Placed, origin: Origin
    ) -> tuple[Stored, Change]:
        kind, name = key_of(one.document)
        stored = known.rows.get((kind, name))
        now = self._now()
        metadata = one.document.metadata
        fields: dict[str, Any] = {
            "kind": kind.value,
            "description": metadata.description,
            "labels": metadata.labels,
            "document": one.raw,
            "origin": origin,
            "updated_at": now,
        }
        if stored is not None:
            row, version = stored
            if _same(row.document, one.raw) and row.origin == origin:
                return stored, "unchanged"
            _set(row, fields)
            row.revision += 1
            return (row, version), "updated"
        # A deleted namesake comes back: its versions go on counting.
        old = await store.find_named(session, tenant, kind, name)
        if old is not None:
            row = old[0]
            _set(row, {**fields, "deleted_at": None, "published_version": None})
            row.revision += 1
        else:
            row = DefinitionRow(
                tenant_id=tenant,
                namespace=namespace_of(kind),
                name=name,
                revision=1,
                created_at=now,
                deleted_at=None,
                published_version=None,
                **fields,
            )
            session.add(row)
            await session.flush()
        return (row, None), "created"

    async def _publish(
        self,
        session: AsyncSession,
        stored: Stored,
        document: dict[str, Any],
        artifact: Artifact,
        change: Change,
    ) -> AppliedDefinition:
        """Make a new version out of an artifact, unless just this one is in force."""
        row, version = stored
        if version is not None and version.digest == artifact.digest:
            return _result(row, version, change)
        kind = DocumentKind(row.kind)
        if kind is DocumentKind.AGENT or kind is DocumentKind.WORKFLOW:
            await self._publisher.put_plan(artifact.digest, artifact.body)
        now = self._now()
        fresh = VersionRow(
            tenant_id=row.tenant_id,
            definition_id=row.id,
            kind=row.kind,
            version=await store.last_version(session, row) + 1,
            digest=artifact.digest,
            compiled=artifact.body,
            document=document,
            created_at=now,
            updated_at=now,
            deleted_at=None,
        )
        session.add(fresh)
        row.published_version = fresh.version
        row.updated_at = now
        return _result(row, fresh, "updated" if change == "unchanged" else change)

    async def _return_to(
        self, session: AsyncSession, known: _Known, stored: Stored, number: int
    ) -> list[AppliedDefinition]:
        """Put an older version into force; dependants are compiled against it."""
        row, current = stored
        version = await store.find_version(session, row, number)
        if version is None or version.kind != row.kind:
            raise RejectedError("unknown_version", f"{row.name} has no version {number}")
        document = parse_document(version.document, expected=DocumentKind(row.kind))
        catalog = known.in_force.plus([document])
        also = dependants(catalog, [key_of(document)])
        paths = ["/".join(key_of(other)) for other in also]
        artifacts = _compile_all(also, paths, catalog)
        same = current is not None and current.version == version.version
        row.published_version = version.version
        row.updated_at = self._now()
        results = [_result(row, version, "unchanged" if same else "updated")]
        for other in also:
            used = known.rows[key_of(other)]
            if used[1] is None or used[1].digest == artifacts[key_of(other)].digest:
                continue
            result = await self._publish(
                session, used, used[1].document, artifacts[key_of(other)], "unchanged"
            )
            results.append(result.model_copy(update={"dependant": True}))
        return results

    async def _announce(self, tenant: str, results: Iterable[AppliedDefinition]) -> None:
        """Move the aliases; also of what did not change, should the bus have lost it."""
        for result in results:
            if result.version is None:
                continue
            await self._publisher.assert_definition(tenant, result.kind, result.name)
            if result.change != "unchanged":
                log.info(
                    "definition.published",
                    tenant=tenant,
                    kind=result.kind,
                    name=result.name,
                    version=result.version,
                    plan_digest=result.plan_digest,
                )


async def _load(session: AsyncSession, tenant: str) -> _Known:
    rows: dict[Key, Stored] = {}
    drafts: list[Document] = []
    in_force: list[Document] = []
    for row, version in await store.all_definitions(session, tenant):
        rows[(DocumentKind(row.kind), row.name)] = (row, version)
        drafts += _read(row, row.document)
        if version is not None:
            in_force += _read(row, version.document)
    return _Known(rows, Catalog.of(drafts), Catalog.of(in_force))


def _read(row: DefinitionRow, raw: JsonValue) -> list[Document]:
    """Read a stored document; one that an older release allowed counts as missing."""
    try:
        return [parse_document(raw, expected=DocumentKind(row.kind))]
    except RejectedError as error:
        log.warning(
            "definition.unreadable",
            tenant=row.tenant_id,
            kind=row.kind,
            name=row.name,
            reason=error.message,
        )
        return []


def _refuse_taken_names(known: _Known, placed: Iterable[Placed]) -> None:
    """Refuse the name of a stored definition of another kind that shares the names.

    Raises:
        RejectedError: ``invalid_document``.
    """
    faults = []
    for one in placed:
        kind, name = key_of(one.document)
        stored = known.namesake(kind, name)
        if stored is not None and stored[0].kind != kind.value:
            message = f"{name!r} is the name of {stored[0].kind} already; both are started by name"
            faults.append(ErrorDetail(path=at(one.path, "metadata.name"), message=message))
    if faults:
        raise invalid_document(faults)


def _compile_all(
    documents: list[Document], paths: list[str], catalog: Catalog
) -> dict[Key, Artifact]:
    """Compile documents, or refuse them with every fault of each."""
    artifacts: dict[Key, Artifact] = {}
    faults: list[ErrorDetail] = []
    for document, path in zip(documents, paths, strict=True):
        try:
            artifacts[key_of(document)] = compile_document(document, catalog, path=path)
        except RejectedError as error:
            faults.extend(error.details)
    if faults:
        raise invalid_document(faults)
    return artifacts


def _users(known: _Known, key: Key) -> list[str]:
    """Return those that name a definition, as stored or as in force."""
    found = {
        "/".join(key_of(document))
        for catalog in (known.drafts, known.in_force)
        for document in catalog.documents()
        if key in uses(document)
    }
    return sorted(found)


def _fitting(documents: list[dict[str, Any]], limit: int) -> int:
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


def _unknown(kind: DocumentKind, name: str) -> RejectedError:
    return RejectedError("unknown_definition", f"there is no {kind} {name!r}")


def _same(one: JsonValue, other: JsonValue) -> bool:
    """Compare documents as they are written: the order of keys counts, it is in the plan."""
    return json.dumps(one) == json.dumps(other)


def _set(row: DefinitionRow, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        setattr(row, name, value)


def _result(row: DefinitionRow, version: VersionRow | None, change: Change) -> AppliedDefinition:
    return AppliedDefinition(
        kind=DocumentKind(row.kind),
        name=row.name,
        version=version.version if version is not None else None,
        plan_digest=version.digest if version is not None else None,
        change=change,
    )


def _shown(row: DefinitionRow, version: VersionRow | None) -> Definition:
    return Definition(
        tenant=row.tenant_id,
        kind=DocumentKind(row.kind),
        name=row.name,
        description=row.description,
        labels=row.labels,
        document=row.document,
        revision=row.revision,
        origin="registration" if row.origin == "registration" else "document",
        published_version=version.version if version is not None else None,
        plan_digest=version.digest if version is not None else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
