"""The parts of one gateway process and how they hold together."""

from __future__ import annotations

from penstock.bus import topology
from penstock.bus.capacity import LogCapacity
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.restore import Restorer
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.runners import KeyRecord, RunnerRecord, WebhookRecord
from penstock_gateway.archive.requests import Archive
from penstock_gateway.core.access import Caller, caller_of
from penstock_gateway.definitions.mirrors import Mirror
from penstock_gateway.definitions.registry import Registry
from penstock_gateway.middleware.entry import Authenticator
from penstock_gateway.runs.answer import Answering
from penstock_gateway.runs.control import Controls
from penstock_gateway.runs.pending import PendingIndex
from penstock_gateway.runs.plans import Plans
from penstock_gateway.runs.read import Runs
from penstock_gateway.runs.signals import Signals
from penstock_gateway.runs.start import Starter
from penstock_gateway.runs.stream import Streams
from penstock_gateway.runs.wait import RunWaiter
from penstock_gateway.schedules.store import Schedules
from penstock_gateway.settings import GatewaySettings


def _caller(value: bytes) -> Caller:
    return caller_of(KeyRecord.model_validate_json(value))


class Gateway:
    """Everything that a handler needs. ``open`` it on the loop that serves requests."""

    bus: Bus
    writer: LogWriter
    reader: LogReader
    published: Mirror[PublishedVersion]
    keys: Mirror[Caller]
    webhooks: Mirror[WebhookRecord]
    runners: Mirror[RunnerRecord]
    archive: Archive
    registry: Registry
    plans: Plans
    runs: Runs
    waiter: RunWaiter
    pending: PendingIndex
    signals: Signals
    answering: Answering
    controls: Controls
    schedules: Schedules
    starter: Starter
    streams: Streams
    authenticator: Authenticator
    _restorer: Restorer

    def __init__(self, settings: GatewaySettings) -> None:
        """Keep the settings; nothing is connected yet."""
        self.settings = settings

    async def open(self) -> None:
        """Connect to the bus and fill the mirrors.

        Raises:
            TransientError: ``bus_unreachable``.
            InvariantError: The server is too old, or its streams differ from ours.
        """
        settings = self.settings
        self.bus = bus = await connect(settings, name=f"gateway {settings.instance_id}")
        await topology.ensure(bus, settings)
        self._restorer = Restorer(bus, settings)
        self._restorer.start()
        claims = Claims(bus, settings.claim_threshold_bytes)
        self.reader = LogReader(bus, claims)
        self.writer = await LogWriter(bus, settings, claims).start()
        self.published = Mirror(bus, subjects.PUBLISHED, PublishedVersion.model_validate_json)
        self.keys = Mirror(bus, subjects.KEYS, _caller, removed=self._on_key_removed)
        self.webhooks = Mirror(bus, subjects.WEBHOOKS, WebhookRecord.model_validate_json)
        self.runners = Mirror(bus, subjects.RUNNERS, RunnerRecord.model_validate_json)
        for mirror in (self.published, self.keys, self.webhooks, self.runners):
            await mirror.start()
        self.archive = Archive(bus)
        self.registry = Registry(bus, self.published, self.webhooks, self.keys)
        self.plans = Plans(bus)
        self.runs = Runs(
            bus, self.reader, self.archive, self.plans, self.runners.values, settings.shards
        )
        self.waiter = RunWaiter(bus, self.reader, self.runs, self.plans, settings.shards)
        await self.waiter.start()
        self.pending = PendingIndex(self.reader)
        sessions = Bucket(bus, subjects.SESSIONS)
        self.signals = Signals(self.writer, self.reader, self.runs, self.pending, sessions)
        self.answering = Answering(self.runs, self.signals)
        self.controls = Controls(
            bus, self.writer, self.reader, self.archive, self.runs, self.signals
        )
        self.schedules = Schedules(bus)
        self.starter = Starter(
            bus,
            self.writer,
            self.reader,
            self.published,
            self.runs,
            LogCapacity(bus, settings.log_max_bytes, settings.nats_monitor_url),
            shards=settings.shards,
            history_messages=settings.history_messages,
        )
        self.streams = Streams(
            bus,
            self.reader,
            self.runs,
            shards=settings.shards,
            buffer_bytes=settings.sse_buffer_bytes,
            keepalive_seconds=settings.sse_keepalive_seconds,
            per_key=settings.sse_streams_per_key,
        )
        self.authenticator = Authenticator(settings, self.keys.values)

    def _on_key_removed(self) -> None:
        self.streams.wake()

    def drain(self) -> None:
        """End waits and event streams, so that the process may stop; clients resume elsewhere."""
        self.waiter.drain()
        self.streams.drain()

    async def close(self) -> None:
        """Wait for pending writes, then close the connection."""
        self._restorer.stop()
        await self.waiter.stop()
        for mirror in (self.published, self.keys, self.webhooks, self.runners):
            await mirror.stop()
        await self.writer.close()
        await self.bus.close()
