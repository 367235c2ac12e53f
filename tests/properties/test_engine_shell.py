"""The engine's shell on a simulated log: crashes and rivals at every effect.

Here the real `Engine` runs; the log, its reader and its writer are the simulation's. At any
effect the process may die, before it or after it, or another engine may work in between.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.bus.consumer import Delivery
from penstock.bus.reader import decode_entry
from penstock.bus.writer import Record
from penstock.contracts import subjects
from penstock.contracts.facts import CancelRequested, StepKind, StepScheduled
from penstock.contracts.messages import TimerDue
from penstock.contracts.plan import Plan
from penstock.contracts.structs import decode, encode
from penstock.contracts.subjects import FactSubject
from penstock.runs.state import Entry
from penstock_orchestrator.engine import engine as engine_module
from penstock_orchestrator.engine.engine import Engine
from tests.properties.test_run_machine import actions, errors, plans, usages
from tests.support.simulation import (
    PREFIX,
    RUN_ID,
    SHARD,
    START,
    TENANT,
    Log,
    Message,
    make_invoked,
    make_plan,
    make_result,
    responds,
    tool_node,
)

pytestmark = pytest.mark.sources

IDLE_SECONDS = 30.0


class ProcessDiedError(BaseException):
    """Not an `Exception`: nothing may catch it and go on."""


@dataclass
class World:
    """One run's log, and what surrounds it."""

    plan: Plan
    log: Log = field(default_factory=Log)
    now: datetime = START
    engines: list[Engine] = field(default_factory=list)
    timers: dict[str, datetime] = field(default_factory=dict)
    delivered: Counter[int] = field(default_factory=Counter)
    acknowledged: set[int] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)
    """What happens at the next effects, the last one first."""
    at_work: int = 0
    nested: bool = False

    def new_engine(self) -> Engine:
        parts: Any = (Wires(), Writer(self), Reader(self), Plans(self.plan))
        return Engine(*parts)

    async def effect(self, moment: str) -> None:
        trouble = self.troubles.pop() if self.troubles and not self.nested else ""
        if trouble == "rival" and len(self.engines) > 1:
            self.nested = True
            await self.deliver_all((self.at_work + 1) % len(self.engines))
            self.nested = False
        elif trouble == f"dies {moment}":
            raise ProcessDiedError

    @property
    def waiting(self) -> list[Message]:
        return [m for m in self.log.inputs if m.seq not in self.acknowledged]

    async def deliver(self, index: int, message: Message) -> None:
        self.delivered[message.seq] += 1
        try:
            await self.engines[index].on_input(
                delivery(message.subject, message.body, message.seq, self.delivered[message.seq])
            )
        except ProcessDiedError:
            self.engines[index] = self.new_engine()
        else:
            self.acknowledged.add(message.seq)

    async def deliver_all(self, index: int) -> None:
        for message in self.waiting:
            await self.deliver(index, message)

    async def fire(self, index: int, timer_id: str) -> None:
        due_at = self.timers[timer_id]
        body = encode(TimerDue(due_at=due_at))
        subject = subjects.timer_due(TENANT, SHARD, RUN_ID, timer_id)
        try:
            await self.engines[index].on_timer(delivery(subject, body, 1, 1))
        except ProcessDiedError:
            self.engines[index] = self.new_engine()
        else:
            self.timers.pop(timer_id, None)

    async def tick(self, index: int) -> None:
        """Do what the reconciler does every second."""
        engine = self.engines[index]
        try:
            now = self.now.timestamp()
            for slot in engine.runs.due(now):
                await engine.wake(slot, self.now)
            for slot in engine.runs.idle(now - IDLE_SECONDS, 10):
                await engine.wake(slot, self.now, reload=True)
            engine.runs.evict_idle(now - IDLE_SECONDS / 6)
        except ProcessDiedError:
            self.engines[index] = self.new_engine()

    @property
    def due(self) -> list[str]:
        return [name for name, due_at in self.timers.items() if due_at <= self.now]


def delivery(subject: str, body: bytes, seq: int, deliveries: int) -> Delivery:
    return Delivery(subject, body, f"$JS.ACK.RUNS.engine_3.{deliveries}.{seq}.1.0.0", None, 0.0)


class Wires:
    """Stands in for the connection: what goes through core NATS may be lost anyway."""

    nc = SimpleNamespace(publish_now=lambda *_args, **_options: None)


@dataclass
class Plans:
    plan: Plan

    def kept(self, _digest: str) -> Plan:
        return self.plan

    async def get(self, _digest: str) -> Plan:
        return self.plan


@dataclass
class Reader:
    world: World

    async def read_run(self, *_run: object, **_options: int) -> list[Entry]:
        await self.world.effect("before")
        entries = self.world.log.entries
        await self.world.effect("after")
        return entries

    async def decode(
        self,
        subject: str,
        seq: int,
        body: bytes,
        headers: dict[str, str] | None,
        *,
        parsed: FactSubject,
    ) -> Entry:
        return decode_entry(subject, seq, body, headers, parsed)


@dataclass
class Writer:
    world: World

    async def append(
        self,
        subject: str,
        body: bytes,
        *,
        fence: str | None = None,
        headers: dict[str, str] | None = None,  # noqa: ARG002 - the real writer's
    ) -> int:
        await self.world.effect("before")
        if subject.startswith("timer.set."):
            due_at = decode(TimerDue, body).due_at
            self.world.timers[subject.rsplit(".", 1)[1]] = due_at
            stored = 0
        else:
            stored = self.world.log.append_body(subject, body, fence=fence).seq
        await self.world.effect("after")
        return stored

    async def append_all(self, records: list[Record]) -> list[int]:
        return [
            await self.append(record.subject, record.body, fence=record.fence) for record in records
        ]


@contextmanager
def clock_of(world: World) -> Iterator[None]:
    """Let the engine read the simulated time."""

    def epoch() -> float:
        return world.now.timestamp()

    with pytest.MonkeyPatch.context() as patch:
        simulated = SimpleNamespace(now=lambda: world.now, epoch=epoch)
        patch.setattr(engine_module, "clock", simulated)
        yield


def answer(
    world: World, message: Message, output: Any, error: Any = None, usage: Any = None
) -> None:
    subject = message.entry.subject
    target = subjects.result(PREFIX, subject.step_id, subject.attempt)
    if world.log.get(target) is None:
        kind = StepKind(subject.kind)
        given = None if error is not None else output
        fact = make_result(given, kind=kind, now=world.now, error=error, usage=usage)
        world.log.append(target, fact)


def check(world: World) -> None:
    firsts: list[int] = []
    promised: set[str] = set()
    for message in world.log.messages:
        fact, subject = message.entry.fact, message.entry.subject
        decision = getattr(fact, "decision", None)
        if decision is not None:
            firsts.append(subject.decision)
            promised |= {subjects.out(PREFIX, subject.decision, s) for s in decision.manifest}
        elif isinstance(fact, StepScheduled):
            assert message.subject in promised
        if subject.attempt > 1 and subject.event == "step":
            before = subjects.result(PREFIX, subject.step_id, subject.attempt - 1)
            assert world.log.get(before) is not None
    assert firsts == list(range(1, len(firsts) + 1))
    assert len(world.log.ends) <= 1
    if world.log.ends:
        last = next(m for m in world.log.messages if m.entry.subject.event == "end")
        assert last.entry.subject.decision == len(firsts)


TROUBLES = st.sampled_from(["", "", "", "rival", "dies before", "dies after"])
STEPS = st.sampled_from(
    [
        "deliver",
        "deliver",
        "deliver",
        "again",
        "answer",
        "answer",
        "answer",
        "time",
        "timer",
        "tick",
    ]
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plan=plans(), engines=st.integers(1, 3), cancel_at=st.integers(0, 60), data=st.data())
def test_engine_moves_every_run_to_its_end(
    plan: Plan, engines: int, cancel_at: int, data: st.DataObject
) -> None:
    world = World(plan)
    world.engines = [world.new_engine() for _ in range(engines)]
    with clock_of(world):
        asyncio.run(live(world, cancel_at, data))


async def live(world: World, cancel_at: int, data: st.DataObject) -> None:
    world.log.append(subjects.invoke(PREFIX), make_invoked(world.plan))
    for step in range(data.draw(st.integers(0, 40))):
        if step == cancel_at:
            world.log.append(subjects.cancel(PREFIX), CancelRequested(occurred_at=world.now))
        index = data.draw(st.integers(0, len(world.engines) - 1))
        world.at_work, world.troubles = index, data.draw(st.lists(TROUBLES, max_size=8))
        await something(world, data.draw(STEPS), index, data)
        check(world)
    world.troubles = []
    await wind_down(world)
    check(world)
    assert len(world.log.ends) == 1, "the run does not end"


async def something(world: World, what: str, index: int, data: st.DataObject) -> None:
    if what == "deliver" and world.waiting:
        await world.deliver(index, data.draw(st.sampled_from(world.waiting)))
    elif what == "again":
        await world.deliver(index, data.draw(st.sampled_from(world.log.inputs)))
    elif what == "answer" and world.log.steps:
        message = data.draw(st.sampled_from(world.log.steps))
        agent = message.entry.subject.kind == StepKind.AGENT
        output = data.draw(actions) if agent else data.draw(st.integers(0, 9))
        answer(world, message, output, data.draw(errors), data.draw(usages))
    elif what == "time":
        world.now += timedelta(seconds=data.draw(st.sampled_from([0.5, 3.0, 25.0])))
    elif what == "timer" and world.due:
        await world.fire(index, data.draw(st.sampled_from(world.due)))
    elif what == "tick":
        await world.tick(index)


async def wind_down(world: World) -> None:
    """Runners answer, time goes on, every engine keeps its reconciler."""
    for _ in range(300):
        if world.log.ends and not world.waiting:
            return
        for message in world.log.steps:
            agent = message.entry.subject.kind == StepKind.AGENT
            answer(world, message, responds() if agent else 1)
        await world.deliver_all(0)
        for timer_id in world.due:
            await world.fire(0, timer_id)
        world.now += timedelta(seconds=1)
        for index in range(len(world.engines)):
            await world.tick(index)


# -- what the machine found ----------------------------------------------------------------------


async def test_engine_whose_state_is_stale_reads_the_log_for_an_outcome_it_cannot_place() -> None:
    world = World(make_plan(tool_node("a"), tool_node("b", "a")))
    world.engines = [world.new_engine(), world.new_engine()]
    invoke = world.log.append(subjects.invoke(PREFIX), make_invoked(world.plan))
    with clock_of(world):
        await world.deliver(0, invoke)
        answer(world, world.log.steps[0], 1)
        await world.deliver(1, world.waiting[0])
        answer(world, world.log.steps[1], 2)
        await world.deliver(0, world.waiting[0])

    assert [end.output for end in world.log.ends] == [2]


async def test_engine_that_finds_an_expired_step_answered_reads_the_log() -> None:
    world = World(make_plan(tool_node("a", timeout_seconds=5), tool_node("b")))
    world.engines = [world.new_engine(), world.new_engine()]
    invoke = world.log.append(subjects.invoke(PREFIX), make_invoked(world.plan))
    with clock_of(world):
        await world.deliver(0, invoke)
        for index, message in enumerate(world.log.steps):
            answer(world, message, index)
            # The other engine takes the first outcome, and has nothing to decide.
            await world.deliver(1 - index, world.waiting[0])
        assert world.log.ends == []
        for _ in range(10):
            world.now += timedelta(seconds=1)
            await world.tick(0)

    assert [end.output for end in world.log.ends] == [1]
