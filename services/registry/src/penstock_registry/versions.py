"""Versions: what a definition's versions and aliases are to those who start runs."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from penstock.contracts.facts import DefinitionKind
from penstock.contracts.json import JsonObject
from penstock.contracts.plan import CanaryVersion, PublishedVersion
from penstock_registry import store
from penstock_registry.tables import AliasRow, DefinitionRow, VersionRow


def published_version(version: VersionRow, name: str) -> PublishedVersion:
    """Return a version as the bus knows it."""
    return PublishedVersion(
        name=name,
        kind=DefinitionKind(version.kind),
        version=version.version,
        plan_digest=version.digest,
        input_schema=_input_schema(version),
    )


def _input_schema(version: VersionRow) -> JsonObject | None:
    spec = version.document.get("spec")
    schema = spec.get("input") if isinstance(spec, dict) else None
    return schema if isinstance(schema, dict) else None


def aliased(alias: AliasRow, versions: Mapping[int, PublishedVersion]) -> PublishedVersion | None:
    """Return what an alias stands for; ``None`` if there is no such version."""
    version = versions.get(alias.version)
    if version is None:
        return None
    other = versions.get(alias.canary_version) if alias.canary_version is not None else None
    if other is None or alias.canary_weight is None:
        return version
    canary = CanaryVersion(
        version=other.version,
        plan_digest=other.plan_digest,
        weight=alias.canary_weight,
        input_schema=other.input_schema,
    )
    return version.model_copy(update={"canary": canary})


async def select_version(
    session: AsyncSession, row: DefinitionRow, selector: int | str
) -> VersionRow | None:
    """Return the version of a definition that a number or an alias stands for."""
    number = selector
    if isinstance(selector, str):
        alias = await store.find_alias(session, row, selector)
        if alias is None or alias.deleted_at is not None:
            return None
        number = alias.version
    version = await store.find_version(session, row, int(number))
    return version if version is not None and version.kind == row.kind else None
