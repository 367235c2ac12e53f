"""What all runners of a process share: the bus, the log, and the book of stopped runs."""

from __future__ import annotations

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.bus.restore import Restorer
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.runner.stops import StopBook
from penstock.settings import CoreSettings


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
        self._restorer = Restorer(bus, settings)

    async def open(self) -> Harness:
        """Make sure that the bus has what runners need, and begin to listen.

        Raises:
            InvariantError: ``topology_differs``.
            TransientError: The bus does not answer.
        """
        await ensure(self.bus, self.settings)
        self._restorer.start()
        await self.bus.subscribe(subjects.STOP_SPACE, self.stops.on_message)
        await self.writer.start()
        return self

    async def close(self) -> None:
        """Wait until everything appended is acknowledged."""
        self._restorer.stop()
        await self.writer.close()
