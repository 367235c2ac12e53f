"""Changes: what one unit of work does to a tenant's definitions and their versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import JsonValue, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from penstock.contracts.errors import ErrorDetail, RejectedError, finding
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.json import JsonObject
from penstock.contracts.plan import PLAN, CompiledTool, PublishedVersion
from penstock.contracts.rpc import AppliedDefinition, DocumentKind
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.core.catalog import (
    RUNNABLE,
    Catalog,
    Key,
    children_of,
    dependants,
    key_of,
    publishing_order,
)
from penstock_registry.core.compiler import Artifact, Selected, compile_document
from penstock_registry.core.documents import Document, WorkflowDocument
from penstock_registry.core.places import at, invalid_document
from penstock_registry.core.reading import Placed, parse_document
from penstock_registry.publisher import Publisher
from penstock_registry.store import Stored, namespace_of
from penstock_registry.tables import DefinitionRow, VersionRow
from penstock_registry.versions import published_version, select_version

log = EventLog(__name__)

Origin = Literal["document", "registration"]
Change = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Changes:
    """A tenant's definitions within a unit of work, and what changes them.

    Plans are put on the bus before the version that names them is committed.
    """

    session: AsyncSession
    tenant: str
    rows: dict[Key, Stored]
    drafts: Catalog
    in_force: Catalog
    _publisher: Publisher
    _now: Callable[[], datetime]

    def require(self, kind: DocumentKind, name: str) -> Stored:
        """Return the row of a definition.

        Raises:
            RejectedError: ``unknown_definition``.
        """
        if (stored := self.rows.get((kind, name))) is None:
            raise store.unknown_definition(kind, name)
        return stored

    async def change(
        self,
        placed: Iterable[Placed],
        *,
        publish: bool,
        origin: Origin = "document",
    ) -> list[AppliedDefinition]:
        """Store documents and, to publish them, what they and their dependants compile to."""
        given = {key_of(one.document): one for one in placed}
        documents = [one.document for one in given.values()]
        self._refuse_taken_names(given.values())
        catalog = (self.in_force if publish else self.drafts).plus(documents)
        also = dependants(catalog, given) if publish else []
        places = {key: one.path for key, one in given.items()}
        ordered = publishing_order([*documents, *also])
        if publish:
            artifacts = await self._compile(ordered, catalog, places)
        else:
            artifacts = _check(ordered, catalog, places)
        results: list[AppliedDefinition] = []
        for document in ordered:
            key = key_of(document)
            if key not in given:
                continue
            one = given[key]
            stored, change = await self._save(one, origin)
            if publish:
                results.append(await self._publish(stored, one.raw, artifacts[key], change))
            else:
                results.append(_result(*stored, change))
        return results + await self._republish(also, artifacts)

    async def _republish(
        self,
        documents: Iterable[Document],
        artifacts: Mapping[Key, Artifact],
    ) -> list[AppliedDefinition]:
        """Publish the users of changed definitions, as far as that changes them."""
        results: list[AppliedDefinition] = []
        for document in documents:
            key = key_of(document)
            row, version = stored = self.rows[key]
            if version is None or _same_plan(version, artifacts[key]):
                continue
            result = await self._publish(stored, version.document, artifacts[key], "unchanged")
            results.append(result.model_copy(update={"dependant": True}))
            log.info("definition.republished", tenant=row.tenant_id, kind=row.kind, name=row.name)
        return results

    async def _compile(
        self,
        documents: Iterable[Document],
        catalog: Catalog,
        places: Mapping[Key, str],
    ) -> dict[Key, Artifact]:
        """Compile documents in their order, or refuse them with every fault of each.

        What a workflow runs as a child is named by the version that it will have after this.

        Raises:
            RejectedError: ``invalid_document``; ``plan_too_large``.
        """
        artifacts: dict[Key, Artifact] = {}
        faults: list[ErrorDetail] = []
        coming: dict[str, PublishedVersion] = {}
        for document in documents:
            key = key_of(document)
            pins: dict[Selected, PublishedVersion] = {}
            if isinstance(document, WorkflowDocument):
                pins = await self._pins(document, coming)
            path = places.get(key, "/".join(key))
            try:
                artifact = compile_document(document, catalog, path=path, pins=pins)
            except RejectedError as error:
                faults.extend(error.details)
                artifact = _UNKNOWN
            artifacts[key] = artifact
            if key[0] in RUNNABLE:
                coming[key[1]] = await self._coming(key, artifact)
        if faults:
            raise invalid_document(faults)
        return artifacts

    async def _coming(self, key: Key, artifact: Artifact) -> PublishedVersion:
        """Return the version that a definition will have once an artifact of it is published."""
        stored = self.rows.get(key) or await store.find_named(self.session, self.tenant, *key)
        version = stored[1] if stored is not None else None
        if stored is not None and stored[0].archived_at is not None:
            version = await self._latest(stored[0])
        if version is not None and _same_plan(version, artifact):
            return published_version(version, key[1])
        last = await store.last_version(self.session, stored[0]) if stored is not None else 0
        return PublishedVersion(
            name=key[1],
            kind=DefinitionKind(key[0].value),
            version=last + 1,
            plan_digest=artifact.digest,
        )

    async def _pins(
        self,
        document: WorkflowDocument,
        coming: Mapping[str, PublishedVersion],
    ) -> dict[Selected, PublishedVersion]:
        """Return the exact versions of what a workflow runs as children, as far as they exist."""
        found: dict[Selected, PublishedVersion] = {}
        for child in children_of(document.spec):
            stored = self._runnable(child.name)
            if child.version is None and child.name in coming:
                found[child.name, None] = coming[child.name]
                continue
            if stored is None:
                continue
            version = stored[1]
            if child.version is not None:
                version = await select_version(self.session, stored[0], child.version)
            if version is not None:
                found[child.name, child.version] = published_version(version, child.name)
        return found

    async def _save(self, one: Placed, origin: Origin) -> tuple[Stored, Change]:
        kind, name = key_of(one.document)
        stored = self.rows.get((kind, name))
        if stored is not None:
            row, version = stored
            if _same(row.document, one.raw) and row.origin == origin:
                return stored, "unchanged"
            self._write(row, one, origin)
            return (row, version), "updated"
        # A deleted namesake returns: its version numbers continue.
        old = await store.find_named(self.session, self.tenant, kind, name)
        if old is not None:
            row = old[0]
            row.deleted_at = row.published_version = row.archived_at = None
            self._write(row, one, origin)
        else:
            row = DefinitionRow(
                tenant_id=self.tenant,
                namespace=namespace_of(kind),
                name=name,
                revision=0,
            )
            self._write(row, one, origin)
            row.created_at = row.updated_at
            self.session.add(row)
            await self.session.flush()
        return (row, None), "created"

    def _write(self, row: DefinitionRow, one: Placed, origin: Origin) -> None:
        """Write a document into its row, as the next revision."""
        metadata = one.document.metadata
        row.kind = key_of(one.document)[0].value
        row.description, row.labels = metadata.description, metadata.labels
        row.document, row.origin = one.raw, origin
        row.updated_at = self._now()
        row.revision += 1

    async def _publish(
        self,
        stored: Stored,
        document: JsonObject,
        artifact: Artifact,
        change: Change,
    ) -> AppliedDefinition:
        """Make a new version out of an artifact, unless just this one is in force."""
        row, version = stored
        if row.archived_at is not None:
            row.archived_at = None
            version = await self._latest(row)
            if version is not None and _same_plan(version, artifact):
                row.published_version = version.version
                row.updated_at = self._now()
                return _result(row, version, "updated" if change == "unchanged" else change)
        elif version is not None and _same_plan(version, artifact):
            return _result(row, version, change)
        if DocumentKind(row.kind) in RUNNABLE:
            await self._publisher.put_plan(artifact.digest, artifact.body)
        now = self._now()
        fresh = VersionRow(
            tenant_id=row.tenant_id,
            definition_id=row.id,
            kind=row.kind,
            version=await store.last_version(self.session, row) + 1,
            digest=artifact.digest,
            compiled=artifact.body,
            document=document,
            created_at=now,
            updated_at=now,
            deleted_at=None,
        )
        self.session.add(fresh)
        row.published_version = fresh.version
        row.updated_at = now
        return _result(row, fresh, "updated" if change == "unchanged" else change)

    async def _latest(self, row: DefinitionRow) -> VersionRow | None:
        last = await store.last_version(self.session, row)
        version = await store.find_version(self.session, row, last)
        return version if version is not None and version.kind == row.kind else None

    async def return_to(self, stored: Stored, number: int) -> list[AppliedDefinition]:
        """Put an older version into force; dependants are compiled against it."""
        row, current = stored
        version = await store.find_version(self.session, row, number)
        if version is None or version.kind != row.kind:
            raise RejectedError("unknown_version", f"{row.name} has no version {number}")
        document = parse_document(version.document, expected=DocumentKind(row.kind))
        catalog = self.in_force.plus([document])
        also = dependants(catalog, [key_of(document)])
        same = current is not None and current.version == version.version
        row.published_version = version.version
        row.archived_at = None
        row.updated_at = self._now()
        self.rows[key_of(document)] = (row, version)
        artifacts = await self._compile(also, catalog, {})
        results = [_result(row, version, "unchanged" if same else "updated")]
        return results + await self._republish(also, artifacts)

    def _refuse_taken_names(self, placed: Iterable[Placed]) -> None:
        """Refuse the name of a stored definition of another kind that shares the names.

        Raises:
            RejectedError: ``invalid_document``.
        """
        taken = {(namespace_of(kind), name): kind for kind, name in self.rows}
        faults = []
        for one in placed:
            kind, name = key_of(one.document)
            other = taken.get((namespace_of(kind), name), kind)
            if other is not kind:
                message = f"{name!r} is the name of {other.value} already; both are started by name"
                faults.append(finding(at(one.path, "metadata.name"), message))
        if faults:
            raise invalid_document(faults)

    def _runnable(self, name: str) -> Stored | None:
        """Return the row of the definition that a name starts."""
        return next((self.rows[kind, name] for kind in RUNNABLE if (kind, name) in self.rows), None)


def _check(
    documents: Iterable[Document], catalog: Catalog, places: Mapping[Key, str]
) -> dict[Key, Artifact]:
    """Compile documents that are not published: what they run need not be published either.

    Raises:
        RejectedError: ``invalid_document``; ``plan_too_large``.
    """
    artifacts: dict[Key, Artifact] = {}
    faults: list[ErrorDetail] = []
    for document in documents:
        key = key_of(document)
        try:
            artifacts[key] = compile_document(document, catalog, path=places[key])
        except RejectedError as error:
            faults.extend(error.details)
    if faults:
        raise invalid_document(faults)
    return artifacts


_UNKNOWN: Final = Artifact(b"", "")
"""Stands for what did not compile, so that others are checked as well."""


def _same_plan(version: VersionRow, artifact: Artifact) -> bool:
    """Return whether a version equals the compiled one, if only written by an older release."""
    if version.digest == artifact.digest:
        return True
    kind = DocumentKind(version.kind)
    try:
        if kind in RUNNABLE:
            return PLAN.validate_json(version.compiled).to_bytes() == artifact.body
        if kind is DocumentKind.TOOL:
            tool = CompiledTool.model_validate_json(version.compiled)
            return tool.model_dump_json().encode() == artifact.body
    except ValidationError as error:
        log.warning(
            "version.unreadable",
            tenant=version.tenant_id,
            kind=version.kind,
            digest=version.digest,
            reason=str(error),
        )
    return False


def origin_of(row: DefinitionRow) -> Origin:
    """Return who made a definition."""
    return "registration" if row.origin == "registration" else "document"


async def load(
    session: AsyncSession, tenant: str, publisher: Publisher, now: Callable[[], datetime]
) -> Changes:
    """Return a tenant's definitions in a unit of work."""
    rows: dict[Key, Stored] = {}
    drafts: list[Document] = []
    in_force: list[Document] = []
    for row, version in await store.all_definitions(session, tenant):
        rows[(DocumentKind(row.kind), row.name)] = (row, version)
        drafts += _read(row, row.document)
        if version is not None:
            in_force += _read(row, version.document)
    return Changes(session, tenant, rows, Catalog.of(drafts), Catalog.of(in_force), publisher, now)


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


def _same(one: JsonValue, other: JsonValue) -> bool:
    """Compare documents as they are written: the order of keys counts, it is in the plan."""
    return json.dumps(one) == json.dumps(other)


def _result(row: DefinitionRow, version: VersionRow | None, change: Change) -> AppliedDefinition:
    return AppliedDefinition(
        kind=DocumentKind(row.kind),
        name=row.name,
        version=version.version if version is not None else None,
        plan_digest=version.digest if version is not None else None,
        change=change,
    )
