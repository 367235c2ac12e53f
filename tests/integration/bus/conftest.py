"""Connections of the tests' own to a real server, and facts to append."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Container
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.consumer import Consumer, Handler
from penstock.bus.reader import LogReader
from penstock.bus.topology import ensure, ensure_runner_consumer
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.facts import SignalReceived, fact_bytes
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def fact(payload: Any = None) -> bytes:
    """Return a small fact that can be read back."""
    return fact_bytes(SignalReceived(occurred_at=NOW, name="x", payload=payload))


def more_than(found: Collection[object], count: int) -> Callable[[], bool]:
    """Return a probe for `eventually`."""
    return lambda: len(found) > count


def holds(found: Container[object], wanted: object) -> Callable[[], bool]:
    """Return a probe for `eventually`."""
    return lambda: wanted in found


@dataclass
class Bench:
    """A connection with its writer and reader, and a run of its own."""

    settings: CoreSettings
    bus: Bus
    claims: Claims
    writer: LogWriter
    reader: LogReader
    stack: AsyncExitStack
    tenant: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")
    run_id: str = field(default_factory=lambda: f"{uuid.uuid4().hex[:26].upper()}")
    shard: int = 3

    @property
    def prefix(self) -> str:
        return subjects.run_prefix(self.tenant, self.shard, self.run_id)

    def signal(self, name: str) -> str:
        return subjects.signal(self.prefix, name)

    async def stored(self) -> dict[str, int]:
        """Return what the run's log holds: sequences by the ends of their subjects."""
        found = await self.reader.stored(self.tenant, self.shard, self.run_id)
        return {message.subject.removeprefix(self.prefix + "."): message.seq for message in found}

    def batches_only(self) -> None:
        """Make the writer send whatever it has as an atomic batch."""
        self.writer.cost.slow = True
        self.writer.cost.single = 10.0

    async def runner_queue(self) -> tuple[str, str]:
        """Create the durable of a new queue; return queue and durable."""
        queue = f"q{uuid.uuid4().hex[:12]}"
        return queue, await ensure_runner_consumer(self.bus, self.settings, "tool", queue)

    def step(self, queue: str, step_id: str, decision: int = 1) -> str:
        return subjects.out(self.prefix, decision, subjects.step_suffix("tool", queue, step_id, 1))

    async def consume(self, durable: str, handler: Handler, **options: Any) -> Consumer:
        options = {
            "concurrency": 8,
            "ack_wait_seconds": self.settings.ack_wait_seconds,
            **options,
        }
        consumer = Consumer(self.bus, subjects.RUNS, durable, handler, **options)
        await consumer.start()
        self.stack.push_async_callback(drain, consumer)
        return consumer

    async def consumer_info(self, durable: str, stream: str = subjects.RUNS) -> dict[str, Any]:
        return await self.bus.api(f"CONSUMER.INFO.{stream}.{durable}")


async def drain(consumer: Consumer) -> None:
    if not consumer._draining and not consumer._bus.nc.is_closed:
        await consumer.drain(grace_seconds=0.1)


OpenBench = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def open_bench(tmp_path: Path) -> AsyncIterator[OpenBench]:
    async with AsyncExitStack() as stack:

        async def open_bench(server: NatsServer, **changes: Any) -> Bench:
            settings = CoreSettings(
                nats_url=server.url,
                data_dir=tmp_path,
                instance_id=f"test-{uuid.uuid4().hex[:12]}",
                **changes,
            )
            bus = await connect(settings, name="test")
            stack.push_async_callback(bus.close)
            await ensure(bus, settings)
            claims = Claims(bus, settings.claim_threshold_bytes)
            writer = await LogWriter(bus, settings, claims).start()
            stack.push_async_callback(writer.close)
            return Bench(settings, bus, claims, writer, LogReader(bus, claims), stack)

        yield open_bench


@pytest.fixture
async def bench(nats_server: NatsServer, open_bench: OpenBench) -> Bench:
    return await open_bench(nats_server)
