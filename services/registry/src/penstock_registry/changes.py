"""Changes: what one unit of work does to a tenant's definitions and their versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.rpc import AppliedDefinition, DocumentKind
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.core.catalog import PUBLISHING_ORDER, Catalog, Key, dependants, key_of
from penstock_registry.core.compiler import Artifact, compile_document
from penstock_registry.core.documents import Document, kind_of
from penstock_registry.core.places import at, invalid_document
from penstock_registry.core.reading import Placed, parse_document
from penstock_registry.publisher import Publisher
from penstock_registry.store import Stored, namespace_of
from penstock_registry.tables import DefinitionRow, VersionRow

log = EventLog("penstock.registry")

Origin = Literal["document", "registration"]
Change = Literal["created", "updated", "unchanged"]


@dataclass(slots=True)
class Known:
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


class Changes:
    """Stores and publishes inside a unit of work of the caller's.

    Plans are put on the bus before the version that names them is committed.
    """

    def __init__(self, publisher: Publisher, now: Callable[[], datetime]) -> None:
        """Use a publisher and a clock."""
        self._publisher = publisher
        self._now = now

    async def change(
        self,
        session: AsyncSession,
        tenant: str,
        known: Known,
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
        self, session: AsyncSession, tenant: str, known: Known, one: Placed, origin: Origin
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

    async def return_to(
        self, session: AsyncSession, known: Known, stored: Stored, number: int
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


def origin_of(row: DefinitionRow) -> Origin:
    """Return who made a definition."""
    return "registration" if row.origin == "registration" else "document"


async def load(session: AsyncSession, tenant: str) -> Known:
    """Return a tenant's definitions."""
    rows: dict[Key, Stored] = {}
    drafts: list[Document] = []
    in_force: list[Document] = []
    for row, version in await store.all_definitions(session, tenant):
        rows[(DocumentKind(row.kind), row.name)] = (row, version)
        drafts += _read(row, row.document)
        if version is not None:
            in_force += _read(row, version.document)
    return Known(rows, Catalog.of(drafts), Catalog.of(in_force))


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


def _refuse_taken_names(known: Known, placed: Iterable[Placed]) -> None:
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
