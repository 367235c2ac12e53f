"""What a restarted server forgot is made again: streams in memory, on a single server."""

from __future__ import annotations

import asyncio
from typing import Final

from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.topology import ensure
from penstock.contracts.errors import TransientError
from penstock.settings import CoreSettings
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

_RETRY_SECONDS: Final = 0.5


class Restorer:
    """Ensures the topology after each reconnection; one per process."""

    def __init__(self, bus: Bus, settings: CoreSettings) -> None:
        """Prepare; ``start`` begins to watch the connection."""
        self._bus = bus
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch the connection."""
        self._bus.on_reconnect.append(self._restore)

    def stop(self) -> None:
        """Watch it no longer."""
        self._bus.on_reconnect.remove(self._restore)
        if self._task is not None:
            self._task.cancel()

    def _restore(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ensure(), name="restore-topology")

    async def _ensure(self) -> None:
        while True:
            try:
                await ensure(self._bus, self._settings)
            except (TransientError, JetStreamError) as error:
                log.warning("bus.topology_not_restored", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return
