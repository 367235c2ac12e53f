"""Who works in a simulated world: engines, runners and users, each a process of its own.

Engine processes are the real composition root. Runners and users are written for the simulation,
over the real consumer and the real log writer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from nats.errors import Error as NatsError

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.consumer import Consumer, Delivery
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorFamily, ErrorInfo, PenstockError
from penstock.contracts.facts import StepKind, StepResult, StepScheduled, fact_bytes
from penstock.contracts.usage import Reservation, Usage
from penstock_orchestrator.main import EngineProcess
from penstock_orchestrator.settings import OrchestratorSettings
from tests.simulation.client import SimClient
from tests.simulation.clock import wall
from tests.simulation.loop import Process
from tests.simulation.plans import MORE_TOOLS, NOT_EQUIPPED, QUEUES, TOOLS

if TYPE_CHECKING:
    from tests.simulation.world import World

TROUBLE = (PenstockError, JetStreamError, NatsError)
"""What ends a process that starts; its supervisor starts it again."""


class Actor:
    """A kind of process that is started again whenever it has died."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.lives = 0
        self.process: Process | None = None
        self.client: SimClient | None = None
        self.stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin a new life."""
        world = self.world
        if self.process is not None and not self.process.dead:
            return
        self.lives += 1
        name = f"{self.name}-{self.lives}"
        self.process = process = Process(name, skew_seconds=world.draw_skew())
        world.processes.append(process)
        world.doom(self)
        world.trace("starts", name, "")
        self._task = world.loop.spawn(process, self._live(process), name)

    async def _live(self, process: Process) -> None:
        self.stopping = asyncio.Event()
        self.client = client = SimClient(self.world.loop, process, self.world.server)
        try:
            await self.live(client.open(), process)
        except TROUBLE as error:
            self.world.trace("exits", process.name, repr(error))
        self.world.loop.kill(process, "exits")

    async def live(self, bus: Bus, process: Process) -> None:
        """Do what this kind of process does."""
        raise NotImplementedError

    def settings(self, process: Process) -> OrchestratorSettings:
        return self.world.settings.model_copy(update={"instance_id": process.name})


class EngineActor(Actor):
    """An orchestrator in the role of the engine."""

    engine: EngineProcess | None = None

    async def live(self, bus: Bus, process: Process) -> None:
        settings = self.settings(process)
        writer = LogWriter(bus, settings, Claims(bus, settings.claim_threshold_bytes))
        await writer.start()
        self.engine = EngineProcess(settings, bus, writer)
        await self.engine.start()
        await self.stopping.wait()
        await self.engine.stop()
        await bus.close()


class RunnerActor(Actor):
    """A runner of all queues: late, twice, contradictory or not at all, if it comes to that."""

    async def live(self, bus: Bus, process: Process) -> None:
        settings = self.settings(process)
        claims = Claims(bus, settings.claim_threshold_bytes)
        self.reader = LogReader(bus, claims)
        self.writer = await LogWriter(bus, settings, claims).start()
        self.random = Random(self.world.random.getrandbits(64))
        self.zombies: set[asyncio.Task[None]] = set()
        for kind, queue in QUEUES:
            durable = subjects.runner_consumer(kind, queue)
            consumer = Consumer(
                bus,
                subjects.RUNS,
                durable,
                self.on_step,
                concurrency=32,
                ack_wait_seconds=settings.ack_wait_seconds,
            )
            await consumer.start()
        await self.stopping.wait()

    async def on_step(self, delivery: Delivery) -> None:
        """Execute one step and state its outcome."""
        entry = await self.reader.decode(
            delivery.subject, delivery.stream_seq, delivery.body, delivery.headers
        )
        subject, fact = entry.subject, entry.fact
        assert isinstance(fact, StepScheduled)
        faults, random = self.world.faults, self.random
        started_at = wall(self.world.loop)
        if started_at > fact.expires_at:
            result = self._result(fact, subject.kind, error=_EXPIRED)
        else:
            seconds = random.choice([0.0, 0.01, 0.3, 1.0]) * random.random()
            if faults.happens("late_result", 0.15):
                seconds += random.random() * 20
            await asyncio.sleep(seconds)
            result = self.draw_result(fact, subject.kind)
        stem = subjects.run_prefix(subject.tenant, subject.shard, subject.run_id)
        target = subjects.result(stem, subject.step_id, subject.attempt)
        with suppress(ConflictError):  # somebody may have stated another outcome first
            await self.writer.append(target, fact_bytes(result))
        if faults.happens("second_result", 0.2):
            other = self.draw_result(fact, subject.kind)
            task = asyncio.create_task(self._contradict(target, other, random.random() * 10))
            self.zombies.add(task)
            task.add_done_callback(self.zombies.discard)

    async def _contradict(self, target: str, other: StepResult, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self.writer.append(target, fact_bytes(other))
        except PenstockError:
            return
        raise AssertionError(f"{target} was stated twice")

    def draw_result(self, fact: StepScheduled, kind: str) -> StepResult:
        """Draw an outcome; a healthy world has few failures."""
        random = self.random
        trouble = 0.2 if self.world.faults.active else 0.03
        if random.random() < trouble:
            family = random.choice([ErrorFamily.TRANSIENT] * 9 + [ErrorFamily.REJECTED])
            after = random.choice([None, None, 3.0]) if family is ErrorFamily.TRANSIENT else None
            error = ErrorInfo(
                code="drawn", message="bad luck", family=family, retry_after_seconds=after
            )
            return self._result(fact, kind, error=error)
        output = self._action() if kind == "agent" else random.randint(0, 9)
        return self._result(fact, kind, output=output)

    def _action(self) -> Any:
        random = self.random
        choice = random.random()
        if choice < 0.6:
            return {"action": "respond", "text": f"answer {random.randint(0, 99)}"}
        if choice < 0.62:
            return {"action": "dance"}
        if choice < 0.7:
            name = random.choice(["editor", "writer", "nobody"])
            return {"action": "route_to_agent", "agent": name, "message": "take over"}
        calls = [
            {
                "id": f"call_{index}",
                "name": random.choice([*TOOLS, *TOOLS, *MORE_TOOLS, NOT_EQUIPPED]),
                "arguments": random.choice([{}, {"a": 1}, {"key": 2}]),
            }
            for index in range(random.choice([1, 2, 3]))
        ]
        return {"action": "use_tools", "text": "", "calls": calls}

    def _result(
        self, fact: StepScheduled, kind: str, *, output: Any = None, error: ErrorInfo | None = None
    ) -> StepResult:
        now = wall(self.world.loop)
        random = self.random
        usage = None
        if kind == "agent" and random.random() < 0.7:
            usage = _spent(random, fact.reserve)
        return StepResult(
            occurred_at=now,
            kind=StepKind(kind),
            name=fact.name,
            status="succeeded" if error is None else "failed",
            output=output,
            error=error,
            usage=usage,
            runner_id="runner",
            started_at=now - timedelta(milliseconds=1),
        )


def _spent(random: Random, reserve: Reservation | None) -> Usage:
    """Draw what a call cost: never more than was set aside for it."""
    tokens, cost = random.randint(0, 50), random.choice([0.0, 0.25])
    if reserve is not None:
        share = random.choice([0.1, 0.5, 1.0])
        tokens, cost = int(reserve.tokens * share), reserve.cost_usd * share
    part = random.randint(0, tokens)
    return Usage(input_tokens=part, output_tokens=tokens - part, cost_usd=cost, model_calls=1)


_EXPIRED = ErrorInfo(
    code="step_expired",
    message="the step reached a runner only after its deadline",
    family=ErrorFamily.TRANSIENT,
)
