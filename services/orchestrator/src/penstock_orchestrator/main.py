"""Composition root of the orchestrator: the engine and the scheduler."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import timedelta
from typing import Final

import uvloop

from penstock.bus.capacity import LogCapacity
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, JetStreamError, connect
from penstock.bus.consumer import Consumer
from penstock.bus.history import HistoryReader
from penstock.bus.restore import Restorer
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, PenstockError
from penstock.memory import settle
from penstock.telemetry.health import HealthServer
from penstock.telemetry.logs import EventLog
from penstock.telemetry.process import observed
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.leases import ShardLeases
from penstock_orchestrator.engine.metrics import ENGINE_SHARDS, show_unserved
from penstock_orchestrator.engine.pools import PoolWatch
from penstock_orchestrator.engine.reconciler import Reconciler
from penstock_orchestrator.engine.retention import LogRetention
from penstock_orchestrator.engine.runs import Plans, Slot
from penstock_orchestrator.engine.windows import Windows
from penstock_orchestrator.schedules.scheduler import Scheduler
from penstock_orchestrator.settings import OrchestratorSettings

log = EventLog(__name__)

_SCAN_AGAIN_SECONDS: Final = 1.0
_SWEEP_SECONDS: Final = 20.0


class EngineProcess:
    """The engine with all that it needs; the shards come and go by lease."""

    def __init__(self, settings: OrchestratorSettings, bus: Bus, writer: LogWriter) -> None:
        """Put the parts together; ``start`` them."""
        self._settings = settings
        self._bus = bus
        self._writer = writer
        reader = HistoryReader(bus, Claims(bus, settings.claim_threshold_bytes))
        self._windows: Windows[Slot] = Windows(factor=settings.window_factor)
        self.engine = Engine(
            bus,
            writer,
            reader,
            Plans(bus),
            shards=settings.shards,
            windows=self._windows,
            run_max_work=settings.run_max_work,
        )
        self._pools = PoolWatch(bus, self.engine.resize_pool)
        self._sweeper: asyncio.Task[None] | None = None
        self._reconciler = Reconciler(
            bus,
            self.engine,
            idle_seconds=settings.reconcile_seconds,
            shards=settings.shards,
            held=lambda: self.leases.held,
        )
        self._consumers: dict[int, list[Consumer]] = {}
        self._scans: set[asyncio.Task[None]] = set()
        self.leases = ShardLeases(
            bus,
            settings.instance_id,
            shards=settings.shards,
            ttl_seconds=settings.lease_ttl_seconds,
            on_won=self._won,
            on_lost=self._lost,
        )
        self._scheduler = Scheduler(
            bus,
            writer,
            LogCapacity(bus, settings.log_max_bytes, settings.nats_monitor_url),
            shards=settings.shards,
            held=lambda: self.leases.held,
        )
        self._retention = LogRetention(
            bus,
            reader,
            keep=timedelta(days=settings.log_keep_days),
            max_bytes=settings.log_max_bytes,
            shards=settings.shards,
            held=lambda: self.leases.held,
        )

    async def start(self) -> None:
        """Take shards and begin to work."""
        await self._pools.start()
        await self.leases.start()
        self._reconciler.start()
        await self._scheduler.start()
        self._retention.start()
        self._sweeper = asyncio.create_task(self._sweep(), name="slot-sweeper")

    async def stop(self) -> None:
        """Stop taking work, finish work under way, give the shards back."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._pools.stop()
        await self._scheduler.stop()
        await self._retention.stop()
        await self._reconciler.stop()
        await self.leases.stop()
        await self._writer.close()

    async def _sweep(self) -> None:
        """Release the concurrency slots of ended runs, and count the steps without a runner."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            show_unserved(self._windows.unserved())
            try:
                await self.engine.admission.sweep(self.leases.held)
            except (PenstockError, JetStreamError) as error:
                log.warning("engine.sweep_failed", error=str(error))

    async def _won(self, shard: int) -> None:
        bus, settings = self._bus, self._settings

        async def recreate() -> None:
            await ensure(bus, settings)

        sources = (
            (subjects.RUNS, subjects.engine_consumer(shard), self.engine.on_input),
            (subjects.TIMERS, subjects.timer_consumer(shard), self.engine.on_timer),
        )
        consumers = [
            Consumer(
                bus,
                stream,
                durable,
                handler,
                concurrency=settings.engine_concurrency,
                ack_wait_seconds=settings.ack_wait_seconds,
                recreate=recreate,
            )
            for stream, durable, handler in sources
        ]
        self._consumers[shard] = consumers
        await self.engine.cancels.watch(shard)
        for consumer in consumers:
            await consumer.start()
        ENGINE_SHARDS.set(len(self._consumers))
        scan = asyncio.create_task(self._scan(shard))
        self._scans.add(scan)
        scan.add_done_callback(self._scans.discard)

    async def _scan(self, shard: int) -> None:
        # Only this scan finds runs whose next input will never come: it must succeed once.
        while shard in self._consumers:
            try:
                found = await self._reconciler.scan(shard)
            except PenstockError as error:
                log.warning("engine.scan_failed", shard=shard, code=error.code)
                await asyncio.sleep(_SCAN_AGAIN_SECONDS)
            else:
                if found:
                    log.info("engine.open_runs_found", shard=shard, runs=found)
                return

    async def _lost(self, shard: int) -> None:
        for consumer in self._consumers.pop(shard, []):
            await consumer.drain(grace_seconds=5)
        await self.engine.cancels.forget(shard)
        self.engine.forget_shard(shard)
        ENGINE_SHARDS.set(len(self._consumers))


async def run_engine(settings: OrchestratorSettings) -> None:
    """Run the engine until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    bus = await connect(settings, name=f"orchestrator {settings.instance_id}")
    await ensure(bus, settings)
    restorer = Restorer(bus, settings)
    restorer.start()
    claims = Claims(bus, settings.claim_threshold_bytes)
    writer = await LogWriter(bus, settings, claims).start()

    process = EngineProcess(settings, bus, writer)

    async def canary() -> None:
        await writer.canary()
        if abandoned := process.leases.abandoned:
            shown = ", ".join(map(str, abandoned))
            raise InvariantError("shards_abandoned", f"no engine holds shard {shown}")

    health = HealthServer(host=settings.metrics_host, port=settings.metrics_port, canary=canary)
    await health.start()
    await process.start()
    settle()
    log.info("engine.ready", shards=process.leases.held)
    await stopped.wait()
    log.info("engine.draining")
    await process.stop()
    restorer.stop()
    await health.stop()
    await bus.close()


def run(settings: OrchestratorSettings) -> None:
    """Run the engine until SIGTERM or SIGINT."""
    try:
        with observed(settings, "orchestrator"):
            uvloop.run(run_engine(settings))
    except PenstockError as error:
        log.exception("orchestrator.failed", code=error.code, reason=error.message)
        sys.exit(1)
