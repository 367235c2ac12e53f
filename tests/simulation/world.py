"""One world: an installation, its users, its misfortunes, from a seed to a verdict."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from penstock.bus import topology
from penstock.bus.claims import CLAIM_MARK
from penstock.contracts import subjects
from penstock.contracts.facts import NodeRecord
from penstock.contracts.ids import run_id_from, shard_of
from penstock.contracts.messages import Claim
from penstock.contracts.plan import Plan
from penstock.contracts.structs import decode
from penstock.runs.state import RunState
from penstock_orchestrator.core.decisions import Decided
from penstock_orchestrator.engine import engine as engine_module
from penstock_orchestrator.settings import OrchestratorSettings
from tests.simulation.actors import Actor, EngineActor, RunnerActor
from tests.simulation.clock import clock_of
from tests.simulation.faults import Faults
from tests.simulation.invariants import Invariants, RunLedger
from tests.simulation.loop import Process, SimLoop
from tests.simulation.misfortunes import Misfortunes
from tests.simulation.plans import QUEUES, PlanMaker, draw_features
from tests.simulation.server import Server
from tests.simulation.streams import Publish, PullConsumer, StoredMessage
from tests.simulation.users import User

HEALED_SECONDS = 600.0
"""How long a healthy installation may take until every run has ended."""
QUIET_SECONDS = 60.0
"""How long it may take after that until nothing of them is kept in memory."""
TRACED = 400
_FAILED = ("consumer.handler_failed", "engine.run_failed", "engine.finish_failed")


@dataclass
class Verdict:
    """What came of a seed."""

    seed: int
    broken: list[str]
    runs: int
    facts: int
    statuses: Counter[str]
    faults: Counter[str]
    kinds: Counter[str]
    """Nodes of the plans that were asked for, by kind."""
    duplicates: int
    redelivered: int
    steps: int
    virtual_seconds: float
    digest: str
    """SHA-256 of everything in every stream."""
    trace: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.broken


class World:
    """Everything that one seed decides."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.faults = Faults.draw(random)
        self.loop = SimLoop(random)  # type: ignore[abstract]
        self.loop.stall_gap = self.faults.stall_gap
        self.loop.stall_seconds = self.faults.stall_seconds
        self.loop.on_death = self._died
        self.settings = OrchestratorSettings(
            instance_id="nobody",
            shards=random.choice([1, 1, 2, 3]),
            lease_ttl_seconds=3.0,
            ack_wait_seconds=random.choice([2.0, 5.0]),
            reconcile_seconds=random.choice([5.0, 15.0]),
            claim_threshold_bytes=random.choice([1024, 131_072, 131_072]),
            metrics_port=-1,
        )
        self._traced: deque[tuple[float, str, str, str]] = deque(maxlen=TRACED)
        self.processes: list[Process] = []
        self.server = Server(self.loop, self.faults, self.settings, self.trace)
        self.server.multi_last_limit = random.choice([1024, 1024, 8])
        for kind, queue in QUEUES:
            name, wanted = (
                subjects.runner_consumer(kind, queue),
                subjects.runner_filter(kind, queue),
            )
            self.server.add_consumer(subjects.RUNS, topology._durable(self.settings, name, wanted))
        self.plans: dict[str, Plan] = {}
        self.features = draw_features(random)
        self.invariants = Invariants(self.plans, self._unclaimed)
        self.server.runs.on_stored.insert(0, self.invariants.on_stored)
        self.invariants.on_asked = self._asked
        self.server.on_refused = self.invariants.on_refused
        self.server.on_sent = self.invariants.on_sent
        self.server.consumers.on_acknowledged = self._acknowledged
        self.engines = [EngineActor(self, f"engine{n}") for n in range(random.choice([1, 2, 2, 3]))]
        self.runners = [RunnerActor(self, f"runner{n}") for n in range(random.choice([1, 1, 2]))]
        self.users = User(self, "user")
        self.fault_seconds = random.choice([5.0, 20.0, 45.0])
        self.crashes_left = random.choice([0, 2, 6])
        self.misfortunes = Misfortunes(self)

    # -- what the parts ask of the world -----------------------------------------------------------

    def trace(self, what: str, who: str, text: str) -> None:
        """Note an event."""
        self._traced.append((self.loop.now, what, who, text))

    def _acknowledged(self, consumer: PullConsumer, message: StoredMessage) -> None:
        if consumer.stream is self.server.runs and ".in." in message.subject:
            self.invariants.on_acknowledged(message)

    def _asked(self, run: RunLedger, node_record: NodeRecord) -> None:
        self.users.asked(run.tenant, run.shard, run.run_id, node_record)

    def _unclaimed(self, body: bytes) -> bytes:
        if not body.startswith(CLAIM_MARK):
            return body
        return self.server.objects[decode(Claim, body).sha256]

    def draw_skew(self) -> float:
        """Draw how wrong a new process' clock is, in seconds."""
        if "clock_skew" not in self.faults.on:
            return 0.0
        self.faults.counts["clock_skew"] += 1
        return self.random.choice([0.0, 0.05, -0.05, 1.5, -1.5, 20.0, -20.0])

    def doom(self, actor: Actor) -> None:
        """Draw when a new process stalls and dies."""
        process, random = actor.process, self.random
        assert process is not None
        process.stall_in = self.faults.stall_gap()
        kind = "engine_crash" if isinstance(actor, EngineActor) else "runner_crash"
        if isinstance(actor, User) or not self.faults.enabled(kind) or self.crashes_left <= 0:
            return
        if random.random() < 0.7:
            if random.random() < 0.6:
                process.sends_left = int(2 ** (random.random() * 8)) + 10
            else:
                process.steps_left = int(2 ** (random.random() * 10)) + 20

    def _died(self, process: Process, how: str) -> None:
        self.trace("dies", process.name, how)
        for client in [client for client in self.server.clients if client.process is process]:
            self.server.forget(client)
        for actor in (*self.engines, *self.runners):
            if actor.process is process:
                if how not in ("exits", "end"):
                    self.crashes_left -= 1
                    engine = isinstance(actor, EngineActor)
                    self.faults.counts["engine_crash" if engine else "runner_crash"] += 1
                delay = self.random.choice([0.1, 1.0, 5.0]) if self.faults.active else 0.5
                self.loop.call_in(self.loop.system, delay, actor.start)

    def publish_plan(self, plan: Plan, delay: float = 0.0) -> str:
        """Put a plan into its bucket; return its digest."""
        digest = plan.digest()
        self.plans[digest] = plan
        stream = self.server.streams[f"KV_{subjects.PLANS}"]
        message = Publish(f"$KV.{subjects.PLANS}.{digest}", plan.to_bytes(), {})
        self.loop.call_in(self.loop.system, delay, stream.store, message)
        return digest

    def draw_plan(self, name: str) -> Plan:
        return PlanMaker(self.random, self.features, self.publish_plan).plan(name)

    def draw_run(self) -> tuple[str, int, str]:
        """Draw tenant, shard and id of a run."""
        run_id = run_id_from(1_767_225_600_000, self.random.randbytes(10))
        return (
            self.random.choice(["acme", "globex"]),
            shard_of(run_id, self.settings.shards),
            run_id,
        )

    # -- the whole story ---------------------------------------------------------------------------

    def run(self) -> Verdict:
        """Live through it."""
        noted = _Errors()
        with clock_of(self.loop), self._decisions_watched(), noted:
            self._begin()
            alive = self.loop.run(lambda: self._trouble(noted), deadline=self.fault_seconds)
            if not alive:
                self.misfortunes.end()
                deadline = self.loop.now + HEALED_SECONDS
                over = self.loop.run(
                    lambda: self._trouble(noted) or self._all_over(), deadline=deadline
                )
                if over and not self._trouble(noted):
                    deadline = self.loop.now + QUIET_SECONDS
                    self.loop.run(
                        lambda: self._trouble(noted) or self._forgotten(), deadline=deadline
                    )
                    if not self._forgotten():
                        kept = [
                            f"{a.name}: {len(a.engine.engine.runs)}"
                            for a in self.engines
                            if a.engine
                        ]
                        self.invariants.broken.append(f"engines keep runs that have ended: {kept}")
            self.loop.finish(self.processes)
        broken = self.invariants.broken
        if not broken:
            self.invariants.at_end()
            broken += self.loop.errors + noted.found
            self._check_dead_letters()
        return self._verdict()

    @contextmanager
    def _decisions_watched(self) -> Iterator[None]:
        """Look at each decision as it is made, whatever becomes of it."""
        names = vars(engine_module)
        real = names["decide"]

        def watched(plan: Plan, state: RunState, *rest: Any, **options: Any) -> Decided | None:
            decided: Decided | None = real(plan, state, *rest, **options)
            self.invariants.on_decided(state, decided)
            return decided

        names["decide"] = watched
        try:
            yield
        finally:
            names["decide"] = real

    def _begin(self) -> None:
        actors: list[Actor] = [self.users, *self.engines, *self.runners]
        for actor in actors:
            delay = self.random.choice([0.0, 0.0, 2.0]) * self.random.random()
            self.loop.call_in(self.loop.system, delay, actor.start)
        self.loop.call_in(self.loop.system, self.random.random() * 3, self.misfortunes.strike)

    def _trouble(self, noted: _Errors) -> bool:
        return bool(self.invariants.broken or self.loop.errors or noted.found)

    def _all_over(self) -> bool:
        """Tell whether users have said all, every run has ended, and nothing is out."""
        if self.users.open:
            return False
        if any(run.invoked and run.end is None for run in self.invariants.runs.values()):
            return False
        return all(consumer.idle for consumer in self.server.consumers.pulls.values())

    def _forgotten(self) -> bool:
        live = [a for a in self.engines if a.process is not None and not a.process.dead]
        return all(a.engine is not None and len(a.engine.engine.runs) == 0 for a in live)

    def _check_dead_letters(self) -> None:
        for message in self.server.streams[subjects.DEAD].messages.values():
            self.invariants.broken.append(f"dead letter: {message.body.decode()[:600]}")

    def _verdict(self) -> Verdict:
        digest = hashlib.sha256()
        facts = 0
        for name, stream in self.server.streams.items():
            for message in stream.messages.values():
                digest.update(f"{name} {message.seq} {message.subject} {message.time}\n".encode())
                digest.update(message.body)
        for ledger in self.invariants.runs.values():
            facts += len(ledger.entries)
        runs = [run for run in self.invariants.runs.values() if run.invoked is not None]
        ends = Counter(run.end.status.value for run in runs if run.end is not None)
        return Verdict(
            seed=self.seed,
            broken=list(self.invariants.broken),
            runs=len(runs),
            facts=facts,
            statuses=ends,
            faults=Counter({kind: n for kind, n in self.faults.counts.items() if n > 0}),
            kinds=Counter(
                node.kind
                for run in runs
                if run.plan is not None
                for node in run.plan.by_id.values()
            ),
            duplicates=self.invariants.duplicates,
            redelivered=self.server.consumers.redelivered,
            steps=self.loop.steps,
            virtual_seconds=self.loop.now,
            digest=digest.hexdigest(),
            trace=[f"{at:10.4f}  {what:8} {who:12} {text}" for at, what, who, text in self._traced],
        )


class _Errors(logging.Handler):
    """Notes what Penstock logs as an error: a handler that failed has a fault."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self._loggers = [logging.getLogger(name) for name in ("penstock", "penstock_orchestrator")]
        self._before: list[tuple[int, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() in _FAILED and record.exc_info is not None:
            self.found.append(f"a handler failed: {record.exc_info[1]!r}")

    def __enter__(self) -> _Errors:
        self._before = [(logger.level, logger.propagate) for logger in self._loggers]
        for logger in self._loggers:
            logger.addHandler(self)
            logger.setLevel(logging.ERROR)
            logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        for logger, (level, propagate) in zip(self._loggers, self._before, strict=True):
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


def simulate(seed: int) -> Verdict:
    """Live through one seed."""
    return World(seed).run()
