import asyncio
from typing import Any

import pytest

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError
from penstock.contracts.plan import PLAN, Plan, PublishedVersion
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
    VersionPage,
)
from penstock.contracts.runners import WebhookRecord
from tests.integration.registry.conftest import Ask, Start
from tests.integration.registry.documents import agent, document, tool, webhook, workflow

ALL = (webhook(), workflow(), agent(), tool())

pytestmark = pytest.mark.usefixtures("registry")


async def apply(ask: Ask, tenant: str, *documents: Any, publish: bool = True) -> Applied:
    request = ApplyDocuments(tenant=tenant, documents=documents, publish=publish)
    applied: Applied = await ask("apply", request, Applied)
    return applied


def shown(applied: Applied) -> list[tuple[str, str, int | None, str]]:
    return [
        (result.kind.value, result.name, result.version, result.change)
        for result in applied.results
    ]


async def alias(bus: Bus, tenant: str, name: str) -> PublishedVersion | None:
    entry = await Bucket(bus, subjects.PUBLISHED).get(subjects.published_key(tenant, name))
    return PublishedVersion.model_validate_json(entry.value) if entry is not None else None


async def plan_in_force(bus: Bus, tenant: str, name: str) -> Plan:
    version = await alias(bus, tenant, name)
    assert version is not None
    entry = await Bucket(bus, subjects.PLANS).get(version.plan_digest)
    assert entry is not None
    plan = PLAN.validate_json(entry.value)
    assert plan.digest() == version.plan_digest
    return plan


async def test_apply_publishes_everything_in_order(bus: Bus, ask: Ask, tenant: str) -> None:
    applied = await apply(ask, tenant, *ALL)

    assert shown(applied) == [
        ("tool", "add", 1, "created"),
        ("agent", "helper", 1, "created"),
        ("workflow", "flow", 1, "created"),
        ("webhook", "push", 1, "created"),
    ]
    plan = await plan_in_force(bus, tenant, "flow")
    assert [getattr(node, "ref", None) for node in plan.nodes] == ["add", "helper"]
    assert (await plan_in_force(bus, tenant, "helper")).agents["helper"].tools == ("add",)
    hook = await Bucket(bus, subjects.WEBHOOKS).get(subjects.webhook_key(tenant, "push"))
    assert hook is not None
    assert WebhookRecord.model_validate_json(hook.value).target == "flow"


async def test_apply_of_the_same_changes_nothing(bus: Bus, ask: Ask, tenant: str) -> None:
    first = await apply(ask, tenant, *ALL)
    entry = await Bucket(bus, subjects.PUBLISHED).get(subjects.published_key(tenant, "flow"))

    again = await apply(ask, tenant, *ALL)

    assert {result.change for result in again.results} == {"unchanged"}
    assert [(result.version, result.plan_digest) for result in again.results] == [
        (result.version, result.plan_digest) for result in first.results
    ]
    assert entry == await Bucket(bus, subjects.PUBLISHED).get(
        subjects.published_key(tenant, "flow")
    )


async def test_apply_of_a_changed_tool_republishes_what_uses_it(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, *ALL, agent("other", tools=[]))

    applied = await apply(ask, tenant, tool(timeout_seconds=5))

    assert shown(applied) == [
        ("tool", "add", 2, "updated"),
        ("agent", "helper", 2, "updated"),
        ("workflow", "flow", 2, "updated"),
    ]
    assert [result.dependant for result in applied.results] == [False, True, True]
    assert (await plan_in_force(bus, tenant, "flow")).tools["add"].timeout_seconds == 5
    other = await alias(bus, tenant, "other")
    assert other is not None
    assert other.version == 1


async def test_apply_with_a_fault_stores_nothing(ask: Ask, tenant: str) -> None:
    with pytest.raises(RejectedError) as caught:
        await apply(ask, tenant, tool(), agent(tools=["add", "nope"]), workflow(output="{{ x }}"))

    assert caught.value.code == "invalid_document"
    assert [(detail.path, detail.allowed) for detail in caught.value.details] == [
        ("documents[1].spec.tools[1]", "add"),
        ("documents[2].spec.output", "input, run, session, steps"),
    ]
    page = await ask(
        "list_definitions", ListDefinitions(tenant=tenant, kind=DocumentKind.TOOL), DefinitionPage
    )
    assert page.items == ()


async def test_apply_finds_faults_beside_a_document_that_cannot_be_read(
    ask: Ask, tenant: str
) -> None:
    broken = tool(timeout="soon")

    with pytest.raises(RejectedError) as caught:
        await apply(ask, tenant, broken, agent(tools=["add", "nope"]))

    assert [detail.path for detail in caught.value.details] == [
        "documents[0].spec.timeout",
        "documents[1].spec.tools[1]",
    ]


async def test_page_ends_before_it_is_too_large_for_a_message(ask: Ask, tenant: str) -> None:
    for number in range(4):
        await apply(ask, tenant, agent(f"a{number}", tools=[], instructions="x" * 300_000))

    names, after = [], None
    for _ in range(4):
        page = await ask(
            "list_definitions",
            ListDefinitions(tenant=tenant, kind=DocumentKind.AGENT, after=after),
            DefinitionPage,
        )
        names.append([item.name for item in page.items])
        after = page.next_after

    assert names == [["a0"], ["a1"], ["a2"], ["a3"]]
    assert after is None


async def test_request_that_is_too_large_for_a_message_is_refused(
    ask: Ask, bus: Bus, tenant: str
) -> None:
    with pytest.raises(RejectedError) as caught:
        await apply(ask, tenant, agent(tools=[], instructions="x" * 1_100_000))

    assert caught.value.code == "request_too_large"
    assert bus.nc.is_connected


async def test_apply_that_breaks_a_dependant_is_refused(bus: Bus, ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, *ALL)
    stricter = {"type": "object", "properties": {"c": {}}, "required": ["c"]}

    with pytest.raises(RejectedError) as caught:
        await apply(ask, tenant, tool(parameters=stricter))

    assert [detail.path for detail in caught.value.details] == [
        "workflow/flow.spec.steps[0].input.c"
    ]
    assert (await plan_in_force(bus, tenant, "flow")).tools["add"].parameters != stricter


async def test_apply_without_publishing_keeps_what_is_in_force(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, tool(), agent(), publish=False)
    assert await alias(bus, tenant, "helper") is None

    await apply(ask, tenant, tool(), agent())
    await apply(ask, tenant, agent(max_turns=2), publish=False)

    assert (await plan_in_force(bus, tenant, "helper")).agents["helper"].max_turns == 10
    published = await ask(
        "publish_definition",
        PublishDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="helper"),
        AppliedDefinition,
    )
    assert published.version == 2
    assert (await plan_in_force(bus, tenant, "helper")).agents["helper"].max_turns == 2


async def test_publishing_an_older_version_brings_it_back(bus: Bus, ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, tool(), agent(max_turns=1))
    await apply(ask, tenant, agent(max_turns=2))

    back = await ask(
        "publish_definition",
        PublishDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="helper", version=1),
        AppliedDefinition,
    )

    assert (back.version, back.change) == (1, "updated")
    assert (await plan_in_force(bus, tenant, "helper")).agents["helper"].max_turns == 1
    page = await ask(
        "list_versions",
        ListVersions(tenant=tenant, kind=DocumentKind.AGENT, name="helper"),
        VersionPage,
    )
    assert [(version.version, version.in_force) for version in page.items] == [
        (2, False),
        (1, True),
    ]
    again = await apply(ask, tenant, agent(max_turns=3))
    assert again.results[0].version == 3


async def test_publishing_an_older_tool_republishes_what_uses_it(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, tool(timeout_seconds=1), agent())
    await apply(ask, tenant, tool(timeout_seconds=2))

    await ask(
        "publish_definition",
        PublishDefinition(tenant=tenant, kind=DocumentKind.TOOL, name="add", version=1),
        AppliedDefinition,
    )

    assert (await plan_in_force(bus, tenant, "helper")).tools["add"].timeout_seconds == 1
    version = await alias(bus, tenant, "helper")
    assert version is not None
    assert version.version == 3


async def test_publishing_what_is_unknown_is_refused(ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, tool(), agent())

    for name, version, code in (
        ("nobody", None, "unknown_definition"),
        ("helper", 7, "unknown_version"),
    ):
        with pytest.raises(RejectedError) as caught:
            await ask(
                "publish_definition",
                PublishDefinition(
                    tenant=tenant, kind=DocumentKind.AGENT, name=name, version=version
                ),
                AppliedDefinition,
            )
        assert caught.value.code == code


async def test_delete_removes_the_alias_and_keeps_the_versions(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, tool(), agent())

    await ask(
        "delete_definition",
        DeleteDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="helper"),
        Deleted,
    )

    assert await alias(bus, tenant, "helper") is None
    with pytest.raises(RejectedError) as caught:
        await ask(
            "get_definition",
            GetDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="helper"),
            Definition,
        )
    assert caught.value.code == "unknown_definition"
    again = await apply(ask, tenant, agent())
    assert shown(again) == [("agent", "helper", 2, "created")]


async def test_delete_of_a_webhook_closes_it(bus: Bus, ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, *ALL)

    await ask(
        "delete_definition",
        DeleteDefinition(tenant=tenant, kind=DocumentKind.WEBHOOK, name="push"),
        Deleted,
    )

    key = subjects.webhook_key(tenant, "push")
    assert await Bucket(bus, subjects.WEBHOOKS).get(key) is None


async def test_delete_of_what_is_used_is_refused(bus: Bus, ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, *ALL)

    with pytest.raises(ConflictError) as caught:
        await ask(
            "delete_definition",
            DeleteDefinition(tenant=tenant, kind=DocumentKind.TOOL, name="add"),
            Deleted,
        )

    assert caught.value.code == "in_use"
    assert [detail.path for detail in caught.value.details] == ["agent/helper", "workflow/flow"]
    assert await alias(bus, tenant, "flow") is not None


async def test_name_of_an_agent_is_refused_to_a_workflow(ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, tool(), agent("same"), publish=False)

    with pytest.raises(RejectedError) as caught:
        await apply(ask, tenant, agent(), workflow("same"))

    assert [detail.path for detail in caught.value.details] == ["documents[1].metadata.name"]


async def test_name_of_a_deleted_agent_is_free_for_a_workflow(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, tool(), agent(), agent("same"))
    await ask(
        "delete_definition",
        DeleteDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="same"),
        Deleted,
    )

    applied = await apply(ask, tenant, workflow("same"))

    assert shown(applied) == [("workflow", "same", 2, "created")]
    version = await alias(bus, tenant, "same")
    assert version is not None
    assert version.kind.value == "workflow"


async def test_tenants_do_not_see_one_another(bus: Bus, ask: Ask, tenant: str) -> None:
    other = f"{tenant}_o"
    await apply(ask, tenant, tool(), agent())

    with pytest.raises(RejectedError) as caught:
        await apply(ask, other, agent())

    assert caught.value.details[0].message == "there is no tool 'add'"
    assert await alias(bus, other, "helper") is None


async def test_put_patch_and_revisions_guard_each_other(ask: Ask, tenant: str) -> None:
    kind = DocumentKind.TOOL
    put = PutDefinition(tenant=tenant, kind=kind, document=tool(), publish=True, mode="create")
    made = await ask("put_definition", put, Definition)
    assert (made.revision, made.published_version) == (1, 1)

    patch = PatchDefinition(
        tenant=tenant,
        kind=kind,
        name="add",
        patch={"spec": {"timeout_seconds": 7, "builtin": None, "runner": {"queue": "mine"}}},
        expected_revision=1,
    )
    patched = await ask("patch_definition", patch, Definition)
    assert patched.revision == 2
    assert patched.published_version == 1
    assert patched.document["spec"]["runner"] == {"queue": "mine"}
    assert "builtin" not in patched.document["spec"]

    with pytest.raises(ConflictError) as caught:
        await ask("patch_definition", patch, Definition)
    assert caught.value.code == "wrong_revision"
    with pytest.raises(ConflictError) as caught:
        await ask("put_definition", put, Definition)
    assert caught.value.code == "name_taken"
    with pytest.raises(RejectedError) as refused:
        await ask(
            "put_definition",
            PutDefinition(tenant=tenant, kind=kind, document=tool("sub"), mode="replace"),
            Definition,
        )
    assert refused.value.code == "unknown_definition"


async def test_put_under_another_name_is_refused(ask: Ask, tenant: str) -> None:
    with pytest.raises(RejectedError) as caught:
        await ask(
            "put_definition",
            PutDefinition(tenant=tenant, kind=DocumentKind.TOOL, name="sub", document=tool()),
            Definition,
        )

    assert [(detail.path, detail.allowed) for detail in caught.value.details] == [
        ("metadata.name", "sub")
    ]


async def test_patch_that_makes_an_invalid_document_is_refused(ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, tool(), agent())

    with pytest.raises(RejectedError) as caught:
        await ask(
            "patch_definition",
            PatchDefinition(
                tenant=tenant,
                kind=DocumentKind.AGENT,
                name="helper",
                patch={"spec": {"max_turns": "many"}},
            ),
            Definition,
        )

    assert [detail.path for detail in caught.value.details] == ["spec.max_turns"]


async def test_pages_follow_one_another(ask: Ask, tenant: str) -> None:
    await apply(ask, tenant, *(tool(f"t{number}") for number in range(5)))

    names, after = [], None
    for _ in range(3):
        page = await ask(
            "list_definitions",
            ListDefinitions(tenant=tenant, kind=DocumentKind.TOOL, limit=2, after=after),
            DefinitionPage,
        )
        names += [item.name for item in page.items]
        after = page.next_after

    assert names == ["t0", "t1", "t2", "t3", "t4"]
    assert after is None


async def test_versions_are_paged_newest_first(ask: Ask, tenant: str) -> None:
    for seconds in (1, 2, 3):
        await apply(ask, tenant, tool(timeout_seconds=seconds))

    request = ListVersions(tenant=tenant, kind=DocumentKind.TOOL, name="add", limit=2)
    first = await ask("list_versions", request, VersionPage)
    second = await ask(
        "list_versions", request.model_copy(update={"before": first.next_before}), VersionPage
    )

    assert [version.version for version in first.items + second.items] == [3, 2, 1]
    assert second.next_before is None
    assert second.items[0].document["spec"]["timeout_seconds"] == 1


async def test_requests_that_are_malformed_are_refused_with_their_places(bus: Bus) -> None:
    reply = await bus.request(subjects.rpc("registry", "get_definition"), b'{"tenant": "a b"}')

    assert b'"invalid_request"' in reply.data
    assert b'"path":"tenant"' in reply.data
    assert b'"path":"kind"' in reply.data


async def test_appliers_at_once_leave_the_alias_at_the_last_version(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await apply(ask, tenant, tool())

    applied = await asyncio.gather(
        *(apply(ask, tenant, agent(max_turns=turns)) for turns in range(1, 13))
    )

    versions = {one.results[0].version for one in applied}
    assert versions == set(range(1, 13))
    page = await ask(
        "list_versions",
        ListVersions(tenant=tenant, kind=DocumentKind.AGENT, name="helper"),
        VersionPage,
    )
    in_force = next(version for version in page.items if version.in_force)
    version = await alias(bus, tenant, "helper")
    assert version is not None
    assert (version.version, version.plan_digest) == (in_force.version, in_force.plan_digest)
    assert in_force.version == 12


async def test_replicas_at_once_leave_the_alias_at_the_last_version(
    bus: Bus, ask: Ask, tenant: str, start_registry: Start, database_url: str
) -> None:
    await start_registry(database_url, instance_id="second")
    await apply(ask, tenant, tool())

    await asyncio.gather(*(apply(ask, tenant, agent(max_turns=turns)) for turns in range(1, 13)))

    found = await ask(
        "get_definition",
        GetDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="helper"),
        Definition,
    )
    version = await alias(bus, tenant, "helper")
    assert version is not None
    assert (version.version, version.plan_digest) == (12, found.plan_digest)


async def test_yaml_texts_are_applied(ask: Ask, tenant: str) -> None:
    text = """
apiVersion: penstock/v1
kind: Agent
metadata: {name: poet, labels: {since: 2026-11-20}}
spec:
  model: scripted/demo
  script: {turns: [{text: hi}]}
---
apiVersion: penstock/v1
kind: Tool
metadata: {name: add}
spec: {builtin: {}}
"""

    applied = await apply(ask, tenant, text, document("Tool", "mine", {"runner": {"queue": "q"}}))

    assert [result.name for result in applied.results] == ["add", "mine", "poet"]
