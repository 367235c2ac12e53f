"""Uvicorn's HTTP protocol with head and body of an answer in one write.

Uvicorn writes them one after the other, which makes two system calls here and two reads at the
client of every small answer. Nothing else differs; only the asyncio transport is wrapped.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_FINAL_HEADS = (b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4", b"HTTP/1.1 5")


class CorkedTransport:
    """A transport that keeps an answer's head back until its body comes.

    Where none comes in the same turn of the loop, the head goes out by itself.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        """Wrap ``transport``."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, together with the head that was kept back."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(_FINAL_HEADS):
            self._head = data
            self._loop.call_soon(self._uncork)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close, after what was kept back."""
        self._uncork()
        self._transport.close()

    def _uncork(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        """Do everything else as the transport does."""
        return getattr(self._transport, name)


class CorkedProtocol(HttpToolsProtocol):
    """The protocol on a corked transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(CorkedTransport(transport))  # type: ignore[arg-type]
