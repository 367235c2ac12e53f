"""Waiting for runs to end: one subscription per process, told apart by run id.

The live copy of an end may be lost while the connection is away, so after a reconnection the log
is asked about every run that is still waited for.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from nats.aio.subscription import Subscription

from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError
from penstock.contracts.facts import RunEnded
from penstock.contracts.ids import shard_of
from penstock.telemetry.logs import EventLog

_SEQUENCE: Final = b"Nats-Sequence: "
journal: Final = EventLog("penstock.gateway.ends")


class LiveFact(NamedTuple):
    """The live copy of a fact, not read yet."""

    subject: str
    seq: int
    body: bytes


def sequence_of(headers: bytes | None) -> int:
    """Return the stream sequence in the headers of a live copy; 0 where there is none."""
    if headers is None:
        return 0
    start = headers.find(_SEQUENCE)
    if start < 0:
        return 0
    start += len(_SEQUENCE)
    return int(headers[start : headers.index(b"\r", start)])


def plain_subject(live_subject: str) -> str:
    """Return the fact's own subject from that of its live copy."""
    return live_subject[len(subjects.LIVE_PREFIX) :]


class EndWatch:
    """Futures of ends, by run id."""

    def __init__(self, bus: Bus, reader: LogReader, shards: int) -> None:
        """Prepare; ``start`` subscribes.

        Args:
            bus: The connection.
            reader: Asked after a reconnection.
            shards: Number of shards of the installation.
        """
        self._bus = bus
        self._reader = reader
        self._shards = shards
        self._waiting: dict[str, list[EndWait]] = {}
        self._subscription: Subscription | None = None
        self._recovery: asyncio.Task[None] | None = None
        self.draining = False
        """Whether the process stops, so that nobody should wait any more."""

    async def start(self) -> None:
        """Listen until ``stop``."""
        self._subscription = await self._bus.nc.subscribe_direct(subjects.LIVE_ENDS, self._on_end)
        self._bus.on_reconnect.append(self._on_reconnect)

    async def stop(self) -> None:
        """Listen no longer."""
        if self._subscription is not None:
            self._bus.on_reconnect.remove(self._on_reconnect)
            await self._bus.nc.unsubscribe_direct(self._subscription)
            self._subscription = None
        if self._recovery is not None:
            self._recovery.cancel()

    def drain(self) -> None:
        """End all waits: those who wait are told how far their runs are."""
        self.draining = True
        for waits in list(self._waiting.values()):
            for wait in list(waits):
                wait.resolve(None)

    def wait(self, tenant: str, run_id: str, seconds: float) -> EndWait:
        """Return the wait for a run's end; begin it before the run, and always ``close`` it."""
        wait = EndWait(self, tenant, run_id, seconds)
        self._waiting.setdefault(run_id, []).append(wait)
        return wait

    def forget(self, wait: EndWait) -> None:
        """Drop a wait that is over."""
        waits = self._waiting.get(wait.run_id)
        if waits is not None and wait in waits:
            waits.remove(wait)
            if not waits:
                del self._waiting[wait.run_id]

    def _on_end(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        waits = self._waiting.pop(subject.split(".", 5)[4], None)
        if waits is not None:
            fact = LiveFact(plain_subject(subject), sequence_of(headers), body)
            for wait in waits:
                wait.resolve(fact)

    def _on_reconnect(self) -> None:
        if self._waiting and (self._recovery is None or self._recovery.done()):
            self._recovery = asyncio.create_task(self._ask_the_log(), name="ends-recovery")

    async def _ask_the_log(self) -> None:
        for run_id in list(self._waiting):
            waits = self._waiting.get(run_id)
            if waits is None:
                continue
            shard = shard_of(run_id, self._shards)
            try:
                stored = await self._reader.read_run(waits[0].tenant, shard, run_id)
            except PenstockError as error:
                # Whoever waits reads the log at the end of the wait anyway.
                journal.warning("ends.recovery_failed", run_id=run_id, code=error.code)
                continue
            if any(isinstance(entry.fact, RunEnded) for entry in stored):
                for wait in self._waiting.pop(run_id, ()):
                    wait.resolve(None)


class EndWait:
    """One request that waits for one run."""

    __slots__ = ("_future", "_timer", "_watch", "run_id", "tenant")

    def __init__(self, watch: EndWatch, tenant: str, run_id: str, seconds: float) -> None:
        """Begin; made by ``EndWatch.wait``."""
        loop = asyncio.get_running_loop()
        self._watch = watch
        self._future: asyncio.Future[LiveFact | None] = loop.create_future()
        self._timer = loop.call_later(seconds, self.resolve, None)
        self.tenant = tenant
        self.run_id = run_id

    def resolve(self, fact: LiveFact | None) -> None:
        """Wake the waiter, with the end or (where the log must be read) without."""
        if not self._future.done():
            self._future.set_result(fact)

    async def end(self) -> LiveFact | None:
        """Return the live copy of the end; ``None`` when time is up or the log must be read."""
        return await self._future

    def close(self) -> None:
        """Stop waiting."""
        self._timer.cancel()
        self._watch.forget(self)
