"""Key-value buckets on raw publishes: TTL by key, compare-and-set, and watches that do not stall.

A bucket is the stream ``KV_{name}`` with one message for each key. Its revisions are that stream's
sequences. The end of a key is a marker: written by ``delete`` or, when a TTL runs out, by the
server itself. A server that was killed may bring back a value whose TTL has run out and keep it
for ever, so that values are also judged by the time at which they were stored.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from penstock.bus.claims import Claims
from penstock.bus.client import parse_headers
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv_watch import OPERATION, TTL, KvChange, Reason, Watch, reason_of
from penstock.bus.reader import LogReader
from penstock.contracts.errors import (
    ConflictError,
    ErrorDetail,
    RejectedError,
    TransientError,
)
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

_KEY: Final = re.compile(r"[-/_=A-Za-z0-9]+(\.[-/_=A-Za-z0-9]+)*")
_WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
_NO_MESSAGE: Final = 10037
_UNAVAILABLE: Final = 503
_ATTEMPTS: Final = 8
_MARKER_SECONDS: Final = 86_400.0
"""Life of a deletion's marker: long after the server has the deletion on disk, as a server that
is killed before may bring back the value."""
_NO_CLAIMS: Final = 2**30
"""Values of buckets are never claims."""


@dataclass(frozen=True, slots=True)
class KvEntry:
    """The value of a key, with the revision to compare with when it is updated."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class _Stored:
    """The last message of a key, a marker included."""

    value: bytes
    revision: int
    reason: Reason


def _reason_of(headers: Mapping[str, str]) -> Reason:
    """As `reason_of`, from the answer to a direct get, whose headers carry the time."""
    return reason_of(headers, headers.get("Nats-Time-Stamp"))


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
            except ConflictError as error:
                log.debug("kv.create_refused", key=key, error=error.message)
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

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """End ``key``; watchers see it as ``deleted``. Deleting an absent key is no error.

        Args:
            key: The key.
            revision: Delete only where this is still the key's last revision.

        Raises:
            ConflictError: ``wrong_revision``.
            RejectedError: ``invalid_key``.
            TransientError: The server did not answer, twice.
        """
        await self._write(
            key,
            b"",
            ttl_seconds=_MARKER_SECONDS,
            expected=revision,
            headers={OPERATION: "DEL"},
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
                if _reason_of(message.headers) == "put"
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
                    return _Stored(reply.data, revision, _reason_of(headers))
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
            reason_of(
                parse_headers(base64.b64decode(message.get("hdrs", ""))), message.get("time")
            ),
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
            sent[TTL] = f"{max(1, math.ceil(ttl_seconds))}s"
        if expected is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        try:
            return await self._publish(subject, value, sent)
        except TransientError as error:
            log.warning("kv.write_retried", key=key, code=error.code)
        try:
            return await self._publish(subject, value, sent)
        except ConflictError as error:
            conflict = error
        # The lost answer may have been a success: then the stored value is ours.
        stored = await self._last(key, from_leader=True)
        mine = stored is not None and stored.value == value
        if stored is not None and mine and stored.reason == reason_of(sent, None):
            return stored.revision
        raise conflict

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
