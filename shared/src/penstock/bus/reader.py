"""The log reader: one run in one request, single facts, and the live copy of stored facts.

Reads are direct gets, which any replica may answer; where a read must not lag, the caller says
how far it has to reach, or asks the leader.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from nats.aio.subscription import Subscription

from penstock.bus.claims import CLAIM_MARK, Claims
from penstock.bus.client import parse_headers
from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, TransientError
from penstock.contracts.subjects import FactSubject
from penstock.runs.quarantine import quarantined, read_at
from penstock.runs.state import Entry
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

TRACE_HEADER: Final = "traceparent"
_TRACE: Final = TRACE_HEADER.encode()
_PAGE: Final = 1000
_NOT_FOUND: Final = 404
_NO_STATUS: Final = b"NATS/1.0\r\n"
_SEQUENCE: Final = b"\r\nNats-Sequence: "
_SUBJECT: Final = b"\r\nNats-Subject: "
RESULT: Final = ".in.result."
"""Part of the subjects of results."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as a stream holds it."""

    seq: int
    subject: str
    body: bytes
    block: bytes | None = None
    """The headers as they came; a run of thousands of facts rarely needs one of them."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers by name."""
        return parse_headers(self.block)


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to one direct get of many messages."""

    messages: list[Stored]
    pending: int
    """Messages that matched but did not fit."""
    up_to_seq: int
    """The read has seen everything up to this sequence."""
    too_many: bool = False


class LogReader:
    """Reads facts; one per process, for all its runs."""

    def __init__(self, bus: Bus, claims: Claims) -> None:
        """Create a reader; it subscribes its inbox on first use."""
        self._bus = bus
        self._claims = claims
        self._prefix = bus.nc.new_inbox() + "."
        self._next = 0
        self._waiting: dict[str, _Collector] = {}
        self._subscribed: asyncio.Future[Subscription] | None = None

    async def _inbox(self) -> None:
        if self._subscribed is None:
            self._subscribed = asyncio.ensure_future(
                self._bus.nc.subscribe_direct(self._prefix + "*", self._on_message)
            )
        await asyncio.shield(self._subscribed)

    def _on_message(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        collector = self._waiting.get(subject[len(self._prefix) :])
        if collector is not None:
            collector.add(body, headers or b"")

    async def get_many(
        self, stream: str, request: Mapping[str, object], *, timeout_seconds: float = 5.0
    ) -> Page:
        """Send one direct get that is answered by many messages.

        Args:
            stream: The stream.
            request: Such as ``{"multi_last": [...]}`` or ``{"next_by_subj": ..., "seq": ...}``.
            timeout_seconds: How long to wait for the whole answer.

        Raises:
            TransientError: ``read_timeout``.
        """
        await self._inbox()
        self._next += 1
        token = str(self._next)
        collector = self._waiting[token] = _Collector()
        try:
            self._bus.nc.publish_now(
                f"$JS.API.DIRECT.GET.{stream}", self._prefix + token, json.dumps(request).encode()
            )
            async with asyncio.timeout(timeout_seconds):
                return await collector.page
        except TimeoutError as error:
            raise TransientError(
                "read_timeout", f"{stream} did not answer within {timeout_seconds} s"
            ) from error
        finally:
            del self._waiting[token]

    async def pages(
        self, stream: str, subject_filter: str, *, after_seq: int = 0
    ) -> AsyncIterator[list[Stored]]:
        """Yield all messages that match, in order, page by page."""
        seq = after_seq + 1
        while True:
            page = await self.get_many(
                stream, {"next_by_subj": subject_filter, "seq": seq, "batch": _PAGE}
            )
            if page.messages:
                yield page.messages
                seq = page.messages[-1].seq + 1
            if not page.pending or not page.messages:
                return

    async def stored(
        self, tenant: str, shard: int, run_id: str, *, after_seq: int = 0, at_least_seq: int = 0
    ) -> list[Stored]:
        """Return a run's facts as stored, in order.

        Args:
            tenant: Tenant of the run.
            shard: Shard of the run.
            run_id: The run.
            after_seq: Leave out facts up to this sequence.
            at_least_seq: The read must have seen this sequence (a lagging replica is asked again).

        Raises:
            TransientError: ``read_timeout``, or ``read_lags`` when replicas stay behind.
        """
        wanted = subjects.run_filter(tenant, shard, run_id)
        for attempt in range(50):
            page = await self.get_many(subjects.RUNS, {"multi_last": [wanted]})
            if page.too_many or page.pending:
                found: list[Stored] = []
                async for messages in self.pages(subjects.RUNS, wanted, after_seq=after_seq):
                    found += messages
                seen = found[-1].seq if found else after_seq
            else:
                found = [message for message in page.messages if message.seq > after_seq]
                seen = max(page.up_to_seq, found[-1].seq if found else 0)
            if seen >= at_least_seq:
                return found
            await asyncio.sleep(0.01 * (attempt + 1))
        raise TransientError("read_lags", f"reads of {run_id} stay behind {at_least_seq}")

    async def read_run(
        self, tenant: str, shard: int, run_id: str, *, after_seq: int = 0, at_least_seq: int = 0
    ) -> list[Entry]:
        """Return a run's facts in order; arguments and errors as for ``stored``.

        Raises:
            InvariantError: A decision's message cannot be read.
        """
        stored = await self.stored(
            tenant, shard, run_id, after_seq=after_seq, at_least_seq=at_least_seq
        )
        return read_entries(await self.unpacked(stored))

    async def unpacked(self, stored: list[Stored]) -> list[Stored]:
        """Return messages with the bodies that their claims stand for.

        Raises:
            InvariantError: ``object_corrupt``, of a decision; such an input is left out.
            TransientError: The object behind a claim is not there.
        """
        found: list[Stored] = []
        for message in stored:
            if not message.body.startswith(CLAIM_MARK):
                found.append(message)
                continue
            try:
                body = await self._claims.unpack(message.body)
            except InvariantError as error:
                if RESULT in message.subject:
                    found.append(message)  # read as one that cannot be read
                else:
                    _leave_out(message, error)
            else:
                found.append(replace(message, body=body))
        return found

    async def entry(self, message: Stored) -> Entry:
        """Read a stored message as a fact, fetching its body where it is a claim."""
        return await self.decode(message.subject, message.seq, message.body, message.headers)

    async def decode(
        self,
        subject: str,
        seq: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        parsed: FactSubject | None = None,
    ) -> Entry:
        """Read a message as a fact; ``parsed`` is its subject, where the caller has parsed it.

        Raises:
            InvariantError: ``unreadable_fact``.
            TransientError: The object behind a claim is not there.
        """
        if body.startswith(CLAIM_MARK):
            try:
                body = await self._claims.unpack(body)
            except InvariantError:
                if RESULT not in subject:
                    raise
        return decode_entry(subject, seq, body, headers, parsed)

    async def read_fact(self, subject: str) -> Entry | None:
        """Return the fact on a subject, asked of the stream's leader (never stale)."""
        message = await self.read_message(subjects.RUNS, subject)
        return None if message is None else await self.entry(message)

    async def read_message(self, stream: str, subject: str) -> Stored | None:
        """Return the last message on a subject, asked of the stream's leader (never stale)."""
        return await leader_read(self._bus, stream, subject)


async def leader_read(bus: Bus, stream: str, subject: str) -> Stored | None:
    """Return the last message on a subject, asked of the stream's leader (never stale)."""
    try:
        answer = await bus.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    except JetStreamError as error:
        if error.code == _NOT_FOUND:
            return None
        raise
    message = answer["message"]
    block = base64.b64decode(message["hdrs"]) if message.get("hdrs") else None
    return Stored(
        seq=message["seq"],
        subject=message["subject"],
        body=base64.b64decode(message.get("data", "")),
        block=block,
    )


def read_entries(stored: list[Stored]) -> list[Entry]:
    """Read messages that are no claims as facts.

    An input that cannot be read is left out: it is a dead letter, and must not stop the run.

    Raises:
        InvariantError: A decision's message cannot be read.
    """
    entries: list[Entry] = []
    for message in stored:
        block = message.block
        headers = message.headers if block is not None and _TRACE in block else None
        try:
            entries.append(decode_entry(message.subject, message.seq, message.body, headers))
        except InvariantError as error:
            _leave_out(message, error)
    return entries


def _leave_out(message: Stored, error: InvariantError) -> None:
    """Log that an input cannot be read.

    Raises:
        InvariantError: It is no input.
    """
    if ".in." not in message.subject:
        raise error
    log.warning("reader.unreadable_input", subject=message.subject)


def decode_entry(
    subject: str,
    seq: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    parsed: FactSubject | None = None,
) -> Entry:
    """Read a message that is no claim as a fact; ``parsed`` is its subject, where it is known.

    Raises:
        InvariantError: ``unreadable_fact``.
    """
    try:
        if parsed is None:
            parsed = subjects.parse_fact(subject)
        fact = read_at(parsed, body)
    except ValueError as error:
        raise InvariantError(
            "unreadable_fact", f"{subject} (sequence {seq}) cannot be read: {error}"
        ) from error
    if parsed.event == "result" and quarantined(fact):
        log.warning("reader.quarantined", subject=subject, seq=seq)
    return Entry(seq, parsed, fact, headers.get(TRACE_HEADER) if headers else None)


def _field(block: bytes, name: bytes) -> bytes:
    """Return the last value of a header; the server's own ones come last."""
    start = block.rindex(name) + len(name)
    return block[start : block.index(b"\r", start)]


class _Collector:
    """Gathers the answer to one request."""

    def __init__(self) -> None:
        self.messages: list[Stored] = []
        self.page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()

    def add(self, body: bytes, block: bytes) -> None:
        if block.startswith(_NO_STATUS):
            seq, subject = _field(block, _SEQUENCE), _field(block, _SUBJECT)
            self.messages.append(Stored(int(seq), subject.decode(), body, block))
            return
        if self.page.done():
            return
        headers = parse_headers(block)
        status = headers.get("Status", "")
        if status in ("204", "404", "413"):
            self.page.set_result(
                Page(
                    messages=self.messages,
                    pending=int(headers.get("Nats-Num-Pending", 0)) if status == "204" else 0,
                    up_to_seq=int(headers.get("Nats-UpTo-Sequence", 0)),
                    too_many=status == "413",
                )
            )
        else:
            text = f"{status} {headers.get('Description', '')}".strip()
            # 408 and 5xx: no leader answers yet, as after a restart of the server.
            again = status == "408" or status.startswith("5")
            error = TransientError if again else InvariantError
            self.page.set_exception(error("read_refused", text))
