"""What decisions do outside their run's log, on a real server: children, messages, timers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.facts import (
    DefinitionKind,
    RunStatus,
    SignalKind,
    SignalReceived,
    fact_bytes,
)
from penstock.contracts.ids import answer_signal_id, child_run_id, shard_of
from penstock.contracts.pending import PendingRecord, correlation_hash
from penstock.contracts.plan import (
    Block,
    ChildSpec,
    CompiledTool,
    MapNode,
    Node,
    Plan,
    SendNode,
    ToolNode,
    WaitNode,
    WorkflowNode,
)
from tests.integration.orchestrator.conftest import NOOP, TENANT, CreateWorld, World, chain
from tests.support.waiting import eventually


def plan_of(*nodes: Node, **changes: Any) -> Plan:
    fields = {"name": "p", "kind": DefinitionKind.WORKFLOW, "tools": {"noop": NOOP}}
    return Plan(**{**fields, "nodes": nodes, "timeout_seconds": 60.0, **changes})


def calling(child: Plan, **changes: Any) -> Node:
    spec = ChildSpec(name=child.name, kind=child.kind, version=1, plan_digest=child.digest())
    return WorkflowNode(id="c", child=spec, input={"from": "{{ run.id }}"}, **changes)


async def send(
    world: World, run_id: str, signal_id: str, name: str, kind: SignalKind, **said: Any
) -> None:
    fact = SignalReceived(occurred_at=datetime.now(UTC), name=name, kind=kind, **said)
    subject = subjects.signal(world.prefix(run_id), signal_id)
    await world.writer.append(subject, fact_bytes(fact))


async def pending(world: World) -> list[str]:
    return await Bucket(world.bus, subjects.PENDING).keys()


async def test_child_run_answers_its_parent(create_world: CreateWorld) -> None:
    world = await create_world()
    await world.start_engine()
    child = chain("a", "b")
    await world.put_plan(child)

    parent_id = await world.invoke(plan_of(calling(child)))
    run_id = child_run_id(TENANT, parent_id, "c", 1)
    state = await world.scheduled(run_id, "a")
    parent = state.request.parent
    assert parent is not None
    assert (parent.run_id, parent.root_run_id, parent.depth) == (parent_id, parent_id, 1)
    assert state.request.input == {"from": parent_id}
    await world.report(run_id, "a")
    await world.scheduled(run_id, "b")
    await world.report(run_id, "b", output={"n": 7})

    ended = await world.ended(parent_id)
    assert ended.status is RunStatus.DONE
    assert ended.output == {"n": 7}
    assert ended.usage.steps == 3


async def test_child_is_cancelled_with_its_parent(create_world: CreateWorld) -> None:
    world = await create_world()
    await world.start_engine()
    child = chain("a")
    await world.put_plan(child)
    parent_id = await world.invoke(plan_of(calling(child)))
    run_id = child_run_id(TENANT, parent_id, "c", 1)
    await world.scheduled(run_id, "a")

    await world.cancel(parent_id)

    assert (await world.ended(parent_id)).status is RunStatus.CANCELLED
    assert (await world.ended(run_id)).status is RunStatus.CANCELLED


async def test_child_is_started_by_the_next_engine_where_the_first_died(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    child = chain("a")
    await world.put_plan(child)
    parent_id = await world.invoke(plan_of(calling(child)))
    engine = await world.start_engine()
    run_id = child_run_id(TENANT, parent_id, "c", 1)
    await world.scheduled(run_id, "a")
    await engine.stop()

    # What an engine leaves that dies between its decision and the child's start.
    subject = subjects.invoke(world.prefix(run_id))
    seq = (await world.log(run_id))[0].seq
    await world.bus.api(f"STREAM.MSG.DELETE.{subjects.RUNS}", {"seq": seq, "no_erase": True})
    assert subject not in {str(entry.subject) for entry in await world.log(run_id)}
    await world.start_engine("engine-2")

    state = await world.until(run_id, lambda s: s.invoked is not None)
    assert state.request.parent is not None


async def test_message_reaches_the_run_that_waits_for_its_key(create_world: CreateWorld) -> None:
    world = await create_world()
    await world.start_engine()
    wait = WaitNode(id="w", signal="paid", correlation="order-{{ 7 }}")
    waiting_id = await world.invoke(plan_of(wait))
    await world.until(waiting_id, lambda s: s.status is RunStatus.WAITING)
    key = subjects.correlation_key(TENANT, correlation_hash("order-7"), waiting_id)
    await eventually(lambda: _contains(world, key))

    message = SendNode(id="s", name="paid", correlation="order-7", payload={"eur": 5})
    sender_id = await world.invoke(plan_of(message))

    assert (await world.ended(sender_id)).output == {"run_ids": [waiting_id]}
    ended = await world.ended(waiting_id)
    assert ended.output == {"name": "paid", "payload": {"eur": 5}}
    await eventually(lambda: _empty(world))


@pytest.mark.parametrize("wake", ["signal", "time"])
async def test_evicted_run_continues(create_world: CreateWorld, wake: str) -> None:
    world = await create_world()
    engine = await world.start_engine()
    spec = {"signal": "paid"} if wake == "signal" else {"seconds": 2}
    run_id = await world.invoke(plan_of(WaitNode(id="w", **spec)))
    await world.until(run_id, lambda s: s.status is RunStatus.WAITING)
    runs = engine.engine.runs
    slot = runs.slot(TENANT, shard_of(run_id, world.settings.shards), run_id)

    def evicted() -> bool:
        runs.evict_idle(time.time() + 1)
        return slot.state is None

    await eventually(evicted)
    assert runs.known(run_id)
    if wake == "signal":
        await send(world, run_id, "s1", "paid", "event", payload=1)

    assert (await world.ended(run_id)).status is RunStatus.DONE


async def _contains(world: World, key: str) -> bool:
    return key in await pending(world)


async def _empty(world: World) -> bool:
    return not await pending(world)


async def test_message_to_nobody_fails_its_step(create_world: CreateWorld) -> None:
    world = await create_world()
    await world.start_engine()
    message = SendNode(id="s", name="paid", correlation="order-8")

    sender_id = await world.invoke(plan_of(message))

    ended = await world.ended(sender_id)
    assert ended.error is not None
    assert ended.error.code == "no_recipient"


async def test_approval_is_listed_until_it_is_answered(create_world: CreateWorld) -> None:
    world = await create_world()
    await world.start_engine()
    tool = CompiledTool(name="noop", queue="q", policy="require_approval")
    node = ToolNode(id="pay", ref="noop", input={"eur": 5})
    run_id = await world.invoke(plan_of(node, tools={"noop": tool}))
    await world.until(run_id, lambda s: s.status is RunStatus.WAITING)
    key = subjects.pending_key(TENANT, run_id, "pay-a")
    await eventually(lambda: _contains(world, key))
    entry = await Bucket(world.bus, subjects.PENDING).get(key)
    assert entry is not None
    node_record = PendingRecord.model_validate_json(entry.value).node_record
    assert node_record.request is not None

    signal_id = answer_signal_id("approval", "pay-a", node_record.request.digest)
    payload = {"decision": "approve"}
    await send(world, run_id, signal_id, "approval", "approval", target="pay-a", payload=payload)

    await world.scheduled(run_id, "pay")
    await eventually(lambda: _empty(world))


async def test_many_waits_of_a_map_come_due_together(create_world: CreateWorld) -> None:
    world = await create_world()
    await world.start_engine()
    wait = WaitNode(id="w", seconds=2)
    body = Block(name="body", nodes=(wait,))
    items = "[" + ",".join(map(str, range(400))) + "]"
    run_id = await world.invoke(plan_of(MapNode(id="m", over=items, body=body)))

    ended = await world.ended(run_id)

    assert ended.output == [None] * 400
    state = await world.state(run_id)
    late = [
        known.at - known.node_record.due_at
        for known in state.node_records.values()
        if known.node_record.due_at
    ]
    assert len(late) == 400
    assert max(each.total_seconds() for each in late) < 5


async def test_wait_survives_the_engine(create_world: CreateWorld) -> None:
    world = await create_world()
    engine = await world.start_engine()
    run_id = await world.invoke(plan_of(WaitNode(id="w", seconds=2)))
    await world.until(run_id, lambda s: s.status is RunStatus.WAITING)
    await engine.stop()
    await asyncio.sleep(0)
    await world.start_engine("engine-2")

    assert (await world.ended(run_id)).status is RunStatus.DONE
