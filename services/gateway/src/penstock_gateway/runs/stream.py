"""Event streams: the sockets and subscriptions around a ``Transcript``.

What arrives is kept in a bounded buffer while the client is slow. Where that overflows, or the
connection to the bus was replaced, the log is read again: memory stays bounded, nothing is lost.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from nats.aio.subscription import Subscription
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from penstock import clock
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, RejectedError, TransientError, finding
from penstock.contracts.ids import shard_of
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import decode
from penstock.runs.events import ClientEvent, EventType
from penstock.runs.state import Entry
from penstock.telemetry.logs import EventLog
from penstock_gateway.core.access import Permit
from penstock_gateway.core.transcript import (
    KEEP_ALIVE,
    OPENING,
    Delta,
    LogNeeded,
    PiecesNeeded,
    Transcript,
)
from penstock_gateway.metrics import STREAM_REREADS, STREAMS_OPEN
from penstock_gateway.raw import RawHeaders
from penstock_gateway.runs.read import Runs, available
from penstock_gateway.runs.wait import LiveFact, live_fact

_MESSAGE_OVERHEAD_BYTES: Final = 256
_RETRY_SECONDS: Final = 0.5
_PATIENCE: Final = 120
"""Failed reads in a row (a minute) after which a stream ends; the client comes back by itself."""

log = EventLog(__name__)

_Read = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class LiveDelta:
    """The live copy of a batch of pieces, not read yet."""

    subject: str
    body: bytes


@dataclass(slots=True)
class Streams:
    """Makes event streams, and ends them all when the process stops."""

    bus: Bus
    reader: LogReader
    runs: Runs
    shards: int
    buffer_bytes: int
    """Kept for each slow client."""
    keepalive_seconds: float
    """Silence after which a comment is sent."""
    per_key: int
    """Streams that one API key may have open."""
    draining: bool = False
    open_streams: set[RunStream] = field(default_factory=set)
    open_by_key: Counter[str] = field(default_factory=Counter)

    async def open(
        self,
        tenant: str,
        run_id: str,
        permit: Permit,
        *,
        after: int = 0,
        types: frozenset[EventType] | None = None,
    ) -> RunStream:
        """Return a stream that is subscribed to a run already; ``close`` it.

        Raises:
            RejectedError: ``too_many_streams``: the caller's key has all that it may have.
        """
        key_id = permit.key_id
        if key_id is not None and self.open_by_key[key_id] >= self.per_key:
            allowed = f"at most {self.per_key} streams of one key"
            raise RejectedError(
                "too_many_streams",
                "the API key has too many open event streams",
                details=(finding("authorization", "too many streams", allowed),),
            )
        transcript = Transcript(run_id, after=after, types=types)
        stream = RunStream(self, tenant, run_id, transcript, permit)
        await stream.subscribe()
        return stream

    def wake(self) -> None:
        """Make all streams check whether they may continue."""
        for stream in self.open_streams:
            stream.wake()

    def drain(self) -> None:
        """End all streams; any replica resumes them."""
        self.draining = True
        self.wake()


class RunStream:
    """One client's stream of one run."""

    def __init__(
        self, streams: Streams, tenant: str, run_id: str, transcript: Transcript, permit: Permit
    ) -> None:
        """Prepare; made by ``Streams.open``."""
        self._permit = permit
        self._streams = streams
        self._tenant = tenant
        self._run_id = run_id
        self._transcript = transcript
        self._buffer: deque[LiveFact | LiveDelta] = deque()
        self._buffered_bytes = 0
        self._overflowed = False
        self._stale = True
        """Whether the log must be read before the buffer is used."""
        self._subscriptions: list[Subscription] = []
        self._wakeup = asyncio.Event()
        self._written_at = 0.0
        self._tick_due = False
        self._gone = False
        self._unserved: Counter[str] = Counter()
        """Steps by pool without a runner, as last shown."""

    # -- subscriptions -------------------------------------------------------------------------

    async def subscribe(self) -> None:
        """Begin to collect what happens from now on."""
        shard = shard_of(self._run_id, self._streams.shards)
        bus = self._streams.bus
        facts = subjects.live(subjects.run_filter(self._tenant, shard, self._run_id))
        self._subscriptions.append(await bus.nc.subscribe_direct(facts, self._on_fact))
        if self._transcript.wants_deltas:
            deltas = subjects.delta_filter(self._tenant, shard, self._run_id)
            self._subscriptions.append(await bus.nc.subscribe_direct(deltas, self._on_delta))
        bus.on_reconnect.append(self._on_reconnect)
        self._streams.open_streams.add(self)
        if self._permit.key_id is not None:
            self._streams.open_by_key[self._permit.key_id] += 1
        STREAMS_OPEN.inc()

    async def close(self) -> None:
        """End the subscriptions."""
        bus = self._streams.bus
        if self in self._streams.open_streams:
            self._streams.open_streams.remove(self)
            if (key_id := self._permit.key_id) is not None:
                self._streams.open_by_key[key_id] -= 1
                self._streams.open_by_key += Counter()  # drops keys without a stream
            STREAMS_OPEN.dec()
            bus.on_reconnect.remove(self._on_reconnect)
        while self._subscriptions:
            await bus.nc.unsubscribe_direct(self._subscriptions.pop())

    def begin_with(self, entry: Entry) -> None:
        """Start with the run's first fact, stored after ``subscribe``; the log is not read."""
        self._transcript.history([entry])
        self._stale = False

    @property
    def finished(self) -> bool:
        """Whether all that there is has been written, the end included."""
        return self._transcript.finished

    def wake(self) -> None:
        """Make the stream check its buffer and flags."""
        self._wakeup.set()

    def _on_fact(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        self._collect(live_fact(subject, body, headers), len(body))

    def _on_delta(self, subject: str, _reply: str, body: bytes, _headers: bytes | None) -> None:
        self._collect(LiveDelta(subject, body), len(body))

    def _collect(self, item: LiveFact | LiveDelta, size: int) -> None:
        if self._overflowed:
            return
        self._buffered_bytes += size + _MESSAGE_OVERHEAD_BYTES
        if self._buffered_bytes > self._streams.buffer_bytes:
            self._overflowed = self._stale = True
            STREAM_REREADS.inc()
            self._buffer.clear()
            self._buffered_bytes = 0
        else:
            self._buffer.append(item)
        self._wakeup.set()

    def _on_reconnect(self) -> None:
        self._stale = True
        STREAM_REREADS.inc()
        self._wakeup.set()

    # -- writing -------------------------------------------------------------------------------

    async def write_to(self, send: Send) -> None:
        """Send chunks until the run has ended, or the stream must end.

        It must when the client is gone, its key was revoked or has expired, or the process stops.
        The key is checked before every write, and at least at every keep-alive.
        """
        loop = asyncio.get_running_loop()
        interval = self._streams.keepalive_seconds
        ticker = loop.call_later(interval, self._tick)
        try:
            await self._send(send, OPENING)
            while not (self._gone or self._streams.draining) and self._permit.valid():
                self._wakeup.clear()
                await self._catch_up()
                await self._flush(send)
                if self._transcript.finished:
                    return
                await self._wakeup.wait()
                if self._tick_due:
                    self._tick_due = False
                    if loop.time() - self._written_at >= interval * 0.99:
                        await self._patiently(self._find_unserved)
                        await self._flush(send)
                        await self._send(send, KEEP_ALIVE)
                    wait = self._written_at + interval - loop.time()
                    ticker = loop.call_later(max(wait, 0.01), self._tick)
        finally:
            ticker.cancel()

    def _tick(self) -> None:
        self._tick_due = True
        self._wakeup.set()

    def hang_up(self) -> None:
        """Note that the client is gone."""
        self._gone = True
        self._wakeup.set()

    async def _send(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._written_at = asyncio.get_running_loop().time()

    async def _flush(self, send: Send) -> None:
        """Send all complete chunks and read missing facts; a slow client makes this slow."""
        transcript = self._transcript
        while not self._gone and self._permit.valid():
            if chunk := transcript.take():
                await self._send(send, chunk)
            elif transcript.need is None or transcript.finished:
                return
            else:
                await self._patiently(self._supply)

    # -- reading -------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Move the buffer into the transcript, after a read of the log where one is due."""
        while self._stale and not self._gone:
            self._overflowed = self._stale = False
            await self._patiently(self._read_history)
        buffer, transcript = self._buffer, self._transcript
        while buffer:
            item = buffer.popleft()
            if isinstance(item, LiveDelta):
                if (delta := _read_delta(item)) is not None:
                    transcript.delta(delta.attempt, delta.batch)
            else:
                entry = await self._streams.reader.decode(item.subject, item.seq, item.body)
                transcript.fact(entry)
        self._buffered_bytes = 0

    async def _patiently(self, read: _Read) -> None:
        """Read, again and again while the bus is away."""
        for _ in range(_PATIENCE):
            try:
                await read()
            except TransientError as error:
                log.warning("stream.read_failed", run_id=self._run_id, code=error.code)
                if self._gone or self._streams.draining:
                    return
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return
        self._gone = True

    async def _read_history(self) -> None:
        entries = await self._streams.runs.entries(self._tenant, self._run_id)
        deltas = await self._read_deltas() if self._transcript.wants_deltas else ()
        self._transcript.history(entries, deltas)

    async def _find_unserved(self) -> None:
        """Show which queues of a silent run no runner serves, each time that this changes."""
        pools = self._transcript.open_pools
        unserved = await self._streams.runs.unserved(self._tenant, self._run_id, pools)
        if unserved != self._unserved:
            for pool, steps in unserved.items():
                event = ClientEvent(
                    type=EventType.QUEUE_UNSERVED,
                    run_id=self._run_id,
                    at=clock.now(),
                    data={"queue": pool, "steps": steps},
                )
                self._transcript.live(event)
            self._unserved = unserved

    async def _supply(self) -> None:
        need = self._transcript.need
        if isinstance(need, PiecesNeeded):
            self._transcript.refill(await self._read_deltas(need))
        elif isinstance(need, LogNeeded):
            self._transcript.confirm(
                await self._streams.runs.entries(self._tenant, self._run_id, at_least_seq=need.seq)
            )

    async def _read_deltas(self, need: PiecesNeeded | None = None) -> Sequence[Delta]:
        shard = shard_of(self._run_id, self._streams.shards)
        if need is None:
            subject_filter = subjects.delta_filter(self._tenant, shard, self._run_id)
        else:
            step_id, attempt = need.attempt
            subject_filter = subjects.delta(self._tenant, shard, self._run_id, step_id, attempt)
        found: list[Delta] = []
        with available():
            async for page in self._streams.reader.pages(subjects.DELTAS, subject_filter):
                for stored in page:
                    delta = _read_delta(LiveDelta(stored.subject, stored.body))
                    if delta is not None:
                        found.append(delta)
        return found


def _read_delta(item: LiveDelta) -> Delta | None:
    try:
        return Delta(subjects.parse_delta(item.subject), decode(DeltaBatch, item.body))
    except ValueError as error:
        # Deltas are best effort: the result of the step holds the whole text.
        log.warning("stream.unreadable_delta", subject=item.subject, error=str(error)[:200])
        return None


class EventStreamAnswer(Response):
    """An answer that is an event stream; it closes the stream when it is over."""

    media_type = "text/event-stream"

    def __init__(self, stream: RunStream, headers: RawHeaders | None = None) -> None:
        """Answer with ``stream``.

        Args:
            stream: Subscribed already.
            headers: Further headers, names in lower case.
        """
        self.stream = stream
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            # Proxies such as nginx would hold events back.
            (b"x-accel-buffering", b"no"),
            *(headers or ()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send events until there are no more."""
        listener = asyncio.create_task(self._listen(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self.stream.write_to(send)
            except InvariantError:
                log.exception("stream.broken")
            if self.stream.finished:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            # Else the reply stays incomplete, so that the client reconnects for the rest.
        finally:
            listener.cancel()
            await self.stream.close()

    async def _listen(self, receive: Receive) -> None:
        message: Message = await receive()
        while message["type"] != "http.disconnect":
            message = await receive()
        self.stream.hang_up()
