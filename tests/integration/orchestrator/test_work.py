"""A tenant with costly expressions stops neither the other tenants nor its own cancels."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from penstock.contracts import subjects
from penstock.contracts.facts import DefinitionKind, RunInvoked, RunStatus, fact_bytes
from penstock.contracts.ids import shard_of
from penstock.contracts.plan import Block, MapNode, Plan, TransformNode
from penstock.runs.state import Entry
from penstock_gateway.runs.start import new_run_id
from tests.integration.orchestrator.conftest import CreateWorld, World, chain
from tests.support.waiting import eventually

COSTLY = "lists.range(100).map(a, lists.range(100).map(b, a * b).size()).size()"
"""About 40,000 units, 15 ms."""
ITEMS = 1000
OTHER = "globex"


def heavy() -> Plan:
    item = TransformNode(id="t", input="{{ " + COSTLY + " }}")
    node = MapNode(id="m", over=f"lists.range({ITEMS})", body=Block(name="body", nodes=(item,)))
    return Plan(name="heavy", kind=DefinitionKind.WORKFLOW, nodes=(node,))


async def invoke_other(world: World, plan: Plan) -> str:
    """Start a run of the other tenant; return the stem of its subjects."""
    await world.put_plan(plan)
    run_id = new_run_id()
    prefix = subjects.run_prefix(OTHER, shard_of(run_id, world.settings.shards), run_id)
    fact = RunInvoked(
        occurred_at=datetime.now(UTC),
        name=plan.name,
        kind=plan.kind,
        version=1,
        plan_digest=plan.digest(),
    )
    await world.writer.append(subjects.invoke(prefix), fact_bytes(fact))
    return prefix


async def facts_of_other(world: World, prefix: str) -> list[Entry]:
    _, tenant, shard, run_id = prefix.split(".")
    return await world.reader.read_run(tenant, int(shard), run_id)


async def test_runs_that_compute_much_leave_the_engine_to_others_and_can_be_cancelled(
    world: World,
) -> None:
    plan = heavy()
    heavy_runs = [await world.invoke(plan) for _ in range(4)]
    for run_id in heavy_runs:
        await world.until(run_id, lambda state: len(state.node_records) > 0)

    light = TransformNode(id="t", input="{{ 1 + 1 }}")
    small = Plan(name="small", kind=DefinitionKind.WORKFLOW, nodes=(light,))
    for _ in range(3):
        prefix = await invoke_other(world, small)
        async with asyncio.timeout(30):
            while (await facts_of_other(world, prefix))[-1].subject.event != "end":  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    open_states = [await world.state(run_id) for run_id in heavy_runs]
    assert all(state.ended is None for state in open_states), "they had enough to compute"
    assert all(state.work > 0 for state in open_states[:1])

    for run_id in heavy_runs:
        await world.cancel(run_id)
    for run_id in heavy_runs:
        assert (await world.ended(run_id)).status is RunStatus.CANCELLED
        assert len((await world.state(run_id)).node_records) < ITEMS

    after = await world.invoke(chain("a"))
    await world.scheduled(after, "a")


async def test_inputs_of_a_tenant_that_computes_much_do_not_fill_the_consumer(
    create_world: CreateWorld,
) -> None:
    """More runs than the engine handles inputs at a time; another tenant's run is behind them."""
    world = await create_world()
    world.settings = world.settings.model_copy(update={"engine_concurrency": 4})
    plan = heavy()
    run_ids = [await world.invoke(plan) for _ in range(40)]
    prefix = await invoke_other(world, chain("a"))

    engine = (await world.start_engine()).engine
    async with asyncio.timeout(60):
        while len(await facts_of_other(world, prefix)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    assert all([(await world.state(run_id)).ended is None for run_id in run_ids])
    await asyncio.gather(*(world.cancel(run_id) for run_id in run_ids))
    for run_id in run_ids:
        assert (await world.ended(run_id)).status is RunStatus.CANCELLED
    await eventually(lambda: len(engine.runs) == 1, within=60)
