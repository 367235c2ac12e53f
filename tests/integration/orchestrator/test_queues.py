"""Who goes first at a runner pool, and how many runs with a key: by a whole engine."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import pairwise

from penstock.bus.claims import Claims
from penstock.bus.connection import connect
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.facts import (
    DefinitionKind,
    RunInvoked,
    RunStatus,
    SignalReceived,
    fact_bytes,
)
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.plan import (
    ConcurrencySpec,
    Plan,
    ToolNode,
)
from penstock_gateway.runs.start import new_run_id
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.runs import Plans, Slot
from penstock_orchestrator.engine.windows import Windows
from penstock_orchestrator.main import EngineProcess
from tests.integration.orchestrator.conftest import NOOP, CreateWorld, World, engine_process, fan
from tests.support.waiting import eventually


def keyed(spec: ConcurrencySpec) -> Plan:
    return Plan(
        name="keyed",
        kind=DefinitionKind.WORKFLOW,
        nodes=(ToolNode(id="a", ref="noop", input={}),),
        tools={"noop": NOOP},
        timeout_seconds=120.0,
        concurrency=spec,
    )


async def start_narrow_engine(world: World, size: int) -> Windows[Slot]:
    """Start an engine whose windows are as small as the test needs them."""
    settings = world.settings.model_copy(update={"instance_id": "narrow"})
    bus = await connect(settings, name="narrow")
    claims = Claims(bus, settings.claim_threshold_bytes)
    writer = await LogWriter(bus, settings, claims).start()
    process = EngineProcess(settings, bus, writer)
    reader = LogReader(bus, claims)
    windows: Windows[Slot] = Windows(least=size, factor=1.5)
    engine = Engine(bus, writer, reader, Plans(bus), shards=settings.shards, windows=windows)
    process.engine = process._reconciler._engine = engine
    await process.start()
    world.engines.append(process)
    world.buses.append(bus)
    return windows


async def invoke(world: World, plan: Plan, tenant: str, priority: int = 0) -> str:
    run_id = new_run_id()
    fact = RunInvoked(
        occurred_at=datetime.now(UTC),
        name=plan.name,
        kind=plan.kind,
        version=1,
        plan_digest=plan.digest(),
        input={"customer": "c1"},
        priority=priority,
    )
    shard = subjects.parse_fact(subjects.invoke(world.prefix(run_id))).shard
    prefix = subjects.run_prefix(tenant, shard, run_id)
    await world.writer.append(subjects.invoke(prefix), fact_bytes(fact))
    return run_id


async def test_runs_of_one_key_are_led_one_after_the_other_while_engines_are_killed(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    plan = keyed(ConcurrencySpec(key="input.city"))
    await world.put_plan(plan)
    runs = [await world.invoke(plan, store_plan=False) for _ in range(50)]
    left = set(runs)

    async def at_work() -> str:
        for run_id in sorted(left):
            state = await world.state(run_id)
            if "a" in state.steps:
                return run_id
        return ""

    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(engine_process(world, name)) for name in ("one", "two")
        ]
        while left:
            run_id = await eventually(at_work, within=30)
            if len(left) % 10 == 0:
                # Dead between any two effects: its leases run out, its work is delivered again.
                engines.pop(0).kill()
                name = f"engine-{len(left)}"
                engines.append(await stack.enter_async_context(engine_process(world, name)))
            await world.report(run_id, "a")
            left.discard(run_id)
        for run_id in runs:
            assert (await world.ended(run_id, within=30)).status is RunStatus.DONE

    spans = []
    for run_id in runs:
        seqs = {entry.subject.event: entry.seq for entry in await world.log(run_id)}
        spans.append((seqs["signal"], seqs["step"], seqs["end"]))
        state = await world.state(run_id)
        assert set(state.signals) == {answer_signal_id("admitted", run_id)}
    spans.sort()
    for (_, _, ended_at), (_, begun_at, _) in pairwise(spans):
        assert ended_at < begun_at, "two were under way"


async def test_small_tenant_is_served_before_the_rest_of_a_large_one(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    await start_narrow_engine(world, 4)
    plan = fan(40)
    await world.put_plan(plan)
    await world.put_plan(fan(1))
    large = await invoke(world, plan, "acme")
    await world.until(large, lambda state: state.open_steps >= 4)
    await invoke(world, fan(1), "small")
    done: list[str] = []

    async def steps() -> list[str]:
        found = [
            message.subject
            async for page in world.reader.pages(subjects.RUNS, "run.*.*.*.out.*.step.>")
            for message in page
        ]
        return [one for one in found if one not in done]

    for _ in range(8):
        (subject, *_) = await eventually(steps)
        fact = subjects.parse_fact(subject)
        done.append(subject)
        if fact.tenant == "small":
            break
        await world.report(fact.run_id, fact.step_id, fact.attempt)
    assert subjects.parse_fact(done[-1]).tenant == "small", "it came within a window or two"


async def test_paused_run_keeps_no_places_from_others(create_world: CreateWorld) -> None:
    world = await create_world()
    windows = await start_narrow_engine(world, 1)
    await world.put_plan(fan(1))
    await world.put_plan(fan(2))
    first = await invoke(world, fan(1), "acme")
    await world.scheduled(first, "n0")
    paused = await invoke(world, fan(2), "acme")
    await world.until(paused, lambda state: state.invoked is not None)
    fact = SignalReceived(occurred_at=datetime.now(UTC), name="pause", kind="pause")
    await world.writer.append(subjects.signal(world.prefix(paused), "p1"), fact_bytes(fact))
    await world.until(paused, lambda state: state.paused)
    third = await invoke(world, fan(1), "acme")
    await eventually(lambda: windows.waiting("tool.q") >= 2)

    await world.report(first, "n0")

    await world.scheduled(third, "n0")
    assert (await world.state(paused)).open_steps == 0
