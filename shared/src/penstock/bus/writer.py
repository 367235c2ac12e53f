"""The log writer: one per process, with group commit.

A lone message goes out at once. What gathers while the stream is busy goes out together: as
single publishes in flight side by side where acknowledgements are cheap, as one atomic batch where
each costs an fsync and a batch is cheaper. Which it is, the writer measures. A batch that is
refused is sent again message by message, so that each gets its own answer.

A fact that was sent and never acknowledged is sent again; if the stream then refuses it, the
stored message decides: the same bytes mean success, others a conflict.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from nats.errors import TimeoutError as NatsTimeoutError

from penstock.bus.batching import CommitCost
from penstock.bus.claims import Claims
from penstock.bus.client import append_headers
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.reader import leader_read
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, InvariantError, TransientError
from penstock.settings import CoreSettings
from penstock.telemetry.logs import EventLog
from penstock.telemetry.metrics import BUS_COMMIT_MESSAGES, BUS_COMMIT_SECONDS
from penstock.telemetry.tallies import WRITER

log = EventLog(__name__)

SUBJECT_TAKEN: Final = 10077
_FENCED: Final = frozenset({10071, 10164})
_UNAVAILABLE: Final = 503
_PLAIN_ACK: Final = b'{"stream":'
_TAKEN_TEXT: Final = "maximum messages per subject exceeded"
"""The server gives a full stream or disk the same code as a taken subject."""
_UNAVAILABLE_SECONDS: Final = 0.25
_LOG: Final = subjects.RUN_SPACE.removesuffix(">")

# Not Final: tests change them.
_ACK_TIMEOUT_SECONDS: float = 5.0
_GIVE_UP_SECONDS: float = 30.0
_SWEEP_SECONDS: Final = 1.0
_MAX_BATCH: Final = 500
_MAX_BATCH_BYTES: Final = 4 * 2**20
_MAX_IN_FLIGHT: Final = 4096


@dataclass(frozen=True, slots=True)
class Record:
    """One message to append.

    ``fence`` is a filter that must match no stored message yet; ``headers`` are kept with the
    message.
    """

    subject: str
    body: bytes
    fence: str | None = None
    headers: dict[str, str] | None = None


@dataclass(slots=True, eq=False)
class _Item:
    record: Record
    done: asyncio.Future[int]
    give_up_at: float
    sent_at: float = 0.0
    sends: int = 0
    followers: tuple[_Item, ...] = ()
    """Sent only after this one is acknowledged, unless all go in one atomic batch."""


@dataclass(slots=True, eq=False)
class _Flight:
    """What one acknowledgement answers: a single message, or a whole batch by its last one."""

    items: list[_Item]
    group: _Group | None = None


@dataclass(slots=True, eq=False)
class _Group:
    """Messages sent together; the next group waits for it where acknowledgements are slow."""

    sent_at: float
    size: int
    batch: bool
    open: int = field(default=0)


class LogWriter:
    """Appends to streams of the installation; safe to share by all tasks of a process."""

    def __init__(self, bus: Bus, settings: CoreSettings, claims: Claims) -> None:
        """Create a writer; ``start`` it before use."""
        self._bus = bus
        self._claims = claims
        self._instance = settings.instance_id
        self._prefix = bus.nc.new_inbox() + "."
        self._strip = len(self._prefix)
        self._next = 0
        self._flights: dict[str, _Flight] = {}
        self._queue: deque[_Item] = deque()
        self._flush_due = False
        self._groups = 0
        self.cost = CommitCost()
        self._loop = asyncio.get_running_loop()
        self._sweeper: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[None]] = set()
        self._measure_again = False

    async def start(self) -> LogWriter:
        """Subscribe to acknowledgements and measure what one costs."""
        await self._bus.nc.subscribe_direct(self._prefix + "*", self._on_ack)
        self._bus.on_reconnect.append(self._resend_all)
        self._sweeper = asyncio.create_task(self._sweep(), name="writer-sweep")
        await self._calibrate()
        return self

    async def close(self) -> None:
        """Wait for messages in flight (10 s at most), then stop."""
        try:
            async with asyncio.timeout(10):
                await self._idle()
        except TimeoutError:
            log.error("writer.closed_with_messages_in_flight")  # noqa: TRY400 - the time limit has no traceback of use
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _idle(self) -> None:
        while self._queue or self._flights or self._settling:  # noqa: ASYNC110 - only at the end
            await asyncio.sleep(0.005)

    async def _calibrate(self) -> None:
        round_trips, appends = [], []
        for _ in range(5):
            started = time.perf_counter()
            await self._round_trip()
            round_trips.append(time.perf_counter() - started)
            appends.append(await self.canary())
        self.cost.calibrate(round_trip=min(round_trips), append=min(appends))

    async def _round_trip(self) -> None:
        try:
            await self._bus.nc.flush(timeout=5)
        except NatsTimeoutError as error:
            raise TransientError("bus_silent", "the server does not answer a ping") from error

    async def canary(self) -> float:
        """Append one message to the canary stream; return how long its acknowledgement took.

        Raises:
            TransientError: It was not acknowledged.
        """
        started = time.perf_counter()
        await self._bus.request(subjects.canary(self._instance), b"{}", timeout_seconds=5)
        seconds = time.perf_counter() - started
        BUS_COMMIT_SECONDS.observe(seconds)
        return seconds

    # -- appending ---------------------------------------------------------------------------

    async def append(
        self,
        subject: str,
        body: bytes,
        *,
        fence: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        """Append one message and return its stream sequence.

        Args:
            subject: A subject that must be free.
            body: The message; above the claim threshold it becomes an object first.
            fence: A filter that must match no stored message.
            headers: Kept with the message.

        Raises:
            ConflictError: ``duplicate_fact`` (the subject is taken) or ``fenced``.
            TransientError: ``append_timeout``: not acknowledged within 30 s; it may be stored.
                ``append_unavailable``: no stream took it for so long. ``log_full``: no room.
            InvariantError: The server refused it for another reason.
        """
        if len(body) > self._claims.threshold_bytes:
            body = await self._claims.pack(body)
        item = self._item(Record(subject, body, fence, headers))
        self._enqueue(item)
        return await item.done

    async def append_all(self, records: Sequence[Record]) -> list[int]:
        """Append the messages of one decision: the first, then the others in parallel.

        If the first is refused, none of the others is sent.

        Raises:
            ConflictError: The first was refused, or one of the others exists with other bytes.
            TransientError: As for ``append``.
        """
        limit = self._claims.threshold_bytes
        packed = [
            record
            if len(record.body) <= limit
            else replace(record, body=await self._claims.pack(record.body))
            for record in records
        ]
        first, *others = [self._item(record) for record in packed]
        first.followers = tuple(others)
        self._enqueue(first)
        sequence = await first.done
        return [sequence, *await asyncio.gather(*(item.done for item in others))]

    def _item(self, record: Record) -> _Item:
        return _Item(record, self._loop.create_future(), self._loop.time() + _GIVE_UP_SECONDS)

    def _enqueue(self, item: _Item) -> None:
        if self.cost.slow and not item.record.subject.startswith(_LOG):
            # Only the log takes batches, and a batch belongs to one stream.
            self._send_single(item, None)
            return
        self._queue.append(item)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    # -- sending -----------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send the messages gathered in this turn of the loop, if they are due."""
        self._flush_due = False
        queue = self._queue
        if not queue:
            return
        if not self.cost.slow:
            while queue and len(self._flights) < _MAX_IN_FLIGHT:
                self._send_single(queue.popleft(), None)
            return
        if self._groups >= self.cost.parallel_groups:
            return
        count = sum(1 + len(item.followers) for item in queue)
        if self.cost.batch_pays(count):
            self._send_batch(self._take_batch())
            return
        group = _Group(time.perf_counter(), size=len(queue), batch=False)
        self._groups += 1
        while queue:
            self._send_single(queue.popleft(), group)

    def _take_batch(self) -> list[_Item]:
        items: list[_Item] = []
        size = 0
        while self._queue and len(items) < _MAX_BATCH and size < _MAX_BATCH_BYTES:
            item = self._queue.popleft()
            for member in (item, *item.followers):
                items.append(member)
                size += len(member.record.body)
        return items

    def _send_single(self, item: _Item, group: _Group | None) -> None:
        if group is not None:
            group.open += 1
        item.sent_at = time.perf_counter()
        item.sends += 1
        token = self._token()
        self._flights[token] = _Flight([item], group)
        record = item.record
        self._bus.nc.publish_now(
            record.subject,
            self._prefix + token,
            record.body,
            append_headers(record.fence, record.headers),
        )

    def _send_batch(self, items: list[_Item]) -> None:
        group = _Group(time.perf_counter(), size=len(items), batch=True, open=1)
        self._groups += 1
        token = self._token()
        self._flights[token] = _Flight(items, group)
        batch_id = f"{self._strip}{self._prefix[7:-1]}-{token}"
        last = len(items)
        for number, item in enumerate(items, start=1):
            item.sent_at = group.sent_at
            item.sends += 1
            extra = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            if number == last:
                extra["Nats-Batch-Commit"] = "1"
            record = item.record
            self._bus.nc.publish_now(
                record.subject,
                self._prefix + token if number == last else "",
                record.body,
                append_headers(record.fence, record.headers, extra),
            )

    def _token(self) -> str:
        self._next += 1
        return str(self._next)

    # -- answers -----------------------------------------------------------------------------

    def _on_ack(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        flight = self._flights.pop(subject[self._strip :], None)
        if flight is None:
            return  # answered before, from the stored message
        items, group = flight.items, flight.group
        sequence, error = _read_answer(body, headers)
        if group is not None:
            self._landed(group, refused=error is not None)
        if error is None:
            self._acknowledged(items, sequence)
        elif len(items) > 1:
            # One refused message refuses the batch: each message gets its own answer.
            self._release_followers(items)
            for item in items:
                if item.sent_at >= 0:
                    self._send_single(item, None)
        else:
            self._refused(items[0], error)
        if self._queue and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _landed(self, group: _Group, *, refused: bool) -> None:
        group.open -= 1
        if group.open > 0:
            return
        self._groups -= 1
        if refused and group.batch:
            return
        seconds = time.perf_counter() - group.sent_at
        BUS_COMMIT_SECONDS.observe(seconds)
        BUS_COMMIT_MESSAGES.observe(group.size)
        self.cost.observe_group(seconds, group.size, batch=group.batch)

    def _acknowledged(self, items: list[_Item], last_sequence: int) -> None:
        first_sequence = last_sequence - len(items) + 1
        batched = len(items) > 1
        WRITER.acknowledged += len(items)
        for offset, item in enumerate(items):
            if not item.done.done():
                item.done.set_result(first_sequence + offset)
            if item.followers and not batched:
                for follower in item.followers:
                    self._enqueue(follower)

    def _release_followers(self, items: list[_Item]) -> None:
        """Note what must wait for its leader again, now that the batch is off."""
        for item in items:
            for follower in item.followers:
                follower.sent_at = -1.0

    def _refused(self, item: _Item, error: object) -> None:
        details = error if isinstance(error, dict) else {}
        code = int(details.get("err_code", 0))
        text = str(details.get("description", error))
        if code == SUBJECT_TAKEN or code in _FENCED:
            if item.sends > 1 or (code == SUBJECT_TAKEN and text != _TAKEN_TEXT):
                self._background(self._compare(item, code, text))
                return
        elif details.get("code") == _UNAVAILABLE:
            if self._loop.time() < item.give_up_at:
                self._background(self._send_later(item))
            else:
                self._fail(item, TransientError("append_unavailable", text))
            return
        self._fail(item, _refusal(item.record, code, text))

    def _fail(self, item: _Item, error: Exception) -> None:
        _count(error)
        for member in (item, *item.followers):
            if not member.done.done():
                member.done.set_exception(error)
                if member is not item:
                    member.done.exception()  # the first one's failure is the one that is awaited

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _send_later(self, item: _Item) -> None:
        """Retry soon: no stream takes the subject while it has no leader."""
        await asyncio.sleep(_UNAVAILABLE_SECONDS)
        self._send_single(item, None)

    async def _compare(self, item: _Item, code: int, text: str) -> None:
        """Interpret a refusal by the stored message: after a lost ack it may be a success."""
        record = item.record
        try:
            stored = await leader_read(self._bus, subjects.RUNS, record.subject)
        except (TransientError, JetStreamError) as error:
            self._fail(item, TransientError("append_unavailable", str(error)))
            return
        if stored is not None and stored.body == record.body and item.sends > 1:
            self._acknowledged([item], stored.seq)
        elif stored is None and code == SUBJECT_TAKEN:
            self._fail(item, TransientError("log_full", f"{record.subject}: {text}"))
        else:
            self._fail(item, _refusal(record, code, text))

    # -- lost acknowledgements ---------------------------------------------------------------

    async def _sweep(self) -> None:
        """Resend unacknowledged messages; measure again after a new connection."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            if self._measure_again and self._bus.nc.is_connected:
                self._measure_again = False
                with contextlib.suppress(TransientError):
                    await self._calibrate()
            now = time.perf_counter()
            overdue = [
                token
                for token, flight in self._flights.items()
                if now - flight.items[0].sent_at > _ACK_TIMEOUT_SECONDS
            ]
            self._resend(overdue)

    def _resend_all(self) -> None:
        self._measure_again = True
        self._resend(list(self._flights))

    def _resend(self, tokens: list[str]) -> None:
        now = self._loop.time()
        for token in tokens:
            flight = self._flights.pop(token)
            if flight.group is not None:
                flight.group.open -= 1
                if flight.group.open <= 0:
                    self._groups -= 1
            if len(flight.items) > 1:
                self._release_followers(flight.items)
            for item in flight.items:
                if item.sent_at < 0:
                    continue
                if now > item.give_up_at:
                    self._fail(
                        item,
                        TransientError(
                            "append_timeout",
                            f"{item.record.subject} was not acknowledged within "
                            f"{_GIVE_UP_SECONDS:.0f} s; it may be stored",
                        ),
                    )
                else:
                    WRITER.resent += 1
                    self._send_single(item, None)
        if self._queue:
            self._flush()


def _count(error: Exception) -> None:
    code = error.code if isinstance(error, ConflictError) else ""
    if code == "duplicate_fact":
        WRITER.duplicate += 1
    elif code == "fenced":
        WRITER.fenced += 1
    else:
        WRITER.failed += 1


def _read_answer(body: bytes, headers: bytes | None) -> tuple[int, object]:
    """Read an acknowledgement: the sequence, or the error."""
    if body.startswith(_PLAIN_ACK) and body.endswith(b"}"):
        digits = body[body.rfind(b":") + 1 : -1].strip()
        if digits.isdigit() and body.count(b",") == 1:
            return int(digits), None  # {"stream":"RUNS","seq":7} without a detour
    if headers is not None and not body:
        return 0, {"code": _UNAVAILABLE, "description": "no stream takes this subject"}
    answer = json.loads(body)
    return int(answer.get("seq", 0)), answer.get("error")


def _refusal(record: Record, code: int, text: str) -> Exception:
    """Return the error that a server's refusal means."""
    if code == SUBJECT_TAKEN:
        return ConflictError("duplicate_fact", f"{record.subject} is already published")
    if code in _FENCED:
        return ConflictError("fenced", f"a decision under {record.fence} exists already")
    return InvariantError("append_refused", f"{record.subject}: {text} ({code})")
