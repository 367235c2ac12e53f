"""Waiting until a run has ended or needs its client to execute a tool.

One subscription per process hears the ends of all runs. The live copy of an end may be lost while
the connection is down, so after a reconnection the log is read for every run that is waited for.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from nats.aio.subscription import Subscription

from penstock.bus.claims import CLAIM_MARK
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError
from penstock.contracts.facts import RunEnded
from penstock.contracts.ids import shard_of
from penstock.runs.state import NodeRecordState, RunState
from penstock.runs.views import awaited
from penstock.telemetry.logs import EventLog
from penstock_gateway.runs.plans import Plans
from penstock_gateway.runs.read import Runs

_SEQUENCE: Final = b"Nats-Sequence: "
_CLIENT_TOOL: Final = b'"client_tool"'
log = EventLog(__name__)


class LiveFact(NamedTuple):
    """The live copy of a fact, not decoded yet."""

    subject: str
    seq: int
    body: bytes


def live_fact(live_subject: str, body: bytes, headers: bytes | None) -> LiveFact:
    """Return the live copy of a fact under the fact's own subject; sequence 0 if it has none."""
    seq = 0
    if headers is not None and (start := headers.find(_SEQUENCE)) >= 0:
        start += len(_SEQUENCE)
        seq = int(headers[start : headers.index(b"\r", start)])
    return LiveFact(live_subject[len(subjects.LIVE_PREFIX) :], seq, body)


def open_calls(state: RunState) -> tuple[NodeRecordState, ...]:
    """Return the pending client tool calls of a run."""
    return tuple(one for one in awaited(state) if one.node_record.kind == "client_tool")


class RunWait:
    """One request that waits for one run; ``RunWaiter.open`` makes it, ``close`` it."""

    __slots__ = ("_calls", "_future", "_timer", "_waiter", "over", "run_id", "seen_seq", "tenant")

    def __init__(self, waiter: RunWaiter, tenant: str, run_id: str, seconds: float) -> None:
        """Wait for at most so many seconds."""
        loop = asyncio.get_running_loop()
        self._waiter = waiter
        self._future: asyncio.Future[LiveFact | None] = loop.create_future()
        self._timer = loop.call_later(seconds, self._end)
        self._calls: Subscription | None = None
        self.tenant = tenant
        self.run_id = run_id
        self.over = seconds <= 0
        """Whether the time is up."""
        self.seen_seq = 0
        """Sequence of the latest live copy that woke the request: reads must not lag behind it."""

    def wake(self, fact: LiveFact | None = None) -> None:
        """Wake the request, with the end of the run, or (``None``) to read the log."""
        if not self._future.done():
            self._future.set_result(fact)

    def _end(self) -> None:
        self.over = True
        self.wake()

    async def news(self) -> LiveFact | None:
        """Return the live copy of the run's end, or ``None`` if the log must be read."""
        fact = await self._future
        self._future = asyncio.get_running_loop().create_future()
        return fact

    async def watch_calls(self, bus: Bus, subject: str) -> None:
        """Wake also when a decision may need the client; return when subscribed."""
        self._calls = await bus.nc.subscribe_direct(subject, self._on_decision)

    @property
    def watches_calls(self) -> bool:
        """Whether decisions wake the request."""
        return self._calls is not None

    def _on_decision(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        if _CLIENT_TOOL in body or body.startswith(CLAIM_MARK):
            self.seen_seq = max(self.seen_seq, live_fact(subject, body, headers).seq)
            self.wake()

    async def close(self) -> None:
        """Stop waiting."""
        self._timer.cancel()
        await self._waiter.forget(self, self._calls)
        self._calls = None


class RunWaiter:
    """Waits of any request for any run."""

    def __init__(self, bus: Bus, reader: LogReader, runs: Runs, plans: Plans, shards: int) -> None:
        """Prepare; ``start`` subscribes.

        Args:
            bus: The connection.
            reader: Decodes ends; reads the log after a reconnection.
            runs: Reads the runs.
            plans: Knows which plans have client tools.
            shards: Number of shards of the installation.
        """
        self._bus = bus
        self._reader = reader
        self._runs = runs
        self._plans = plans
        self._shards = shards
        self._waits: dict[str, list[RunWait]] = {}
        self._subscription: Subscription | None = None
        self._recovery: asyncio.Task[None] | None = None
        self.draining = False
        """Whether the process stops, so that no request should wait."""

    async def start(self) -> None:
        """Listen until ``stop``."""
        self._subscription = await self._bus.nc.subscribe_direct(subjects.LIVE_ENDS, self._on_end)
        self._bus.on_reconnect.append(self._on_reconnect)

    async def stop(self) -> None:
        """Stop listening."""
        if self._subscription is not None:
            self._bus.on_reconnect.remove(self._on_reconnect)
            await self._bus.nc.unsubscribe_direct(self._subscription)
            self._subscription = None
        if self._recovery is not None:
            self._recovery.cancel()

    def drain(self) -> None:
        """End all waits: each request replies with the run as it is."""
        self.draining = True
        for waits in list(self._waits.values()):
            for wait in list(waits):
                wait.wake()

    def open(self, tenant: str, run_id: str, seconds: float) -> RunWait:
        """Begin to wait, at most so many seconds, also before the run is started; ``close`` it."""
        wait = RunWait(self, tenant, run_id, seconds)
        self._waits.setdefault(run_id, []).append(wait)
        return wait

    async def watch_calls(self, wait: RunWait, plan_digest: str) -> bool:
        """Wake for client tool calls as well, if the plan of the run has client tools.

        Returns:
            Whether it has.

        Raises:
            TransientError: The bus did not answer.
        """
        if not (await self._plans.gist(plan_digest)).client_tools:
            return False
        shard = shard_of(wait.run_id, self._shards)
        prefix = subjects.run_prefix(wait.tenant, shard, wait.run_id)
        await wait.watch_calls(self._bus, subjects.live(subjects.decisions_filter(prefix)))
        return True

    async def forget(self, wait: RunWait, calls: Subscription | None) -> None:
        """Drop a wait and its own subscription."""
        waits = self._waits.get(wait.run_id)
        if waits is not None and wait in waits:
            waits.remove(wait)
            if not waits:
                del self._waits[wait.run_id]
        if calls is not None:
            await self._bus.nc.unsubscribe_direct(calls)

    async def end(self, wait: RunWait) -> tuple[int, RunEnded] | None:
        """Return sequence and fact of the run's end; ``None`` if ``outcome`` must read the log.

        Raises:
            TransientError: The bus did not answer.
        """
        live = await wait.news()
        if live is None:
            return None
        entry = await self._reader.decode(*live)
        return (entry.seq, entry.fact) if isinstance(entry.fact, RunEnded) else None

    async def outcome(self, wait: RunWait) -> RunState:
        """Return a run once it has ended or needs its client, or as it is when the time is up.

        Raises:
            RejectedError: ``run_not_found``.
            TransientError: The log did not answer.
        """
        while True:
            over = wait.over
            state = await self._runs.state(wait.tenant, wait.run_id, at_least_seq=wait.seen_seq)
            if state.ended is not None or over or self.draining or open_calls(state):
                return state
            if (
                not wait.watches_calls
                and state.invoked is not None
                and await self.watch_calls(wait, state.invoked.plan_digest)
            ):
                # A call may have been decided between the read and the subscription.
                continue
            live = await wait.news()
            if live is not None:
                wait.seen_seq = max(wait.seen_seq, live.seq)

    async def wait_for(self, tenant: str, run_id: str, seconds: float) -> RunState:
        """Wait for a run that exists; result and errors as for ``outcome``."""
        wait = self.open(tenant, run_id, seconds)
        try:
            return await self.outcome(wait)
        finally:
            await wait.close()

    def _on_end(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        waits = self._waits.pop(subject.split(".", 5)[4], None)
        if waits is not None:
            fact = live_fact(subject, body, headers)
            for wait in waits:
                wait.wake(fact)

    def _on_reconnect(self) -> None:
        for waits in self._waits.values():
            for wait in waits:
                if wait.watches_calls:
                    wait.wake()
        if self._waits and (self._recovery is None or self._recovery.done()):
            self._recovery = asyncio.create_task(self._read_the_log(), name="wait-recovery")

    async def _read_the_log(self) -> None:
        for run_id in list(self._waits):
            waits = self._waits.get(run_id)
            if waits is None:
                continue
            shard = shard_of(run_id, self._shards)
            try:
                stored = await self._reader.read_run(waits[0].tenant, shard, run_id)
            except PenstockError as error:
                # Each request reads the log at the end of its wait anyway.
                log.warning("wait.recovery_failed", run_id=run_id, code=error.code)
                continue
            if any(isinstance(entry.fact, RunEnded) for entry in stored):
                for wait in self._waits.pop(run_id, ()):
                    wait.wake()
