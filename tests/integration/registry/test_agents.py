import asyncio
from datetime import UTC, datetime

import pytest
from prometheus_client import REGISTRY

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError
from penstock.contracts.plan import PLAN, PublishedVersion
from penstock.contracts.rpc import (
    AgentRegistration,
    Applied,
    ApplyDocuments,
    BeatAgent,
    Definition,
    Deleted,
    DeregisterAgent,
    DocumentKind,
    GetDefinition,
    ListRunners,
    PatchDefinition,
    RegisterAgent,
    Runners,
    RunnerState,
    RunnerView,
)
from penstock.contracts.runners import RunnerRecord
from tests.integration.registry.conftest import Ask, Start
from tests.integration.registry.documents import document
from tests.support.waiting import eventually


async def runners(ask: Ask, tenant: str, *, kind: str | None = None) -> dict[str, RunnerView]:
    found: Runners = await ask("list_runners", ListRunners(tenant=tenant, kind=kind), Runners)
    return {view.runner.runner_id: view for view in found.items}


def register(tenant: str, agent_id: str = "web", **options: object) -> RegisterAgent:
    return RegisterAgent.model_validate(
        {"tenant": tenant, "agent_id": agent_id, "endpoint": "http://127.0.0.1:9000", **options}
    )


@pytest.mark.usefixtures("registry")
async def test_registered_agent_can_be_run_and_is_listed(bus: Bus, ask: Ask, tenant: str) -> None:
    made = await ask("register_agent", register(tenant, name="Web agent"), AgentRegistration)

    assert (made.change, made.ttl_seconds, made.heartbeat_seconds) == ("created", 60, 20)
    entry = await Bucket(bus, subjects.PUBLISHED).get(subjects.published_key(tenant, "web"))
    assert entry is not None
    digest = PublishedVersion.model_validate_json(entry.value).plan_digest
    plan = await Bucket(bus, subjects.PLANS).get(digest)
    assert plan is not None
    assert PLAN.validate_json(plan.value).agents["web"].endpoint == "http://127.0.0.1:9000"
    views = await eventually(lambda: runners(ask, tenant, kind="http-agent"))
    assert views["web"].state is RunnerState.LIVE
    assert views["web"].runner.capabilities[0].description == "Web agent"
    assert "web" not in await runners(ask, f"{tenant}_other")


@pytest.mark.usefixtures("registry")
async def test_registering_again_changes_nothing_or_updates(ask: Ask, tenant: str) -> None:
    await ask("register_agent", register(tenant), AgentRegistration)

    same = await ask("register_agent", register(tenant), AgentRegistration)
    moved = await ask(
        "register_agent", register(tenant, endpoint="http://127.0.0.1:9001/"), AgentRegistration
    )

    assert (same.change, moved.change) == ("unchanged", "updated")
    assert moved.endpoint == "http://127.0.0.1:9001"
    found = await ask(
        "get_definition",
        GetDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="web"),
        Definition,
    )
    assert (found.revision, found.published_version, found.origin) == (2, 2, "registration")


@pytest.mark.usefixtures("registry")
async def test_registering_again_keeps_what_users_changed(ask: Ask, tenant: str) -> None:
    await ask("register_agent", register(tenant), AgentRegistration)
    patch = PatchDefinition(
        tenant=tenant,
        kind=DocumentKind.AGENT,
        name="web",
        patch={"spec": {"timeout_seconds": 7}},
        publish=True,
    )
    await ask("patch_definition", patch, Definition)

    moved = register(tenant, endpoint="http://127.0.0.1:9001")
    await ask("register_agent", moved, AgentRegistration)

    found = await ask(
        "get_definition",
        GetDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="web"),
        Definition,
    )
    assert found.document["spec"] == {"endpoint": "http://127.0.0.1:9001", "timeout_seconds": 7}
    assert (found.origin, found.published_version) == ("registration", 3)


@pytest.mark.usefixtures("registry")
async def test_agent_that_ceases_to_beat_is_lost_and_returns(ask: Ask, tenant: str) -> None:
    await ask("register_agent", register(tenant, ttl_seconds=1), AgentRegistration)

    async def state() -> RunnerState | None:
        view = (await runners(ask, tenant)).get("web")
        return view.state if view is not None else None

    async def is_lost() -> bool:
        return await state() is RunnerState.LOST

    await eventually(is_lost)
    beat = await ask("beat_agent", BeatAgent(tenant=tenant, agent_id="web"), AgentRegistration)

    assert beat.expires_at > datetime.now(UTC)

    async def lives() -> bool:
        return await state() is RunnerState.LIVE

    await eventually(lives)


@pytest.mark.usefixtures("registry")
async def test_beats_keep_an_agent_alive_and_carry_its_load(ask: Ask, tenant: str) -> None:
    await ask("register_agent", register(tenant, ttl_seconds=1), AgentRegistration)
    ends = asyncio.get_running_loop().time() + 2.5
    states: set[RunnerState] = set()

    async def beats_until_the_end() -> bool:
        await ask(
            "beat_agent", BeatAgent(tenant=tenant, agent_id="web", in_flight=3), AgentRegistration
        )
        states.update(view.state for view in (await runners(ask, tenant)).values())
        return asyncio.get_running_loop().time() > ends

    await eventually(beats_until_the_end, every=0.2)

    assert states <= {RunnerState.LIVE, RunnerState.SUSPECT}
    assert (await runners(ask, tenant))["web"].runner.in_flight == 3


@pytest.mark.usefixtures("registry")
async def test_beat_of_an_unknown_agent_tells_it_to_register(ask: Ask, tenant: str) -> None:
    with pytest.raises(RejectedError) as caught:
        await ask("beat_agent", BeatAgent(tenant=tenant, agent_id="web"), AgentRegistration)

    assert caught.value.code == "unknown_agent"


@pytest.mark.usefixtures("registry")
async def test_deregistered_agent_is_gone_and_may_come_back(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await ask("register_agent", register(tenant), AgentRegistration)
    await eventually(lambda: runners(ask, tenant))

    await ask("deregister_agent", DeregisterAgent(tenant=tenant, agent_id="web"), Deleted)

    published = Bucket(bus, subjects.PUBLISHED)
    assert await published.get(subjects.published_key(tenant, "web")) is None

    async def nobody() -> bool:
        return not await runners(ask, tenant)

    await eventually(nobody)
    with pytest.raises(RejectedError):
        await ask("deregister_agent", DeregisterAgent(tenant=tenant, agent_id="web"), Deleted)
    again = await ask("register_agent", register(tenant), AgentRegistration)
    assert again.change == "created"
    assert await published.get(subjects.published_key(tenant, "web")) is not None


@pytest.mark.usefixtures("registry")
async def test_agent_with_a_document_is_not_taken_over(ask: Ask, tenant: str) -> None:
    own = document("Agent", "web", {"model": "openai/gpt-5-mini"})
    await ask("apply", ApplyDocuments(tenant=tenant, documents=(own,)), Applied)

    with pytest.raises(ConflictError) as caught:
        await ask("register_agent", register(tenant), AgentRegistration)

    assert caught.value.code == "name_taken"
    assert await runners(ask, tenant) == {}


@pytest.mark.usefixtures("registry")
async def test_deregistered_agent_that_is_used_keeps_its_definition(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    await ask("register_agent", register(tenant), AgentRegistration)
    flow = document("Workflow", "flow", {"steps": [{"id": "a", "agent": "web"}]})
    await ask("apply", ApplyDocuments(tenant=tenant, documents=(flow,)), Applied)

    await ask("deregister_agent", DeregisterAgent(tenant=tenant, agent_id="web"), Deleted)

    published = Bucket(bus, subjects.PUBLISHED)
    assert await published.get(subjects.published_key(tenant, "web")) is not None


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("endpoint", ["localhost:9000", "file:///etc/passwd", ""])
async def test_endpoint_that_is_no_url_is_refused(ask: Ask, tenant: str, endpoint: str) -> None:
    with pytest.raises(RejectedError) as caught:
        await ask("register_agent", register(tenant, endpoint=endpoint), AgentRegistration)

    assert caught.value.details[0].path == "endpoint"


async def test_agent_lost_while_the_registry_was_away_is_listed_as_lost(
    start_registry: Start, ask: Ask, tenant: str, sqlite_url: str
) -> None:
    stop = await start_registry(sqlite_url)
    await ask("register_agent", register(tenant, ttl_seconds=1), AgentRegistration)
    await stop()

    await start_registry(sqlite_url)

    async def is_lost() -> bool:
        view = (await runners(ask, tenant)).get("web")
        return view is not None and view.state is RunnerState.LOST

    await eventually(is_lost)


# Runners that beat by themselves


def record(runner_id: str, *, ttl_seconds: float) -> RunnerRecord:
    now = datetime.now(UTC)
    return RunnerRecord(
        runner_id=runner_id,
        kind="tool",
        queue="mine",
        started_at=now,
        beat_at=now,
        ttl_seconds=ttl_seconds,
    )


async def beat(bus: Bus, runner: RunnerRecord) -> None:
    key = subjects.runner_key(runner.kind, runner.queue, runner.runner_id)
    await Bucket(bus, subjects.RUNNERS).put(
        key, runner.model_dump_json().encode(), ttl_seconds=runner.ttl_seconds
    )


async def test_runner_is_live_then_suspect_then_lost_then_forgotten(
    start_registry: Start, bus: Bus, ask: Ask, tenant: str, sqlite_url: str
) -> None:
    await start_registry(sqlite_url, registry_lost_kept_seconds=1)
    seen: list[RunnerState] = []

    await beat(bus, record(tenant, ttl_seconds=2))

    async def forgotten() -> bool:
        view = (await runners(ask, tenant, kind="tool")).get(tenant)
        if view is not None and view.state not in seen:
            seen.append(view.state)
        return bool(seen) and view is None

    await eventually(forgotten)
    assert seen == [RunnerState.LIVE, RunnerState.SUSPECT, RunnerState.LOST]


async def test_runner_that_deregisters_is_not_lost(
    start_registry: Start,
    bus: Bus,
    ask: Ask,
    tenant: str,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await start_registry(sqlite_url)
    runner = record(tenant, ttl_seconds=60)
    await beat(bus, runner)
    await eventually(lambda: runners(ask, tenant, kind="tool"))

    key = subjects.runner_key(runner.kind, runner.queue, runner.runner_id)
    await Bucket(bus, subjects.RUNNERS).delete(key)

    async def gone() -> bool:
        return tenant not in await runners(ask, tenant)

    await eventually(gone)
    assert "runner.lost" not in caplog.text


async def test_loss_of_a_runner_is_logged_and_counted(
    start_registry: Start,
    bus: Bus,
    tenant: str,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lost() -> float:
        value = REGISTRY.get_sample_value("penstock_registry_runners_lost_total", {"kind": "tool"})
        return value or 0.0

    await start_registry(sqlite_url)
    before = lost()

    await beat(bus, record(tenant, ttl_seconds=1))

    await eventually(lambda: "runner.lost" in caplog.text)
    assert lost() == before + 1


async def test_runner_that_cannot_be_read_disturbs_nobody(
    start_registry: Start, bus: Bus, ask: Ask, tenant: str, sqlite_url: str
) -> None:
    await start_registry(sqlite_url)

    await Bucket(bus, subjects.RUNNERS).put(f"tool.mine.{tenant}_x", b"{", ttl_seconds=5)
    await beat(bus, record(tenant, ttl_seconds=60))

    await eventually(lambda: runners(ask, tenant, kind="tool"))
    assert f"{tenant}_x" not in await runners(ask, tenant)
