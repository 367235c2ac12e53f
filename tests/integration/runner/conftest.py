"""A runner in this process on a real server, and steps for it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from penstock.bus.connection import Bus, connect
from penstock.contracts import subjects
from penstock.contracts.facts import Decision, StepResult, StepScheduled, fact_bytes
from penstock.contracts.ids import shard_of
from penstock.embedded import NatsServer
from penstock.runner import Runner
from penstock.runner.harness import Harness
from penstock.runner.settings import RunnerSettings
from tests.support.waiting import eventually


@dataclass
class Bench:
    """A tenant of the test's own, with what it takes to hand steps to runners."""

    settings: RunnerSettings
    bus: Bus
    harness: Harness
    tenant: str
    stack: AsyncExitStack

    async def start(self, runner: Runner) -> Runner:
        await runner.start(self.harness)
        self.stack.push_async_callback(runner.drain, 0.2)
        return runner

    async def schedule(
        self,
        runner: Runner,
        name: str,
        arguments: Any = None,
        *,
        run_id: str | None = None,
        step_id: str = "a",
        attempt: int = 1,
        seconds: float = 30.0,
        config: Any = None,
        traceparent: str | None = None,
        **fields: Any,
    ) -> str:
        """Publish a step as the engine would; return the stem of its run."""
        run_id = run_id or uuid.uuid4().hex[:26].upper()
        now = datetime.now(UTC)
        fact = StepScheduled(
            occurred_at=now,
            decision=Decision(cause_seq=0),
            node_id="a",
            name=name,
            input=arguments,
            config=config,
            expires_at=now + timedelta(seconds=seconds),
            **fields,
        )
        prefix = subjects.run_prefix(self.tenant, shard_of(run_id, self.settings.shards), run_id)
        suffix = subjects.step_suffix(runner.kind.value, runner.queue, step_id, attempt)
        await self.harness.writer.append(
            subjects.out(prefix, attempt, suffix),
            fact_bytes(fact),
            headers={"traceparent": traceparent} if traceparent else None,
        )
        return prefix

    async def result(
        self, prefix: str, step_id: str = "a", attempt: int = 1, within: float = 30
    ) -> StepResult:
        """Wait for a step's outcome."""
        subject = subjects.result(prefix, step_id, attempt)
        entry = await eventually(lambda: self.harness.reader.read_fact(subject), within=within)
        assert entry is not None
        assert isinstance(entry.fact, StepResult)
        return entry.fact

    async def done(self, runner: Runner, name: str, arguments: Any = None, **kw: Any) -> StepResult:
        return await self.result(await self.schedule(runner, name, arguments, **kw))

    async def unacknowledged(self, runner: Runner) -> int:
        info = await self.bus.api(
            f"CONSUMER.INFO.{subjects.RUNS}."
            f"{subjects.runner_consumer(runner.kind.value, runner.queue)}"
        )
        return int(info["num_ack_pending"]) + int(info["num_pending"])


def settings_for(server: NatsServer, directory: Path, **changes: Any) -> RunnerSettings:
    return RunnerSettings(
        nats_url=server.url,
        data_dir=directory,
        metrics_port=-1,
        instance_id=f"test-{uuid.uuid4().hex[:12]}",
        **changes,
    )


@pytest.fixture
async def open_bench(
    tmp_path: Path,
) -> AsyncIterator[Callable[..., Awaitable[Bench]]]:
    async with AsyncExitStack() as stack:

        async def open_bench(server: NatsServer, **changes: Any) -> Bench:
            settings = settings_for(server, tmp_path, **changes)
            bus = await connect(settings, name="test")
            stack.push_async_callback(bus.close)
            harness = await Harness(bus, settings).open()
            stack.push_async_callback(harness.close)
            return Bench(settings, bus, harness, f"t{uuid.uuid4().hex[:12]}", stack)

        yield open_bench


@pytest.fixture
async def bench(nats_server: NatsServer, open_bench: Callable[..., Awaitable[Bench]]) -> Bench:
    return await open_bench(nats_server)


@pytest.fixture
def queue() -> str:
    return f"q{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def forever() -> asyncio.Event:
    return asyncio.Event()
