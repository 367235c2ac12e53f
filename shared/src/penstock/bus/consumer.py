"""The consumer loop: pull without pause, hand over, acknowledge last.

It keeps as much credit at the server as it has room for, reports work in progress, maps error
families to acknowledgements, recreates a durable that vanished, and continues after restarts of
the server. Its handler's effects must be acknowledged before it returns.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from nats.aio.subscription import Subscription

from penstock import clock
from penstock.bus.client import parse_headers
from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts import subjects
from penstock.contracts.errors import (
    ConflictError,
    ErrorInfo,
    InvariantError,
    PenstockError,
    RejectedError,
    TransientError,
)
from penstock.contracts.messages import DeadLetter
from penstock.contracts.structs import encode
from penstock.telemetry.logs import EventLog
from penstock.telemetry.tallies import consumer_tally

log = EventLog(__name__)

_EXPIRES_SECONDS: Final = 30
_HEARTBEAT_SECONDS: Final = 2
_SILENCE_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 0.25
_ELSEWHERE_SECONDS: Final = 0.5
"""While servers still know of our pull, a message handed back at once is delivered here again,
until its deliveries are exhausted."""
_NANO: Final = 1_000_000_000
_ACK: Final = b"+ACK"
_PROGRESS: Final = b"+WPI"
_TERM: Final = b"+TERM"
_NAK: Final = b"-NAK"
_NOT_FOUND: Final = 404
_LETTER_BYTES: Final = 65_536
"""What a dead letter keeps of a body: as JSON it may grow sixfold, and it must fit a message."""

MAX_DELIVERIES: int = 20
"""Deliveries after which a message is given up on. Not ``Final``: a test lowers it."""


@dataclass(slots=True, eq=False)
class Delivery:
    """One message handed to a handler."""

    subject: str
    body: bytes
    reply: str
    raw_headers: bytes | None
    received_at: float
    """By the event loop's clock."""
    deliveries: int = field(init=False)
    """How often it has been delivered, this time included."""
    stream_seq: int = field(init=False)
    """Its sequence in the stream."""
    stored_ns: int = field(init=False)
    """When the server stored it, in nanoseconds since 1970."""

    def __post_init__(self) -> None:
        """Read the reply subject of JetStream, in either form."""
        # $JS.ACK.[domain.account.]stream.consumer.deliveries.seq.consumer_seq.time.pending[.random]
        tokens = self.reply.split(".")
        first = 4 if len(tokens) == 9 else 6
        self.deliveries = int(tokens[first])
        self.stream_seq = int(tokens[first + 1])
        self.stored_ns = int(tokens[first + 3])

    @property
    def headers(self) -> dict[str, str]:
        """The message's headers."""
        return parse_headers(self.raw_headers)

    @property
    def stored_at(self) -> datetime:
        """When the server stored it."""
        return datetime.fromtimestamp(self.stored_ns / _NANO, tz=UTC)


Handler = Callable[[Delivery], Awaitable[None]]
Recreate = Callable[[], Awaitable[object]]


class Consumer:
    """Feeds a handler from one durable, with bounded concurrency."""

    def __init__(
        self,
        bus: Bus,
        stream: str,
        durable: str,
        handler: Handler,
        *,
        concurrency: int,
        ack_wait_seconds: float,
        recreate: Recreate | None = None,
    ) -> None:
        """Create a consumer; ``start`` it.

        Args:
            bus: An open connection.
            stream: The stream's name.
            durable: The durable's name; it exists already.
            handler: Called once per delivery, many at a time.
            concurrency: How many at a time at most.
            ack_wait_seconds: The durable's; work is reported every third of it.
            recreate: Makes the durable again should it have vanished.
        """
        self._bus = bus
        self._stream = stream
        self._durable = durable
        self._handler = handler
        self._concurrency = concurrency
        self._ack_wait = ack_wait_seconds
        self._recreate = recreate
        self._inbox = bus.nc.new_inbox()
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._credit = 0
        self._running: dict[Delivery, asyncio.Task[None]] = {}
        self._backlog: deque[Delivery] = deque()
        self._in_hand: dict[int, Delivery] = {}
        """All of both, by stream sequence."""
        self._draining = False
        self._heard_at = 0.0
        self._suspect = False
        """The server refused to be pulled from: the durable may be gone."""
        self._again: asyncio.TimerHandle | None = None
        """The next pull after a refused one."""
        self._subscription: Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._tally = consumer_tally(durable)

    @property
    def in_flight(self) -> int:
        """How many deliveries are being handled or wait for it."""
        return len(self._running) + len(self._backlog)

    async def start(self) -> Consumer:
        """Begin to pull."""
        self._subscription = await self._bus.nc.subscribe_direct(self._inbox, self._on_message)
        self._bus.on_reconnect.append(self._restart_pull)
        self._heard_at = self._loop.time()
        self._pull()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self._durable}")
        return self

    async def drain(self, *, grace_seconds: float = 25.0) -> None:
        """Stop pulling, hand back deliveries that have not begun, wait for the rest.

        Deliveries still running after ``grace_seconds`` are cancelled and handed back.
        """
        self._draining = True
        self._bus.on_reconnect.remove(self._restart_pull)
        if self._subscription is not None:
            # First the subscription: a pull without interest is dropped by the server.
            await self._bus.nc.unsubscribe_direct(self._subscription)
        while self._backlog:
            delivery = self._backlog.popleft()
            del self._in_hand[delivery.stream_seq]
            self._hand_back(delivery, _ELSEWHERE_SECONDS)
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=grace_seconds)
        for delivery, task in list(self._running.items()):
            task.cancel()
            self._hand_back(delivery, _ELSEWHERE_SECONDS)
        if self._keeper is not None:
            self._keeper.cancel()
        if not self._bus.nc.is_closed and self._bus.nc.is_connected:
            # Acknowledgements that do not get through are made good by redelivery.
            await self._bus.nc.settle(5)

    # -- pulling -----------------------------------------------------------------------------

    def _pull(self) -> None:
        room = self._concurrency - self.in_flight - self._credit
        if self._draining or room <= 0 or (self._credit and room < (self._concurrency + 1) // 2):
            return
        self._credit += room
        request = {
            "batch": room,
            "expires": _EXPIRES_SECONDS * _NANO,
            "idle_heartbeat": _HEARTBEAT_SECONDS * _NANO,
        }
        self._bus.nc.publish_now(self._next_subject, self._inbox, json.dumps(request).encode())

    def _restart_pull(self) -> None:
        """Whatever credit the server had is gone with the old connection."""
        self._credit = 0
        self._heard_at = self._loop.time()
        self._pull()

    def _on_message(self, subject: str, reply: str, body: bytes, headers: bytes | None) -> None:
        self._heard_at = self._loop.time()
        if not reply or (headers is not None and headers.startswith(b"NATS/1.0 ")):
            self._on_status(headers)
            return
        self._credit = max(0, self._credit - 1)
        delivery = Delivery(subject, body, reply, headers, self._heard_at)
        known = self._in_hand.get(delivery.stream_seq)
        if known is not None:
            # Delivered again, such as by a new leader of the consumer: the first one counts.
            known.reply = reply
        elif self._draining:
            self._hand_back(delivery, _ELSEWHERE_SECONDS)
        else:
            self._in_hand[delivery.stream_seq] = delivery
            if len(self._running) < self._concurrency:
                self._begin(delivery)
            else:
                self._backlog.append(delivery)
        if self._credit <= self._concurrency // 2:
            self._pull()

    def _on_status(self, block: bytes | None) -> None:
        headers = parse_headers(block)
        status = headers.get("Status", "")
        if status in ("", "100"):
            return
        # The request ended (expired, leader changed, consumer deleted): its credit is gone.
        self._credit = max(0, self._credit - int(headers.get("Nats-Pending-Messages", 0)))
        if status == "408":
            self._pull()
        elif not self._draining:
            if not self._suspect:
                log.warning(
                    "consumer.pull_ended",
                    durable=self._durable,
                    status=status,
                    description=headers.get("Description"),
                )
            self._credit = 0
            self._suspect = True
            if self._again is None:
                self._again = self._loop.call_later(_AGAIN_SECONDS, self._pull_again)

    def _pull_again(self) -> None:
        self._again = None
        self._pull()

    # -- handling ----------------------------------------------------------------------------

    def _hand_back(self, delivery: Delivery, delay_seconds: float) -> None:
        """Let the server deliver it again after a delay."""
        self._tally.nacked += 1
        self._reply(delivery, _NAK + b' {"delay": %d}' % int(delay_seconds * _NANO))

    def _begin(self, delivery: Delivery) -> None:
        task = self._loop.create_task(self._run(delivery))
        self._running[delivery] = task

    async def _run(self, delivery: Delivery) -> None:
        dead: ErrorInfo | None = None
        try:
            try:
                if delivery.deliveries > 1:
                    self._tally.redelivered += 1
                    _limit(delivery)
                await self._handler(delivery)
            except (TransientError, ConflictError) as error:
                self._retry(delivery, error)
            except (RejectedError, InvariantError) as error:
                dead = error.info()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("consumer.handler_failed", durable=self._durable)
                if delivery.deliveries >= MAX_DELIVERIES:
                    dead = InvariantError("handler_failed", repr(error)).info()
                else:
                    self._hand_back(delivery, 1.0)
            else:
                self._tally.acked += 1
                self._reply(delivery, _ACK)
            if dead is not None:
                await self._bury(delivery, dead)
        finally:
            self._running.pop(delivery, None)
            self._in_hand.pop(delivery.stream_seq, None)
            if self._backlog and not self._draining:
                self._begin(self._backlog.popleft())
            if self._credit <= self._concurrency // 2:
                self._pull()

    def _retry(self, delivery: Delivery, error: TransientError | ConflictError) -> None:
        delay = error.retry_after_seconds
        if delay is None:
            # After a conflict the run has a newer state: read it soon.
            delay = min(0.1 * 2 ** min(delivery.deliveries, 8), 10.0)
        log.info("consumer.retry", durable=self._durable, subject=delivery.subject, code=error.code)
        self._hand_back(delivery, delay)

    async def _bury(self, delivery: Delivery, error: ErrorInfo) -> None:
        """Move a message to the dead letters; only then is it gone from the queue."""
        letter = DeadLetter(
            stream=self._stream,
            stream_seq=delivery.stream_seq,
            subject=delivery.subject,
            consumer=self._durable,
            deliveries=delivery.deliveries,
            error=error,
            body=delivery.body[:_LETTER_BYTES].decode("utf-8", "replace"),
            occurred_at=clock.now(),
        )
        log.error(
            "consumer.dead_letter", durable=self._durable, subject=delivery.subject, code=error.code
        )
        try:
            answer = await self._bus.request(
                subjects.dead(self._stream, self._durable),
                encode(letter),
                timeout_seconds=5,
            )
            _require_stored(answer.data)
        except PenstockError as lost:
            log.warning("consumer.dead_letter_delayed", code=lost.code)
            self._hand_back(delivery, 5.0)
        else:
            self._tally.dead += 1
            self._reply(delivery, _TERM)

    def _reply(self, delivery: Delivery, word: bytes) -> None:
        if not self._bus.nc.is_closed:
            self._bus.nc.publish_now(delivery.reply, "", word, urgent=False)

    # -- keeping -----------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Report work in progress; notice silence."""
        period = self._ack_wait / 3
        next_report = self._loop.time() + period
        while True:
            # Reports keep their beat: at worst a delivery is silent for half of ack_wait.
            await asyncio.sleep(max(0.0, min(1.0, next_report - self._loop.time())))
            now = self._loop.time()
            self._tally.in_flight = self.in_flight
            if now >= next_report:
                next_report = now + period
                for delivery in (*self._running, *self._backlog):
                    if now - delivery.received_at >= period / 2:
                        self._reply(delivery, _PROGRESS)
            silent = now - self._heard_at > _SILENCE_SECONDS and self._credit > 0
            if (silent or self._suspect) and self._bus.nc.is_connected:
                await self._revive()

    async def _revive(self) -> None:
        """No message, no heartbeat, or a refusal: look whether the durable is still there."""
        log.warning("consumer.silent", durable=self._durable)
        self._suspect = False
        # The new leader of the consumer may not know our pull. A request whether the consumer
        # exists takes seconds while it has no leader: work must not wait for that.
        self._restart_pull()
        try:
            recreated = await self._find_or_recreate()
        except (JetStreamError, PenstockError) as error:
            log.warning("consumer.unavailable", error=str(error))
            self._suspect = True
        else:
            if recreated:
                self._suspect = False
                self._restart_pull()

    async def _find_or_recreate(self) -> bool:
        """Return whether the durable had to be made again."""
        try:
            await self._bus.api(f"CONSUMER.INFO.{self._stream}.{self._durable}")
        except JetStreamError as error:
            if error.code != _NOT_FOUND or self._recreate is None:
                raise
        else:
            return False
        log.warning("consumer.vanished", durable=self._durable)
        await self._recreate()
        return True


def _limit(delivery: Delivery) -> None:
    """Give up on a message before it kills yet another process."""
    if delivery.deliveries > MAX_DELIVERIES:
        raise InvariantError(
            "deliveries_exhausted", f"delivered {delivery.deliveries} times without success"
        )


def _require_stored(answer: bytes) -> None:
    error = json.loads(answer).get("error")
    if error is not None:
        raise TransientError("dead_letter_refused", str(error.get("description")))
