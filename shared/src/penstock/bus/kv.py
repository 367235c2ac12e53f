"""Key-value buckets on raw publishes: TTL by key, compare-and-set, and watches that do not stall.

A bucket is the stream ``KV_{name}`` with one message for each key. Its revisions are that stream's
sequences. The end of a key is a marker: written by ``delete`` or, when a TTL runs out, by the
server itself.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from nats.errors import Error as NatsError

from penstock.bus.claims import Claims
from penstock.bus.client import parse_headers
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.reader import LogReader
from penstock.contracts.errors import (
    ConflictError,
    ErrorDetail,
    RejectedError,
    TransientError,
)
from penstock.telemetry.logs import EventLog

if TYPE_CHECKING:
    from datetime import datetime

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = EventLog(__name__)

Reason = Literal["put", "deleted", "expired"]

_KEY: Final = re.compile(r"[-/_=A-Za-z0-9]+(\.[-/_=A-Za-z0-9]+)*")
_WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
_NO_MESSAGE: Final = 10037
_UNAVAILABLE: Final = 503
_OPERATION: Final = "KV-Operation"
_MARKER_REASON: Final = "Nats-Marker-Reason"
_SECOND_NS: Final = 1_000_000_000
_HEARTBEAT_SECONDS: Final = 1
_SILENCE_SECONDS: Final = 3.0
_INACTIVE_SECONDS: Final = 30
_CHECK_SECONDS: Final = 0.5
_ATTEMPTS: Final = 8
_NO_CLAIMS: Final = 2**30
"""Values of buckets are never claims."""


@dataclass(frozen=True, slots=True)
class KvEntry:
    """The value of a key, with the revision to compare with when it is updated."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class KvChange:
    """What a watch has seen of a key; ``value`` is ``None`` where the key has ended."""

    key: str
    value: bytes | None
    revision: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class _Stored:
    """The last message of a key, a marker included."""

    value: bytes
    revision: int
    reason: Reason


def _reason(headers: Mapping[str, str] | None) -> Reason:
    if not headers:
        return "put"
    marker = headers.get(_MARKER_REASON)
    if marker is not None:
        return "expired" if marker == "MaxAge" else "deleted"
    return "deleted" if headers.get(_OPERATION) in ("DEL", "PURGE") else "put"


class Bucket:
    """One key-value bucket. Keys are subject tokens joined by dots."""

    def __init__(self, bus: Bus, name: str, *, timeout_seconds: float = 5.0) -> None:
        """Name the bucket; nothing is asked of the server yet.

        Args:
            bus: The connection.
            name: Name of the bucket, one of `penstock.contracts.subjects`.
            timeout_seconds: How long each request to the server may take.
        """
        self.name = name
        self._bus = bus
        self._stream = f"KV_{name}"
        self._prefix = f"$KV.{name}."
        self._timeout_seconds = timeout_seconds
        self._reader: LogReader | None = None

    async def get(self, key: str) -> KvEntry | None:
        """Return the entry of ``key``, or ``None`` where there is none (any more).

        Raises:
            RejectedError: ``invalid_key``.
            TransientError: The server did not answer.
        """
        stored = await self._last(key)
        if stored is None or stored.reason != "put":
            return None
        return KvEntry(stored.value, stored.revision)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Set ``key`` whatever it was, and return its new revision.

        Args:
            key: The key.
            value: The value, smaller than the server's ``max_payload``.
            ttl_seconds: The key ends after so many seconds (rounded up, at least 1).

        Raises:
            RejectedError: ``invalid_key``.
            TransientError: The server did not answer, twice.
        """
        return await self._write(key, value, ttl_seconds=ttl_seconds)

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Set ``key`` only where it has no value, also after it was deleted or has expired.

        Raises:
            ConflictError: ``key_exists``.
            RejectedError: ``invalid_key``.
            TransientError: The server did not answer, twice.
        """
        expected = 0
        for _ in range(_ATTEMPTS):
            try:
                return await self._write(key, value, ttl_seconds=ttl_seconds, expected=expected)
            except ConflictError:
                stored = await self._last(key, from_leader=True)
            if stored is None:
                expected = 0
            elif stored.reason == "put":
                break
            else:
                expected = stored.revision
        raise ConflictError("key_exists", f"{self.name}: {key} has a value")

    async def update(
        self, key: str, value: bytes, revision: int, *, ttl_seconds: float | None = None
    ) -> int:
        """Set ``key`` only where ``revision`` is still its last one, and return the new one.

        Raises:
            ConflictError: ``wrong_revision``.
            RejectedError: ``invalid_key``.
            TransientError: The server did not answer, twice.
        """
        return await self._write(key, value, ttl_seconds=ttl_seconds, expected=revision)

    async def delete(
        self, key: str, *, revision: int | None = None, ttl_seconds: float | None = None
    ) -> None:
        """End ``key``; watchers see it as ``deleted``. Deleting an absent key is no error.

        Args:
            key: The key.
            revision: Delete only where this is still the key's last revision.
            ttl_seconds: The marker itself goes after so many seconds. Only for keys whose values
                have a TTL: a server that crashes may bring back the value under a gone marker.

        Raises:
            ConflictError: ``wrong_revision``.
            RejectedError: ``invalid_key``.
            TransientError: The server did not answer, twice.
        """
        await self._write(
            key,
            b"",
            ttl_seconds=ttl_seconds,
            expected=revision,
            headers={_OPERATION: "DEL"},
        )

    async def keys(self, filter: str = ">") -> list[str]:  # noqa: A002 - the server's own word
        """Return the keys that match a subject filter and have a value, in order.

        Raises:
            TransientError: The server did not answer in time.
        """
        # A direct read: any replica answers it, so that leases need no leader of the cluster.
        if self._reader is None:
            self._reader = LogReader(self._bus, Claims(self._bus, _NO_CLAIMS))
        found: list[str] = []
        async for page in self._reader.pages(self._stream, self._prefix + filter):
            found += [
                message.subject.removeprefix(self._prefix)
                for message in page
                if _reason(message.headers) == "put"
            ]
        return sorted(found)

    async def watch(
        self,
        filter: str,  # noqa: A002 - the server's own word
        on_change: Callable[[KvChange], None],
    ) -> Watch:
        """Call ``on_change`` for every matching key and then for every change, in order.

        The callback runs on the event loop and must neither block nor raise. Where the server was
        away, changes that ended in the same value may be left out, but the last state never is.

        Raises:
            JetStreamError: The server refused; a bucket that is missing, for example.
            TransientError: The server did not answer.
        """
        watch = Watch(self._bus, self.name, filter, on_change)
        await watch.start()
        return watch

    def _subject(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise RejectedError(
                "invalid_key",
                f"{key[:80]!r} cannot be a key",
                details=(ErrorDetail(path="key", message="not a key", allowed=_KEY.pattern),),
            )
        return self._prefix + key

    async def _last(self, key: str, *, from_leader: bool = False) -> _Stored | None:
        """Return the last message of ``key``: any replica's, the leader's if that has none."""
        subject = self._subject(key)
        if not from_leader:
            try:
                reply = await self._bus.request(
                    f"$JS.API.DIRECT.GET.{self._stream}.{subject}",
                    timeout_seconds=self._timeout_seconds,
                )
            except TransientError as error:
                log.debug("kv.direct_read_failed", key=key, code=error.code)
            else:
                headers = reply.headers or {}
                if "Nats-Sequence" in headers:
                    revision = int(headers["Nats-Sequence"])
                    return _Stored(reply.data, revision, _reason(headers))
        try:
            answer = await self._bus.api(
                f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject}
            )
        except JetStreamError as error:
            if error.err_code == _NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        return _Stored(
            base64.b64decode(message.get("data", "")),
            int(message["seq"]),
            _reason(parse_headers(base64.b64decode(message.get("hdrs", "")))),
        )

    async def _write(
        self,
        key: str,
        value: bytes,
        *,
        ttl_seconds: float | None,
        expected: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Publish with acknowledgement; try once more where the first answer was lost."""
        subject = self._subject(key)
        sent = dict(headers or {})
        if ttl_seconds is not None:
            sent["Nats-TTL"] = f"{max(1, math.ceil(ttl_seconds))}s"
        if expected is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        try:
            return await self._publish(subject, value, sent)
        except TransientError as error:
            log.warning("kv.write_retried", key=key, code=error.code)
        try:
            return await self._publish(subject, value, sent)
        except ConflictError:
            # The lost answer may have been a success: then the stored value is ours.
            stored = await self._last(key, from_leader=True)
            mine = stored is not None and stored.value == value
            if stored is not None and mine and stored.reason == _reason(sent):
                return stored.revision
            raise

    async def _publish(self, subject: str, value: bytes, headers: dict[str, str]) -> int:
        reply = await self._bus.request(
            subject, value, timeout_seconds=self._timeout_seconds, headers=headers or None
        )
        answer = json.loads(reply.data)
        failure = answer.get("error")
        if failure is None:
            return int(answer["seq"])
        if failure.get("err_code") in _WRONG_LAST_SEQUENCE:
            raise ConflictError("wrong_revision", f"{subject}: {failure.get('description')}")
        if failure.get("code") == _UNAVAILABLE:
            raise TransientError("bus_unavailable", f"{subject}: {failure.get('description')}")
        raise JetStreamError(
            failure.get("code", 500), failure.get("err_code", 0), failure.get("description", "")
        )


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
        revision, reason = metadata.sequence.stream, _reason(message.headers)
        if self._unseen is not None:
            self._unseen.discard(key)
        if reason != "put":
            if self._known.pop(key, None) is not None:
                self._on_change(KvChange(key, None, revision, reason))
            return
        # The time distinguishes messages of a new and an older stream with the same sequence.
        identity = (revision, metadata.timestamp)
        if self._known.get(key) == identity:
            return
        self._known[key] = identity
        self._on_change(KvChange(key, message.data, revision, "put"))

    def _end_snapshot(self) -> None:
        if self._unseen is not None:
            for key in sorted(self._unseen):
                revision, _ = self._known.pop(key)
                self._on_change(KvChange(key, None, revision, "expired"))
            self._unseen = None
        self._ready.set()

    async def _watchdog(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await asyncio.wait_for(self._broken.wait(), _CHECK_SECONDS)
            except TimeoutError:
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
                await asyncio.sleep(_CHECK_SECONDS)
