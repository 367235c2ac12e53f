"""Uvicorn's HTTP protocol, with limits and with a way to send a complete answer at once.

Over ASGI an answer is two messages, each of which uvicorn checks and writes by itself: two
system calls here and two reads at the client for every small answer. The extension
``penstock.answer`` takes status, headers and body together. Written against uvicorn's
``httptools_impl``; the integration tests run on it and so guard it.

Uvicorn bounds neither the size of headers nor the time that a request may take to arrive, so a
client could fill the memory or hold connections for ever. The limits are checked per read of the
socket; a request that arrives in one read sets no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

EXTENSION: Final = "penstock.answer"

SendWhole = Callable[[int, bytes, bytes], Awaitable[None]]
"""Sends status, header lines (each ended by a line break) and body; ends the answer."""


MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 32 * 1024
"""Of the request line and all headers."""
ARRIVAL_SECONDS: Final = 20.0
"""For a whole request to arrive; a body has more time, by its size."""
MIN_BYTES_PER_SECOND: Final = 8 * 1024

_TOO_LARGE: Final = b"431 Request Header Fields Too Large"
_TOO_SLOW: Final = b"408 Request Timeout"


class LimitedProtocol(HttpToolsProtocol):
    """The protocol with limits on the size of headers and on the time until a request is here."""

    arrival_seconds = ARRIVAL_SECONDS
    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    """Whether a head is expected or incomplete. Between requests, uvicorn's own limit holds."""
    _began_at = 0.0
    _piece_bytes = 0
    _received_bytes = 0
    """Of the current request, before the current piece."""
    _refusal = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a piece and check the limits."""
        self._piece_bytes = len(data)
        HttpToolsProtocol.data_received(self, data)
        self._received_bytes += self._piece_bytes
        if not (self._in_head or self.cycle.more_body):
            if self._timer is not None:
                self._disarm()
        elif self._in_head and self._received_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._timer is None and not self.transport.is_closing():
            self._expect()

    def on_message_begin(self) -> None:
        """Begin to count a request."""
        HttpToolsProtocol.on_message_begin(self)
        self._in_head = True
        self._received_bytes = 0

    def on_headers_complete(self) -> None:
        """Check the headers before the request is begun.

        Raises:
            ValueError: They are beyond the limits; the parser stops.
        """
        if len(self.headers) > MAX_HEADERS or (
            # Else there is nothing to add up.
            self._received_bytes + self._piece_bytes > MAX_HEAD_BYTES
            and self._head_bytes() > MAX_HEAD_BYTES
        ):
            self._refusal = _TOO_LARGE
            raise ValueError("headers beyond the limits")
        HttpToolsProtocol.on_headers_complete(self)
        self._in_head = False

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that the parser does not read, by the limits or by its form."""
        if self._refusal:
            self._refuse(self._refusal)
        else:
            super().send_400_response(msg)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _expect(self) -> None:
        self._began_at = self.loop.time()
        self._timer = self.loop.call_later(self.arrival_seconds, self._check)

    def _check(self) -> None:
        allowed = self.arrival_seconds
        if not self._in_head:
            allowed += self._received_bytes / MIN_BYTES_PER_SECOND
        left = self._began_at + allowed - self.loop.time()
        if self.flow.read_paused:
            # The application is behind, and not the client.
            left = max(left, self.arrival_seconds)
        if left > 0:
            self._timer = self.loop.call_later(left, self._check)
        else:
            self._refuse(_TOO_SLOW)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._disarm()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        # Where the application has begun to answer, a second answer would be part of the first.
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status
            )
        self.transport.close()


class WholeAnswerProtocol(LimitedProtocol):
    """The protocol with limits and with the extension."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        async def send_whole(status: int, headers: bytes, body: bytes) -> None:
            if cycle.flow.write_paused and not cycle.disconnected:
                await cycle.flow.drain()
            if cycle.disconnected:
                return
            defaults = b"".join(
                [b"%b: %b\r\n" % (name, value) for name, value in cycle.default_headers]
            )
            closing = b"" if cycle.keep_alive else b"connection: close\r\n"
            cycle.waiting_for_100_continue = False
            cycle.response_started = cycle.response_complete = True
            cycle.transport.write(
                b"".join((STATUS_LINE[status], defaults, headers, closing, b"\r\n", body))
            )
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()

        scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]
        scope[EXTENSION] = send_whole
        super()._start_asgi_task(cycle, app)
