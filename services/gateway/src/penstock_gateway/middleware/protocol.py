"""Uvicorn's HTTP protocol, with a way to send a complete answer at once.

Over ASGI an answer is two messages, each of which uvicorn checks and writes by itself: two
system calls here and two reads at the client for every small answer. The extension
``penstock.answer`` takes status, headers and body together. Written against uvicorn's
``httptools_impl``; the integration tests run on it and so guard it.
"""

from __future__ import annotations

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


class WholeAnswerProtocol(HttpToolsProtocol):
    """The protocol with the extension."""

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
