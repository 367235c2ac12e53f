"""A nats-py client with a short way in and out for the log's hot path.

nats-py hands each message through a queue to a task per subscription and builds a ``Msg`` first
(about 8 us). A *direct* subscription gets the raw parts inside the read loop instead (about 2 us).
Everything else (reconnects, authentication, ordinary subscriptions) is nats-py's own.
Written against the pinned nats-py 2.16.0; ``tests/integration/bus/test_client.py`` guards it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from penstock.bus.parser import DirectHandler, HotParser
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

_HEADER_LINE: Final = b"NATS/1.0"
_MANY: Final = 4
_SPACING_SECONDS: Final = 0.001
_IDLE_SECONDS: Final = 0.002


class HotClient(Client):
    """nats-py's client plus direct subscriptions and publishing without a coroutine."""

    def __init__(self) -> None:
        """Create an unconnected client."""
        super().__init__()
        self._direct: dict[int, DirectHandler] = {}
        self._ps = HotParser(self, self._direct)
        self._out: list[bytes] = []
        self._write_due: asyncio.Handle | None = None
        self._write_soon = False
        self._wrote_at = 0.0
        self._wrote_many = False
        self.closing_on_purpose = False
        """Whether the process closes the connection on purpose and continues without it."""

    async def subscribe_direct(
        self, subject: str, handler: DirectHandler, *, queue: str = ""
    ) -> Subscription:
        """Subscribe with a handler that runs inside the read loop."""
        subscription = await self.subscribe(subject, queue, cb=_never_called)
        self._direct[subscription._id] = handler  # noqa: SLF001 - nats-py has no public one
        # Messages published from here on take a shorter way and must not overtake it.
        await self._flush_pending(force_flush=True)
        return subscription

    async def unsubscribe_direct(self, subscription: Subscription) -> None:
        """End a direct subscription; what the server sends until then is still handed over."""
        sid = subscription._id  # noqa: SLF001
        if self.is_connected:
            self._out.append(b"UNSUB %d\r\n" % sid)
            if self._write_due is None:
                self._schedule_write(urgent=True)
            # The server's answer comes after the last message that it sent for it.
            await self.settle(2)
        self._direct.pop(sid, None)
        if not self.is_closed:
            await subscription.unsubscribe()

    def publish_now(
        self,
        subject: str,
        reply: str,
        body: bytes,
        headers: bytes | None = None,
        *,
        urgent: bool = True,
    ) -> None:
        """Send a message with all others of this turn of the loop; subject and reply are trusted.

        Args:
            subject: Where to; not checked.
            reply: Reply subject, may be empty.
            body: At most the server's ``max_payload`` together with ``headers``.
            headers: A complete header block as ``header_block`` builds it.
            urgent: ``False`` for messages without a waiting caller: they leave with the next urgent
                message, or after 2 ms.
        """
        if headers is None:
            command = b"PUB %b %b %d\r\n%b\r\n" % (
                subject.encode(),
                reply.encode(),
                len(body),
                body,
            )
        else:
            command = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
                subject.encode(),
                reply.encode(),
                len(headers),
                len(headers) + len(body),
                headers,
                body,
            )
        self._out.append(command)
        if self._write_due is None:
            self._schedule_write(urgent=urgent)
        elif urgent and not self._write_soon:
            self._write_due.cancel()
            self._schedule_write(urgent=True)

    async def _connect_to_server(self, s: Srv) -> None:
        # nats-py forgets the connection of an attempt that failed after it was open.
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    def _schedule_write(self, *, urgent: bool) -> None:
        """Choose when to write. Each write wakes the server up, so under load they are spaced."""
        loop = asyncio.get_running_loop()
        self._write_soon = urgent
        if not urgent:
            self._write_due = loop.call_later(_IDLE_SECONDS, self._write_out)
        elif self._wrote_many and loop.time() - self._wrote_at < _SPACING_SECONDS:
            self._write_due = loop.call_later(_SPACING_SECONDS, self._write_out)
        else:
            self._write_due = loop.call_soon(self._write_out)

    def _write_out(self) -> None:
        """Write all that has gathered, in one piece.

        Without a connection it is dropped: the log writer resends unacknowledged messages, and
        the server redelivers deliveries that were not acknowledged to it.
        """
        out, self._out = self._out, []
        self._write_due = None
        self._wrote_many = len(out) >= _MANY
        self._wrote_at = asyncio.get_running_loop().time()
        transport = self._transport
        if self.is_connected and transport is not None:
            self.stats["out_msgs"] += len(out)
            transport.write(b"".join(out))

    async def settle(self, seconds: float) -> None:
        """Write gathered messages; wait until the server has read them (``seconds`` at most).

        A server that goes away meanwhile is logged: a message that must be stored has an
        acknowledgement, which its publisher awaits.
        """
        if self._write_due is not None:
            self._write_due.cancel()
            self._write_out()
        try:
            await self.flush(timeout=seconds)  # type: ignore[arg-type]
        except NatsError as error:
            log.info("bus.unsettled", error=str(error))

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        # A direct message that followed another protocol message in the same read.
        handler = self._direct.get(sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            handler(bytes(subject).decode(), bytes(reply).decode(), data, headers or None)


async def _never_called(_message: Msg) -> None:
    raise AssertionError("a direct subscription has no callback")


def header_block(headers: dict[str, str]) -> bytes:
    """Return the wire form of headers. Values must hold no line breaks."""
    lines = [_HEADER_LINE]
    lines += [f"{name}: {value}".encode() for name, value in headers.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n"


_FENCE_VALUE: Final = "Nats-Expected-Last-Subject-Sequence"
_FENCE_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_FENCE_BLOCK: Final = header_block({_FENCE_VALUE: "0", _FENCE_SUBJECT: "%b"})


def append_headers(
    fence: str | None, kept: dict[str, str] | None, batch: dict[str, str] | None = None
) -> bytes | None:
    """Return the header block of a message to append; ``None`` if it needs none.

    Args:
        fence: A filter that must match no stored message.
        kept: Headers kept with the message.
        batch: Headers that make it part of an atomic batch.
    """
    if kept is None and batch is None:
        return None if fence is None else _FENCE_BLOCK % fence.encode()
    headers = {**(kept or {})}
    if fence is not None:
        headers[_FENCE_VALUE] = "0"
        headers[_FENCE_SUBJECT] = fence
    if batch is not None:
        headers |= batch
    return header_block(headers) if headers else None


def parse_headers(block: bytes | None) -> dict[str, str]:
    """Read a header block; an inline status gives the keys ``Status`` and ``Description``."""
    if not block:
        return {}
    lines = block.split(b"\r\n")
    headers: dict[str, str] = {}
    status = lines[0][len(_HEADER_LINE) :].strip()
    if status:
        code, _, description = status.partition(b" ")
        headers["Status"] = code.decode()
        headers["Description"] = description.decode("utf-8", "replace")
    for line in lines[1:]:
        name, separator, value = line.partition(b":")
        if separator:
            headers[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return headers
