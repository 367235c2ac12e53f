"""Health over HTTP, from a separate thread: it still answers when the event loop does not.

``/healthz`` is about this process (restart it?), ``/readyz`` about what it needs (send it work?),
``/metrics`` is for Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from penstock import clock
from penstock.telemetry.logs import EventLog
from penstock.telemetry.metrics import LOOP_LAG_SECONDS

Canary = Callable[[], Awaitable[object]]
"""Proves that the process can do its work, for instance by appending to the bus; else raises."""

TICK_SECONDS: Final = 0.5
FROZEN_SECONDS: Final = 5.0
CANARY_SECONDS: Final = 1.0
OFF: Final = -1

log = EventLog(__name__)


class HealthServer:
    """Serves the three paths of one process; start and stop it on the loop that it watches."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        canary: Canary | None = None,
        frozen_seconds: float = FROZEN_SECONDS,
    ) -> None:
        """Prepare the server.

        Args:
            host: Address to listen on.
            port: Port; 0 takes a free one, -1 serves nothing.
            canary: Called on the loop by ``/readyz``; without one the process is always ready.
            frozen_seconds: Silence of the loop after which it counts as frozen.
        """
        self._host = host
        self._port = port
        self._canary = canary
        self._frozen_seconds = frozen_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._ticked_at = 0.0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The bound port; -1 while nothing is served."""
        return OFF if self._server is None else int(self._server.server_address[1])

    async def start(self) -> None:
        """Bind, and serve until ``stop``.

        Raises:
            OSError: The port is taken.
        """
        if self._port == OFF:
            return
        self._server = _Server((self._host, self._port), _handler_of(self))
        self._loop = asyncio.get_running_loop()
        self._ticked_at = time.monotonic()
        self._ticker = asyncio.create_task(self._tick())
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="penstock-health", daemon=True
        )
        self._thread.start()
        log.info("health.listening", host=self._host, port=self.port)

    async def stop(self) -> None:
        """Stop serving; harmless when nothing is served."""
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
            self._ticker = None
        if self._server is not None and self._thread is not None:
            # The loop must keep running meanwhile: a canary in flight is waiting for it.
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()
            self._thread.join()
            self._server = None

    async def _tick(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            self._ticked_at = time.monotonic()
            LOOP_LAG_SECONDS.set(max(0.0, self._ticked_at - before - TICK_SECONDS))

    def alive(self) -> str | None:
        """Return why the loop counts as frozen, or ``None``. Called from the server's threads."""
        silence = time.monotonic() - self._ticked_at
        if silence > self._frozen_seconds:
            return f"event loop has not ticked for {silence:.1f} s"
        return None

    def ready(self) -> str | None:
        """Return why no work should come here, or ``None``. Called from the server's threads."""
        if (frozen := self.alive()) is not None:
            return frozen
        if self._canary is None or self._loop is None:
            return None
        future = asyncio.run_coroutine_threadsafe(_run(self._canary), self._loop)
        try:
            error = future.exception(timeout=CANARY_SECONDS)
        except FutureTimeoutError:
            future.cancel()
            return f"canary took more than {CANARY_SECONDS:g} s"
        return None if error is None else f"{type(error).__name__}: {error}"


async def _run(canary: Canary) -> None:
    await canary()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer's own would look up the host's name, which takes seconds without a resolver.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def _handler_of(health: HealthServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        # A client that connects and sends nothing must not hold its thread.
        timeout = 5.0

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
                case "/healthz":
                    self._verdict(health.alive())
                case "/readyz":
                    self._verdict(health.ready())
                case _:
                    self._answer(404, "application/json", b'{"status": "not found"}')

        def _verdict(self, reason: str | None) -> None:
            body: dict[str, str | float] = {
                "status": "ok" if reason is None else "failing",
                "clock_offset_seconds": round(clock.offset_seconds(), 3),
            }
            if reason is not None:
                body["reason"] = reason
            status = 200 if reason is None else 503
            self._answer(status, "application/json", json.dumps(body).encode())

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: probes come every few seconds."""

    return Handler
