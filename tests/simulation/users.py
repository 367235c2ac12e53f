"""Users of a simulated world: they ask for runs, twice at times, cancel them, and send signals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, PenstockError, TransientError
from penstock.contracts.facts import (
    CancelRequested,
    DefinitionKind,
    NodeRecord,
    RunInvoked,
    SignalKind,
    SignalReceived,
    fact_bytes,
)
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.plan import AgentNode, Node, ToolNode
from penstock.contracts.usage import RunLimits
from tests.simulation.actors import Actor
from tests.simulation.clock import wall
from tests.simulation.loop import Process
from tests.simulation.plans import EVENT

if TYPE_CHECKING:
    from tests.simulation.world import World


class User(Actor):
    """All users, in the place of the gateway; it neither stalls nor dies, its connection may."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.open = 1
        """What is still to be said."""
        self._answers: list[asyncio.Task[None]] = []

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
        world.trace("plan", run_id, sketch(plan.nodes))
        begin = random.random() * world.fault_seconds * 0.7
        said: list[tuple[float, str, Any]] = []

        def say(at: float, subject: str, make: Any) -> None:
            said.append((at, subject, make))

        text = "x" * random.choice([3, 3, 2000])
        number, items = random.randint(0, 9), [1, 2, 3, 4][: random.randint(0, 4)]
        given: Any = {"city": text, "n": number, "items": items}
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
                    input=given,
                    limits=RunLimits(max_turns=random.choice([None, None, None, 3])),
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
                lambda: SignalReceived(
                    occurred_at=wall(world.loop), name=EVENT, payload={"n": random.randint(0, 9)}
                ),
            )
        if random.random() < 0.15:
            paused = begin + random.random() * 5 - 0.5
            resumed = paused + random.random() * 10
            say(paused, subjects.signal(prefix, "p1"), _control(world, "pause"))
            say(resumed, subjects.signal(prefix, "p2"), _control(world, "resume"))
        for at, subject, make in sorted(said, key=lambda item: item[0]):
            await asyncio.sleep(max(0.0, at - world.loop.now))
            await self._say(subject, fact_bytes(make()))

    def asked(self, tenant: str, shard: int, run_id: str, node_record: NodeRecord) -> None:
        """Answer what a run asks of the world outside, mostly."""
        world, random = self.world, self.world.random
        process, request = self.process, node_record.request
        if process is None or request is None:
            return
        if node_record.kind != "resolution" and random.random() < 0.2:
            return  # it expires
        kind: SignalKind
        payload: Any
        if node_record.kind == "wait":
            kind, payload = "event", {"n": random.randint(0, 9)}
            signal_id = f"e-{node_record.record_id}"
        else:
            answers = _ANSWERS[node_record.kind]
            kind, payload = answers[0], random.choice(answers[1])
            signal_id = answer_signal_id(kind, node_record.record_id, request.digest)
        subject = subjects.signal(subjects.run_prefix(tenant, shard, run_id), signal_id)
        delay = random.choice([0.0, 0.5, 5.0]) * random.random()

        async def answer() -> None:
            await asyncio.sleep(delay)
            fact = SignalReceived(
                occurred_at=wall(world.loop),
                name=request.name,
                kind=kind,
                payload=payload,
                target=node_record.record_id,
            )
            await self._say(subject, fact_bytes(fact))

        self._answers.append(world.loop.spawn(process, answer(), "answer"))

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


def _control(world: World, kind: Literal["pause", "resume"]) -> Callable[[], SignalReceived]:
    return lambda: SignalReceived(occurred_at=wall(world.loop), name=kind, kind=kind)


_APPROVAL: tuple[Any, ...] = ({"decision": "approve"}, {"decision": "reject", "reason": "no"})
_ANSWERS: dict[str, tuple[SignalKind, tuple[Any, ...]]] = {
    "approval": ("approval", (_APPROVAL[0], _APPROVAL[0], _APPROVAL[1])),
    "client_tool": ("tool_result", ({"output": 5}, {"status": "failed"})),
    "resolution": (
        "resolution",
        ({"action": "retry"}, {"action": "succeed", "output": 6}, {"action": "fail"}),
    ),
}


def sketch(nodes: Iterable[Node]) -> str:
    """Return nodes in short, those within others in brackets."""
    return ", ".join(_sketch(node) for node in nodes)


def _sketch(node: Node) -> str:
    inner = " | ".join(sketch(block.nodes) for block in node.blocks)
    needs = f" after {' '.join(node.needs)}" if node.needs else ""
    name = node.ref if isinstance(node, AgentNode | ToolNode) else node.kind
    return f"{node.id}:{name}" + (f"[{inner}]" if inner else "") + needs
