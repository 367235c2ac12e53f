"""What all runners of a process share: the bus, the log, and the book of stopped runs."""

from __future__ import annotations

import asyncio
from typing import Final

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.reader import LogReader
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError
from penstock.runner.stops import StopBook
from penstock.settings import CoreSettings
from penstock.telemetry.logs import EventLog

RESTORE_SECONDS: Final = 0.5

events = EventLog("penstock.runner")


class Harness:
    """Open it once per process; the bus belongs to whoever opened that."""

    def __init__(self, bus: Bus, settings: CoreSettings) -> None:
        """Prepare the harness; ``open`` it.

        Args:
            bus: An open connection.
            settings: Of the process.
        """
        self.bus = bus
        self.settings = settings
        self.claims = Claims(bus, settings.claim_threshold_bytes)
        self.reader = LogReader(bus, self.claims)
        self.writer = LogWriter(bus, settings, self.claims)
        self.stops = StopBook()
        self._restoring: asyncio.Task[None] | None = None

    async def open(self) -> Harness:
        """Make sure that the bus has what runners need, and begin to listen.

        Raises:
            InvariantError: ``topology_differs``.
            TransientError: The bus does not answer.
        """
        await ensure(self.bus, self.settings)
        self.bus.on_reconnect.append(self._restore)
        await self.bus.subscribe(subjects.STOP_SPACE, self.stops.on_message)
        await self.writer.start()
        return self

    async def close(self) -> None:
        """Wait until everything appended is acknowledged."""
        self.bus.on_reconnect.remove(self._restore)
        if self._restoring is not None:
            self._restoring.cancel()
        await self.writer.close()

    def _restore(self) -> None:
        """A server that was started anew has lost what it kept in memory: deltas and runners."""
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.create_task(self._ensure_again(), name="restore-topology")

    async def _ensure_again(self) -> None:
        while True:
            try:
                await ensure(self.bus, self.settings)
            except (TransientError, JetStreamError) as error:
                events.warning("runner.topology_not_restored", reason=str(error))
                await asyncio.sleep(RESTORE_SECONDS)
            else:
                return
