"""Users of a simulated world: they ask for runs, twice at times, cancel them, and send signals."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, PenstockError, TransientError
from penstock.contracts.facts import (
    CancelRequested,
    DefinitionKind,
    RunInvoked,
    RunLimits,
    SignalReceived,
    fact_bytes,
)
from tests.simulation.actors import Actor
from tests.simulation.clock import wall
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.world import World


class User(Actor):
    """All users, in the place of the gateway; it neither stalls nor dies, its connection may."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.open = 1
        """What is still to be said."""

    def start(self) -> None:
        super().start()
        assert self.process is not None
        self.process.mortal = False

    async def live(self, bus: Bus, process: Process) -> None:
        settings = self.settings(process)
        claims = Claims(bus, settings.claim_threshold_bytes)
        writer = LogWriter(bus, settings, claims)
        while True:
            try:
                await writer.start()
                break
            except PenstockError:
                await asyncio.sleep(1)
        self.writer = writer
        random = self.world.random
        stories = [self._story() for _ in range(random.choice([1, 1, 2, 4]))]
        await asyncio.gather(*stories)
        self.open = 0
        await self.stopping.wait()

    async def _story(self) -> None:
        world, random = self.world, self.world.random
        tenant, shard, run_id = world.draw_run()
        prefix = subjects.run_prefix(tenant, shard, run_id)
        plan = world.draw_plan("test")
        late = world.faults.happens("late_plan", 0.1)
        digest = world.publish_plan(plan, random.random() * 2 if late else 0.0)
        world.trace("plan", run_id, _sketch(plan))
        begin = random.random() * world.fault_seconds * 0.7
        said: list[tuple[float, str, Any]] = []

        def say(at: float, subject: str, make: Any) -> None:
            said.append((at, subject, make))

        text = "x" * random.choice([3, 3, 2000])
        for at in [begin] + [begin + random.random()] * (random.random() < 0.2):
            say(
                at,
                subjects.invoke(prefix),
                lambda: RunInvoked(
                    occurred_at=wall(world.loop),
                    name=plan.name,
                    kind=DefinitionKind.WORKFLOW,
                    version=1,
                    plan_digest=digest,
                    input={"city": text},
                    limits=RunLimits(max_turns=random.choice([None, None, 1, 3])),
                ),
            )
        if random.random() < 0.25:
            say(
                begin + random.choice([-1.0, 0.1, 3.0, 15.0]) * random.random(),
                subjects.cancel(prefix),
                lambda: CancelRequested(occurred_at=wall(world.loop), reason="enough"),
            )
        for index in range(random.choice([0, 0, 0, 1, 3])):
            say(
                begin + random.random() * 10 - 1,
                subjects.signal(prefix, f"s{index}"),
                lambda: SignalReceived(occurred_at=wall(world.loop), name="news", payload=1),
            )
        for at, subject, make in sorted(said, key=lambda item: item[0]):
            await asyncio.sleep(max(0.0, at - world.loop.now))
            await self._say(subject, fact_bytes(make()))

    async def _say(self, subject: str, body: bytes) -> None:
        """State a fact until it is stated."""
        for _ in range(100):
            try:
                await self.writer.append(subject, body)
            except ConflictError:
                return  # it was stated before
            except TransientError:
                await asyncio.sleep(1)
            else:
                return


def _sketch(plan: Any) -> str:
    return ", ".join(f"{n.id}:{n.kind}({' '.join(n.needs)})" for n in plan.nodes)
