"""Serving: one uvicorn worker under uvloop, ended in good order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from penstock.memory import settle
from penstock.telemetry.health import HealthServer
from penstock.telemetry.logs import EventLog
from penstock_gateway.app import create_app
from penstock_gateway.middleware.protocol import WholeAnswerProtocol

if TYPE_CHECKING:
    from penstock_gateway.gateway import Gateway
    from penstock_gateway.settings import GatewaySettings

log = EventLog(__name__)


class Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: they would end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``run``."""
        yield


def create_server(app: Any, settings: GatewaySettings) -> Server:
    """Return a server for ``app``; its ``started`` turns true once it listens."""
    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="none",
            http=WholeAnswerProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=round(settings.shutdown_seconds),
            backlog=4096,
        )
    )


async def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests in flight finish."""
    app = create_app(settings)
    gateway: Gateway = app.state.gateway
    server = create_server(app, settings)
    health = HealthServer(
        host=settings.metrics_host,
        port=settings.metrics_port,
        canary=lambda: _ready(server, gateway),
    )

    def stop() -> None:
        log.info("gateway.stopping")
        server.should_exit = True
        if server.started:
            gateway.drain()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await health.start()
    settle()
    try:
        await server.serve()
    finally:
        await health.stop()
    log.info("gateway.stopped")


async def _ready(server: Server, gateway: Gateway) -> None:
    if not server.started:
        raise RuntimeError("not listening yet")
    await gateway.writer.canary()
