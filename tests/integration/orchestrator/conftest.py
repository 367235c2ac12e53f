"""An engine in this process on a real server; the tests play gateway and runner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    CancelRequested,
    DefinitionKind,
    RunEnded,
    RunInvoked,
    StepKind,
    StepResult,
    fact_bytes,
)
from penstock.contracts.ids import shard_of
from penstock.contracts.json import Json
from penstock.contracts.plan import (
    CompiledTool,
    Plan,
    RetryPolicy,
    ToolNode,
)
from penstock.contracts.usage import RunLimits
from penstock.embedded import NatsServer
from penstock.runs.state import Entry, RunState, fold, new_state
from penstock_gateway.runs.start import new_run_id
from penstock_orchestrator.main import EngineProcess
from penstock_orchestrator.settings import OrchestratorSettings

TENANT = "acme"
NOOP = CompiledTool(
    name="noop", queue="q", retry=RetryPolicy(max_attempts=3, initial_seconds=0.05, jitter=0)
)


def chain(*names: str, timeout_seconds: float = 60.0) -> Plan:
    """Return a plan of tool nodes, each after the one before."""
    nodes = tuple(
        ToolNode(id=name, ref="noop", needs=names[max(0, n - 1) : n], input={"n": n})
        for n, name in enumerate(names)
    )
    return Plan(
        name="chain",
        kind=DefinitionKind.WORKFLOW,
        nodes=nodes,
        tools={"noop": NOOP},
        timeout_seconds=timeout_seconds,
    )


def fan(width: int) -> Plan:
    """Return a plan of tool nodes side by side."""
    nodes = tuple(ToolNode(id=f"n{n}", ref="noop", input={}) for n in range(width))
    return Plan(
        name="fan", kind=DefinitionKind.WORKFLOW, nodes=nodes, tools={"noop": NOOP}, output="all"
    )


@dataclass
class World:
    """The bus as gateways and runners see it."""

    settings: OrchestratorSettings
    bus: Bus
    writer: LogWriter
    reader: LogReader
    server: NatsServer
    engines: list[EngineProcess] = field(default_factory=list)
    buses: list[Bus] = field(default_factory=list)

    async def start_engine(self, name: str = "engine-1") -> EngineProcess:
        settings = self.settings.model_copy(update={"instance_id": name})
        bus = await connect(settings, name=name)
        writer = await LogWriter(bus, settings, Claims(bus, settings.claim_threshold_bytes)).start()
        engine = EngineProcess(settings, bus, writer)
        await engine.start()
        self.engines.append(engine)
        self.buses.append(bus)
        return engine

    async def stop_engines(self) -> None:
        for engine in self.engines:
            await engine.stop()
        for bus in self.buses:
            await bus.close()
        self.engines.clear()
        self.buses.clear()

    async def put_plan(self, plan: Plan) -> None:
        await Bucket(self.bus, subjects.PLANS).put(plan.digest(), plan.to_bytes())

    def prefix(self, run_id: str) -> str:
        return subjects.run_prefix(TENANT, shard_of(run_id, self.settings.shards), run_id)

    async def invoke(
        self, plan: Plan, *, limits: RunLimits | None = None, store_plan: bool = True
    ) -> str:
        if store_plan:
            await self.put_plan(plan)
        run_id = new_run_id()
        fact = RunInvoked(
            occurred_at=datetime.now(UTC),
            name=plan.name,
            kind=plan.kind,
            version=1,
            plan_digest=plan.digest(),
            input={"city": "Oslo"},
            limits=limits or RunLimits(),
        )
        await self.writer.append(subjects.invoke(self.prefix(run_id)), fact_bytes(fact))
        return run_id

    async def cancel(self, run_id: str) -> None:
        fact = CancelRequested(occurred_at=datetime.now(UTC), reason="enough")
        await self.writer.append(subjects.cancel(self.prefix(run_id)), fact_bytes(fact))

    async def report(
        self,
        run_id: str,
        step_id: str,
        attempt: int = 1,
        *,
        output: Json = None,
        error: ErrorInfo | None = None,
    ) -> int:
        now = datetime.now(UTC)
        fact = StepResult(
            occurred_at=now,
            kind=StepKind.TOOL,
            name="noop",
            status="failed" if error is not None else "succeeded",
            output=output,
            error=error,
            runner_id="test",
            started_at=now - timedelta(milliseconds=1),
        )
        subject = subjects.result(self.prefix(run_id), step_id, attempt)
        return await self.writer.append(subject, fact_bytes(fact))

    async def log(self, run_id: str) -> list[Entry]:
        return await self.reader.read_run(TENANT, shard_of(run_id, self.settings.shards), run_id)

    async def state(self, run_id: str) -> RunState:
        shard = shard_of(run_id, self.settings.shards)
        return fold(new_state(TENANT, shard, run_id), await self.log(run_id))

    async def until(
        self, run_id: str, holds: Callable[[RunState], bool], within: float = 30
    ) -> RunState:
        """Wait until the folded log fulfils a condition."""
        async with asyncio.timeout(within):
            while not holds(state := await self.state(run_id)):  # noqa: ASYNC110 - a remote state
                await asyncio.sleep(0.02)
        return state

    async def scheduled(self, run_id: str, step_id: str, attempt: int = 1) -> RunState:
        return await self.until(
            run_id,
            lambda s: (
                step_id in s.steps
                and s.steps[step_id].attempt == attempt
                and s.steps[step_id].status == "scheduled"
            ),
        )

    async def ended(self, run_id: str, within: float = 30) -> RunEnded:
        state = await self.until(run_id, lambda s: s.ended is not None, within)
        assert state.ended is not None
        return state.ended


@asynccontextmanager
async def engine_process(
    world: World, name: str, *, metrics_port: int = -1
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An engine as a process of its own, to be killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock_orchestrator",
        env={
            **os.environ,
            "PENSTOCK_NATS_URL": world.settings.nats_url,
            "PENSTOCK_SHARDS": str(world.settings.shards),
            "PENSTOCK_LEASE_TTL_SECONDS": "1",
            "PENSTOCK_INSTANCE_ID": name,
            "PENSTOCK_METRICS_PORT": str(metrics_port),
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


CreateWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def create_world(
    create_nats_server: Callable[..., NatsServer],
) -> AsyncIterator[CreateWorld]:
    """Make a world on a server of its own, with no engine yet."""
    worlds: list[World] = []

    async def create() -> World:
        server = create_nats_server()
        settings = OrchestratorSettings(
            nats_url=server.url, shards=2, ack_wait_seconds=1, lease_ttl_seconds=1
        )
        bus = await connect(settings, name="test")
        await ensure(bus, settings)
        claims = Claims(bus, settings.claim_threshold_bytes)
        writer = await LogWriter(bus, settings, claims).start()
        worlds.append(World(settings, bus, writer, LogReader(bus, claims), server))
        return worlds[-1]

    yield create
    for world in worlds:
        await world.stop_engines()
        await world.writer.close()
        await world.bus.close()


@pytest.fixture
async def world(create_world: CreateWorld) -> World:
    """A world with one engine at work."""
    created = await create_world()
    await created.start_engine()
    return created
