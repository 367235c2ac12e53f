"""What all runners of a process share: the bus, the log, and the book of stopped runs."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.runner.stops import StopBook
from penstock.settings import CoreSettings


@dataclass(frozen=True, slots=True)
class Harness:
    """Open it once per process; the bus belongs to whoever opened that."""

    bus: Bus
    settings: CoreSettings
    claims: Claims
    reader: LogReader
    writer: LogWriter
    stops: StopBook

    @classmethod
    async def open(cls, bus: Bus, settings: CoreSettings) -> Harness:
        """Start what runners need on an open connection.

        Raises:
            TransientError: The bus does not answer.
        """
        claims = Claims(bus, settings.claim_threshold_bytes)
        stops = StopBook()
        await bus.subscribe(subjects.STOP_SPACE, stops.on_message)
        return cls(
            bus=bus,
            settings=settings,
            claims=claims,
            reader=LogReader(bus, claims),
            writer=await LogWriter(bus, settings, claims).start(),
            stops=stops,
        )

    async def close(self) -> None:
        """Wait until everything appended is acknowledged."""
        await self.writer.close()
