"""What a message says about a key of a bucket, and watches of keys that do not stall."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from nats.errors import Error as NatsError

from penstock import clock
from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts.durations import parse_duration
from penstock.contracts.errors import TransientError
from penstock.telemetry.logs import EventLog

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = EventLog(__name__)

Reason = Literal["put", "deleted", "expired"]

OPERATION: Final = "KV-Operation"
TTL: Final = "Nats-TTL"
_MARKER_REASON: Final = "Nats-Marker-Reason"
_OVERDUE_SECONDS: Final = 2.0
"""How long after its TTL a value still counts: the server needs a moment to end it."""
_SECOND_NS: Final = 1_000_000_000
_HEARTBEAT_SECONDS: Final = 1
_SILENCE_SECONDS: Final = 3.0
_INACTIVE_SECONDS: Final = 30
_CHECK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class KvChange:
    """What a watch has seen of a key; ``value`` is ``None`` where the key has ended."""

    key: str
    value: bytes | None
    revision: int
    reason: Reason


def reason_of(headers: Mapping[str, str] | None, stored_at: datetime | str | None) -> Reason:
    """Return whether a message is a key's value, or why the key has none.

    Args:
        headers: Headers of the message.
        stored_at: Time at which the server stored it, as the server wrote it or read.
    """
    if not headers:
        return "put"
    marker = headers.get(_MARKER_REASON)
    if marker is not None:
        return "expired" if marker == "MaxAge" else "deleted"
    if headers.get(OPERATION) in ("DEL", "PURGE"):
        return "deleted"
    ends_at = ends_at_epoch(headers, stored_at)
    return "put" if ends_at is None or clock.epoch() <= ends_at else "expired"


def ends_at_epoch(
    headers: Mapping[str, str] | None, stored_at: datetime | str | None
) -> float | None:
    """Return when a value no longer counts, in seconds since 1970; ``None``: it has no TTL."""
    text = headers.get(TTL) if headers else None
    seconds = parse_duration(text) if text is not None else None
    if seconds is None or stored_at is None:
        return None
    if isinstance(stored_at, str):
        stored_at = datetime.fromisoformat(stored_at)
    return stored_at.timestamp() + seconds + _OVERDUE_SECONDS


class Watch:
    """A subscription to the changes of a bucket's keys; `Bucket.watch` makes it.

    It holds its own ephemeral push consumer. Where nothing comes for three seconds, not even a
    heartbeat, where a message is missing in between, or where the connection was replaced, the
    consumer is made anew: it delivers the last state of every key again, of which only new
    ones are passed on; known keys that are not among them have ended meanwhile.
    """

    def __init__(
        self,
        bus: Bus,
        bucket: str,
        filter: str,  # noqa: A002 - the server's own word
        on_change: Callable[[KvChange], None],
    ) -> None:
        """Prepare the watch; `start` begins it."""
        self._bus = bus
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."
        self._filter = filter
        self._on_change = on_change
        self._ready = asyncio.Event()
        self._broken = asyncio.Event()
        self._known: dict[str, tuple[int, datetime]] = {}
        self._ends: dict[str, float] = {}
        self._unseen: set[str] | None = None
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._delivered = 0
        self._heard_at = 0.0
        self._guard: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Create the consumer, then guard it until `stop`.

        Raises:
            JetStreamError: The server refused.
            TransientError: The server did not answer.
        """
        await self._open()
        self._bus.on_reconnect.append(self._broken.set)
        self._guard = asyncio.create_task(self._watchdog(), name=f"watch {self._stream}")

    async def ready(self) -> None:
        """Wait until every key that there was at the start has been passed on."""
        await self._ready.wait()

    async def stop(self) -> None:
        """End the watch; nothing is passed on afterwards."""
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)
            self._guard = None
            self._bus.on_reconnect.remove(self._broken.set)
        await self._close()

    async def _open(self) -> None:
        """Subscribe to a new inbox and have a new consumer deliver every key's last state to it."""
        await self._close()
        name = f"watch_{uuid.uuid4().hex[:16]}"
        inbox = self._bus.nc.new_inbox()
        self._consumer = name
        self._delivered = 0
        self._unseen = set(self._known)
        self._broken.clear()
        self._heard_at = asyncio.get_running_loop().time()

        async def receive(message: Msg) -> None:
            if self._consumer == name:
                self._receive(message)

        self._subscription = await self._bus.subscribe(inbox, receive)
        created = await self._bus.api(
            f"CONSUMER.CREATE.{self._stream}.{name}",
            {
                "stream_name": self._stream,
                "action": "create",
                "config": {
                    "name": name,
                    "deliver_subject": inbox,
                    "deliver_policy": "last_per_subject",
                    "ack_policy": "none",
                    "replay_policy": "instant",
                    "filter_subject": self._prefix + self._filter,
                    "idle_heartbeat": _HEARTBEAT_SECONDS * _SECOND_NS,
                    "inactive_threshold": _INACTIVE_SECONDS * _SECOND_NS,
                    "mem_storage": True,
                    "num_replicas": 1,
                },
            },
        )
        # `num_pending` counts messages still to be sent: those sent before the answer was
        # written count as delivered.
        delivered = created.get("delivered", {}).get("consumer_seq", 0)
        if created["num_pending"] == 0 and delivered == 0:
            self._end_snapshot()

    async def _close(self) -> None:
        subscription, self._subscription = self._subscription, None
        name, self._consumer = self._consumer, ""
        if subscription is None or self._bus.nc.is_closed:
            return
        await subscription.unsubscribe()
        if not self._bus.nc.is_connected:
            return
        try:
            await self._bus.api(f"CONSUMER.DELETE.{self._stream}.{name}")
        except (TransientError, JetStreamError) as error:
            # Without a listener the server removes the consumer by itself.
            log.debug("kv.watch_not_removed", error=str(error))

    def _receive(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        headers = message.headers or {}
        if headers.get("Status") == "100":
            last = headers.get("Nats-Last-Consumer")
            if last is not None and int(last) != self._delivered:
                self._broken.set()
            else:
                # Idle: keys that ended during the snapshot leave its last count above zero.
                self._end_snapshot()
            return
        metadata = message.metadata
        if metadata.sequence.consumer != self._delivered + 1:
            self._broken.set()
            return
        self._delivered += 1
        self._pass_on(message.subject.removeprefix(self._prefix), message)
        if metadata.num_pending == 0:
            self._end_snapshot()

    def _pass_on(self, key: str, message: Msg) -> None:
        metadata = message.metadata
        revision = metadata.sequence.stream
        reason = reason_of(message.headers, metadata.timestamp)
        if self._unseen is not None:
            self._unseen.discard(key)
        if reason != "put":
            self._end(key, revision, reason)
            return
        # The time distinguishes messages of a new and an older stream with the same sequence.
        identity = (revision, metadata.timestamp)
        if self._known.get(key) == identity:
            return
        self._known[key] = identity
        ends_at = ends_at_epoch(message.headers, metadata.timestamp)
        if ends_at is not None:
            self._ends[key] = ends_at
        else:
            self._ends.pop(key, None)
        self._on_change(KvChange(key, message.data, revision, "put"))

    def _end(self, key: str, revision: int, reason: Reason) -> None:
        self._ends.pop(key, None)
        if self._known.pop(key, None) is not None:
            self._on_change(KvChange(key, None, revision, reason))

    def _end_overdue(self) -> None:
        """End the values that the server should have ended and has forgotten."""
        now = clock.epoch()
        for key in [key for key, ends_at in self._ends.items() if ends_at < now]:
            self._end(key, self._known[key][0], "expired")

    def _end_snapshot(self) -> None:
        if self._unseen is not None:
            for key in sorted(self._unseen):
                self._end(key, self._known[key][0], "expired")
            self._unseen = None
        self._ready.set()

    async def _watchdog(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await asyncio.wait_for(self._broken.wait(), _CHECK_SECONDS)
            except TimeoutError:
                self._end_overdue()
                if loop.time() - self._heard_at <= _SILENCE_SECONDS:
                    continue
            if not self._bus.nc.is_connected:
                self._broken.clear()  # set again when the connection is back
                continue
            log.warning("kv.watch_renewed", stream=self._stream)
            try:
                await self._open()
            except (TransientError, JetStreamError, NatsError) as error:
                log.warning("kv.watch_renewal_failed", stream=self._stream, error=str(error))
                self._heard_at = 0.0
            else:
                continue
            await asyncio.sleep(_CHECK_SECONDS)
