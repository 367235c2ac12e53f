"""Wake-ups: runs that are decided without an input, now or when their tenant's turn comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from penstock.contracts.errors import PenstockError
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.core.walk import MOST_WORK
from penstock_orchestrator.engine.containment import OF_THE_BUS
from penstock_orchestrator.engine.runs import RunTable, Slot
from penstock_orchestrator.engine.shares import WorkShares
from penstock_orchestrator.engine.windows import Windows

log = EventLog(__name__)

_AGAIN_SECONDS: Final = 1.0
_REST_SECONDS: Final = 0.005
"""Pause for each ``MOST_WORK`` units of a costly decision, which take about 30 ms."""


class Wakeups:
    """Wakes runs for dispatch windows, cancel requests and work shares. One per engine."""

    def __init__(
        self, wake: Callable[[Slot], Awaitable[None]], windows: Windows[Slot], runs: RunTable
    ) -> None:
        """Wake nothing yet.

        Args:
            wake: Decides a run.
            windows: Grant steps to the runs that wait for room.
            runs: The engine's runs.
        """
        self._wake = wake
        self._windows = windows
        self._runs = runs
        self.shares: WorkShares[Slot] = WorkShares()
        self._waking: set[asyncio.Task[object]] = set()
        self._sharing: asyncio.Task[None] | None = None

    def granted(self) -> None:
        """Wake the runs that a dispatch window has granted steps to."""
        for slot in self._windows.pop_granted():
            self.soon(slot)

    def soon(self, slot: Slot) -> None:
        """Wake a run."""
        task: asyncio.Task[object] = asyncio.create_task(self._wake_one(slot))
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    def in_turn(self, slot: Slot) -> bool:
        """Return whether a run has to wait, since its tenant owes work; it is woken in turn."""
        if slot.tenant not in self.shares.debts:
            return False
        self.shares.wait(slot.tenant, slot)
        if self._sharing is None:
            self._sharing = asyncio.create_task(self._wake_in_turn(), name="engine-shares")
        return True

    def drop(self, slot: Slot) -> None:
        """Forget a run: it has ended, or another engine leads its shard."""
        self._windows.drop(slot)
        self.shares.drop(slot.tenant, slot)

    async def _wake_in_turn(self) -> None:
        try:
            while (slot := self.shares.pop()) is not None:
                if not await self._wake_one(slot) and self._runs.known(slot.run_id):
                    await asyncio.sleep(_AGAIN_SECONDS)
                    self.shares.wait(slot.tenant, slot)
                # Others need the event loop several times for each of their steps.
                decisions = max(1, self.shares.debts.get(slot.tenant, 0) // MOST_WORK)
                await asyncio.sleep(decisions * _REST_SECONDS)
        finally:
            self._sharing = None

    async def _wake_one(self, slot: Slot) -> bool:
        """Wake a run; return whether the bus allowed it."""
        try:
            await self._wake(slot)
        except (PenstockError, *OF_THE_BUS) as error:
            log.warning("engine.wake_failed", run_id=slot.run_id, error=str(error))
            return False
        finally:
            # A run that is paused or cancelled by now must not keep steps from others.
            self._windows.return_unused(slot)
            self.granted()
        return True
