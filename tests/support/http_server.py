"""A scripted HTTP or HTTPS server on loopback."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


@dataclass
class Answer:
    """A response: JSON unless ``raw`` is given; ``wait`` is awaited before it is sent."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    wait: threading.Event | None = None


@dataclass
class Call:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Respond = Callable[[Call], Answer]


class HttpServer:
    """Answers every request by a function, and keeps what came."""

    def __init__(self, respond: Respond, *, context: ssl.SSLContext | None = None) -> None:
        """Bind a free port.

        Args:
            respond: Makes the answers.
            context: Speaks TLS if given.
        """
        self.calls: list[Call] = []
        self._respond = respond
        self._scheme = "http" if context is None else "https"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Base URL by address, without a slash at the end."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def answer(self, call: Call) -> Answer:
        """Note a request and answer it."""
        self.calls.append(call)
        return self._respond(call)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_of(server: HttpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            answer = server.answer(
                Call(
                    method=self.command,
                    path=self.path,
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=self.rfile.read(length),
                )
            )
            if answer.wait is not None:
                answer.wait.wait(10)
            body = json.dumps(answer.body).encode() if answer.raw is None else answer.raw
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json", **answer.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # the client may have left
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    for method in METHODS:
        setattr(Handler, f"do_{method}", Handler._serve)
    return Handler
