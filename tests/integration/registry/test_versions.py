"""Versions, aliases, archived definitions, and what workflows run as children."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from penstock import db
from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError
from penstock.contracts.ids import content_digest
from penstock.contracts.plan import PLAN, CompiledTool, PublishedVersion, WorkflowNode
from penstock.contracts.rpc import (
    Alias,
    Aliases,
    Applied,
    AppliedDefinition,
    ApplyDocuments,
    ArchiveDefinition,
    Canary,
    Definition,
    DeleteAlias,
    Deleted,
    DocumentKind,
    GetDefinition,
    ListAliases,
    PublishDefinition,
    SetAlias,
)
from penstock_registry.store import find_named, find_version
from penstock_registry.tables import VersionRow
from tests.integration.registry.conftest import Ask, Start
from tests.integration.registry.documents import agent, document, tool, workflow

KIND = DocumentKind.WORKFLOW


def flow(name: str, value: Any, **spec: Any) -> dict[str, Any]:
    return document("Workflow", name, {"steps": [{"id": "one", "transform": value}], **spec})


def parent(name: str, child: str, **more: Any) -> dict[str, Any]:
    steps = [{"id": "run", "workflow": {"name": child, **more}}]
    return document("Workflow", name, {"steps": steps})


async def apply(ask: Ask, tenant: str, *documents: Any) -> list[tuple[str, int | None, str]]:
    request = ApplyDocuments(tenant=tenant, documents=documents)
    applied: Applied = await ask("apply", request, Applied)
    return [(one.name, one.version, one.change) for one in applied.results]


async def published(bus: Bus, tenant: str, name: str) -> PublishedVersion | None:
    name, _, selector = name.partition("@")
    key = subjects.published_key(tenant, name)
    if selector:
        key = subjects.published_version_key(tenant, name, selector)
    entry = await Bucket(bus, subjects.PUBLISHED).get(key)
    return PublishedVersion.model_validate_json(entry.value) if entry is not None else None


async def pinned(bus: Bus, tenant: str, name: str) -> int:
    version = await published(bus, tenant, name)
    assert version is not None
    entry = await Bucket(bus, subjects.PLANS).get(version.plan_digest)
    assert entry is not None
    node = PLAN.validate_json(entry.value).nodes[0]
    assert isinstance(node, WorkflowNode)
    child = node.child
    pin = await published(bus, tenant, f"{child.name}@{child.version}")
    assert pin is not None
    assert pin.plan_digest == child.plan_digest
    return child.version


@pytest.mark.usefixtures("registry")
async def test_every_version_can_be_started_by_its_number(bus: Bus, ask: Ask, tenant: str) -> None:
    schema = {"type": "object"}
    await apply(ask, tenant, flow("f", 1, input=schema))
    await apply(ask, tenant, flow("f", 2))

    first = await published(bus, tenant, "f@1")
    second = await published(bus, tenant, "f@2")

    assert first is not None
    assert second is not None
    assert (first.version, first.input_schema) == (1, schema)
    assert (second.version, second.input_schema) == (2, None)
    assert await published(bus, tenant, "f") == second


@pytest.mark.usefixtures("registry")
async def test_alias_stands_for_a_version_and_a_canary(bus: Bus, ask: Ask, tenant: str) -> None:
    for value in (1, 2):
        await apply(ask, tenant, flow("f", value))
    request = SetAlias(
        tenant=tenant, kind=KIND, name="f", alias="stable", version=1,
        canary=Canary(version=2, weight=10),
    )  # fmt: skip

    made: Alias = await ask("set_alias", request, Alias)
    again: Alias = await ask("set_alias", request, Alias)

    assert made == again
    version = await published(bus, tenant, "f@stable")
    assert version is not None
    assert version.version == 1
    assert version.canary is not None
    assert (version.canary.version, version.canary.weight) == (2, 10)
    listed: Aliases = await ask(
        "list_aliases", ListAliases(tenant=tenant, kind=KIND, name="f"), Aliases
    )
    assert listed.items == (made,)

    await ask("set_alias", request.model_copy(update={"version": 2, "canary": None}), Alias)
    moved = await published(bus, tenant, "f@stable")
    assert moved is not None
    assert (moved.version, moved.canary) == (2, None)

    deletion = DeleteAlias(tenant=tenant, kind=KIND, name="f", alias="stable")
    await ask("delete_alias", deletion, Deleted)
    assert await published(bus, tenant, "f@stable") is None
    with pytest.raises(RejectedError) as caught:
        await ask("delete_alias", deletion, Deleted)
    assert caught.value.code == "unknown_version"


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        ({"version": 9}, "unknown_version", "version"),
        ({"canary": Canary(version=9, weight=1)}, "unknown_version", "canary.version"),
        ({"alias": "7"}, "invalid_alias", "alias"),
        ({"name": "nobody"}, "unknown_definition", None),
        ({"kind": DocumentKind.TOOL, "name": "add"}, "invalid_alias", "kind"),
    ],
)
async def test_wrong_alias_is_refused(
    ask: Ask, tenant: str, change: dict[str, Any], code: str, path: str | None
) -> None:
    await apply(ask, tenant, flow("f", 1), tool())
    request = SetAlias(tenant=tenant, kind=KIND, name="f", alias="stable", version=1)

    with pytest.raises(RejectedError) as caught:
        await ask("set_alias", request.model_copy(update=change), Alias)

    assert caught.value.code == code
    assert [detail.path for detail in caught.value.details] == ([path] if path else [])


@pytest.mark.usefixtures("registry")
async def test_archived_definition_is_out_of_force_until_it_is_published(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, flow("f", 1))
    await ask(
        "set_alias", SetAlias(tenant=tenant, kind=KIND, name="f", alias="s", version=1), Alias
    )
    archive = ArchiveDefinition(tenant=tenant, kind=KIND, name="f")

    archived: Definition = await ask("archive_definition", archive, Definition)

    assert (archived.status, archived.published_version) == ("archived", None)
    for name in ("f", "f@1", "f@s"):
        assert await published(bus, tenant, name) is None
    request = PublishDefinition(tenant=tenant, kind=KIND, name="f")
    back: AppliedDefinition = await ask("publish_definition", request, AppliedDefinition)
    assert (back.version, back.change) == (1, "updated")
    for name in ("f", "f@1", "f@s"):
        version = await published(bus, tenant, name)
        assert version is not None
        assert version.version == 1
    shown: Definition = await ask(
        "get_definition", GetDefinition(tenant=tenant, kind=KIND, name="f"), Definition
    )
    assert shown.status == "published"


@pytest.mark.usefixtures("registry")
async def test_definition_that_others_run_is_not_archived(ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, flow("f", 1), parent("p", "f"))

    with pytest.raises(ConflictError) as caught:
        await ask(
            "archive_definition", ArchiveDefinition(tenant=tenant, kind=KIND, name="f"), Definition
        )

    assert caught.value.code == "in_use"
    assert [detail.path for detail in caught.value.details] == ["workflow/p"]


@pytest.mark.usefixtures("registry")
async def test_child_that_changes_publishes_its_parents_up_to_the_last(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, parent("z", "p"), parent("p", "f"), flow("f", 1), tool(), agent())
    await apply(ask, tenant, parent("fixed", "f", version=1))

    changed = await apply(ask, tenant, flow("f", 2))

    assert changed == [("f", 2, "updated"), ("p", 2, "updated"), ("z", 2, "updated")]
    assert await pinned(bus, tenant, "p") == 2
    assert await pinned(bus, tenant, "z") == 2
    assert await pinned(bus, tenant, "fixed") == 1
    assert await apply(ask, tenant, flow("f", 2)) == [("f", 2, "unchanged")]
    returned = PublishDefinition(tenant=tenant, kind=KIND, name="f", version=1)
    await ask("publish_definition", returned, AppliedDefinition)
    assert await pinned(bus, tenant, "p") == 1


@pytest.mark.usefixtures("registry")
async def test_parent_and_grandchild_that_change_together_are_pinned_to_what_is_new(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    steps = [{"id": "say", "agent": "helper"}]
    await apply(
        ask, tenant, tool(), agent(), document("Workflow", "c", {"steps": steps}), parent("p", "c")
    )

    again = parent("p", "c")
    again["spec"]["timeout_seconds"] = 77
    changed = await apply(ask, tenant, tool(timeout_seconds=9), again)

    assert {name: version for name, version, _ in changed} == {
        "add": 2, "helper": 2, "c": 2, "p": 2,
    }  # fmt: skip
    assert await pinned(bus, tenant, "p") == 2


@pytest.mark.usefixtures("registry")
async def test_child_that_is_not_published_is_refused_with_its_place(ask: Ask, tenant: str) -> None:
    await ask("apply", ApplyDocuments(tenant=tenant, documents=(flow("f", 1),), publish=False),
              Applied)  # fmt: skip
    await apply(ask, tenant, flow("g", 1))

    with pytest.raises(RejectedError) as caught:
        await apply(ask, tenant, parent("p", "f"), parent("q", "g", version=4),
                    parent("r", "g", version="stable"))  # fmt: skip

    assert [detail.path for detail in caught.value.details] == [
        "documents[0].spec.steps[0].workflow.name",
        "documents[1].spec.steps[0].workflow.version",
        "documents[2].spec.steps[0].workflow.version",
    ]


@pytest.mark.usefixtures("registry")
async def test_network_is_published_with_its_agents_and_follows_them(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    net = document(
        "Network",
        "net",
        {"entry": "lead", "agents": [{"name": "lead", "agent": "helper"}]},
    )

    assert await apply(ask, tenant, net, agent(), tool()) == [
        ("add", 1, "created"), ("helper", 1, "created"), ("net", 1, "created"),
    ]  # fmt: skip
    changed = await apply(ask, tenant, tool(timeout_seconds=3))
    assert changed == [("add", 2, "updated"), ("helper", 2, "updated"), ("net", 2, "updated")]
    with pytest.raises(RejectedError) as caught:
        await apply(ask, tenant, flow("net", 1))
    assert caught.value.details[0].path == "documents[0].metadata.name"


async def test_documents_of_an_older_release_stay_unchanged(
    bus: Bus, ask: Ask, tenant: str, start_registry: Start, database_url: str
) -> None:
    stop = await start_registry(database_url)
    documents = (workflow(), agent(), tool())
    before = await apply(ask, tenant, *documents)
    await stop()
    await _write_as_before(database_url, tenant)

    await start_registry(database_url)

    after = await apply(ask, tenant, *documents)
    assert after == [(name, version, "unchanged") for name, version, _ in before]
    version = await published(bus, tenant, "flow")
    assert version is not None
    assert await Bucket(bus, subjects.PLANS).get(version.plan_digest) is not None


async def _write_as_before(url: str, tenant: str) -> None:
    """Give the versions the bytes that the release before this one would have written."""
    engine = db.create_engine(url)

    async def rewrite(session: AsyncSession, kind: DocumentKind, name: str) -> None:
        found = await find_named(session, tenant, kind, name)
        assert found is not None
        version = await find_version(session, found[0], 1)
        assert version is not None
        compiled = version.compiled
        if kind is DocumentKind.TOOL:
            made = CompiledTool.model_validate_json(compiled)
            old = made.model_dump(mode="json", include=OLD_TOOL)
        else:
            plan = PLAN.validate_json(compiled)
            old = plan.model_dump(mode="json", include=OLD_PLAN)
        body = json.dumps(old).encode()
        await session.execute(
            update(VersionRow)
            .where(VersionRow.id == version.id)
            .values(compiled=body, digest=content_digest(body))
        )

    async with db.session_scope(db.session_factory(engine)) as session:
        for kind, name in (
            (DocumentKind.TOOL, "add"),
            (DocumentKind.AGENT, "helper"),
            (DocumentKind.WORKFLOW, "flow"),
        ):
            await rewrite(session, kind, name)
    await engine.dispose()


OLD_PLAN = {"format", "name", "kind", "nodes", "agents", "tools", "output", "timeout_seconds"}
OLD_TOOL = {"name", "description", "queue", "parameters", "sources", "config", "retry",
            "timeout_seconds"}  # fmt: skip
