"""A thin HTTP/1.1 client with keep-alive: the CPU is for the measured system.

One request at a time per connection; as many connections as requests in flight.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import httptools

HOST = "127.0.0.1"

OnBody = Callable[[bytes], None]


class Answer(NamedTuple):
    """Status and body; the body is empty where it was streamed."""

    status: int
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection; also the parser's callbacks for the answer that is being read."""

    def __init__(self) -> None:
        self.closed = False
        self.keep_alive = False
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._answer: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []
        self._take: OnBody = self._parts.append

    def send(self, request: bytes, on_body: OnBody | None) -> asyncio.Future[Answer]:
        """Send a whole request; the future is its answer."""
        assert self._transport is not None
        self._parts = []
        self._take = on_body or self._parts.append
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Close at once; nothing of it can be used again."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # -- of the transport ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, without Nagle's delay."""
        self._transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits."""
        self.closed = True
        self._fail(ConnectionResetError(f"connection lost: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the methods below."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"not HTTP: {error}"))

    # -- of the parser -------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._take(body)

    def on_message_complete(self) -> None:
        """Hand over the answer."""
        self.keep_alive = self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), b"".join(self._parts)))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class Client:
    """Requests to one server on loopback."""

    def __init__(self, port: int) -> None:
        """Talk to the server on ``port``; connections open as they are needed."""
        self._port = port
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def prepare(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> Callable[[bytes], bytes]:
        """Return a function that makes the bytes of a request from its JSON body."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join([*lines, "Content-Type: application/json", "Content-Length: "]).encode()
        return lambda body: b"%b%d\r\n\r\n%b" % (head, len(body), body)

    async def send(self, request: bytes, on_body: OnBody | None = None) -> Answer:
        """Send prepared bytes and return the answer.

        Args:
            request: A whole request.
            on_body: Takes the pieces of the body as they come, instead of the answer.

        Raises:
            OSError: No connection, or it broke.
        """
        connection = await self._connection()
        reusable = False
        try:
            answer = await connection.send(request, on_body)
            reusable = connection.keep_alive and not connection.closed
        finally:
            if reusable:
                self._idle.append(connection)
            else:
                connection.close()
        return answer

    async def call(
        self, method: str, path: str, body: object, headers: dict[str, str] | None = None
    ) -> Any:
        """Send JSON and return the JSON of a successful answer.

        Raises:
            OSError: No connection, or it broke.
            RuntimeError: Another status than 2xx.
        """
        answer = await self.send(self.prepare(method, path, headers)(json.dumps(body).encode()))
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body[:2000]!r}")
        return json.loads(answer.body)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        loop = asyncio.get_running_loop()
        _, opened = await loop.create_connection(_Connection, HOST, self._port)
        return opened
