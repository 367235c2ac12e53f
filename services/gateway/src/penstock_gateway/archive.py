"""What only the archive knows: lists of runs, sessions, and runs that have left the log."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.bus.connection import Bus
from penstock.contracts.state import Entry


class Archive:
    """The archive's verbs, as the gateway uses them."""

    def __init__(self, bus: Bus) -> None:
        """Ask over ``bus``."""
        self._bus = bus

    async def run_entries(self, tenant: str, run_id: str) -> Sequence[Entry]:
        """Return the facts of a run that has left the log; empty where there is none."""
        del tenant, run_id
        return ()
