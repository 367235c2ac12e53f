"""The reconciler: nothing stays where it is because a wake-up was lost.

Every second it lets time pass for the runs whose moment has come; now and then it reads again
those that have not moved for long; and for a shard newly won it finds the open runs in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.metrics import ENGINE_RUNS
from penstock_orchestrator.engine.runs import Slot

_log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_AT_ONCE: Final = 64


class Reconciler:
    """Wakes up runs; one per engine process."""

    def __init__(self, bus: Bus, engine: Engine, *, idle_seconds: float) -> None:
        """Watch over ``engine``.

        Args:
            bus: An open connection.
            engine: Whose runs to wake up.
            idle_seconds: A run that has not moved for so long is read again.
        """
        self._bus = bus
        self._engine = engine
        self._idle = idle_seconds
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()
        self._ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tick."""
        self._ticker = asyncio.create_task(self._tick(), name="reconciler")

    async def stop(self) -> None:
        """Stop ticking; what is under way is left to its end."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            ENGINE_RUNS.set(len(self._engine.runs))
            now = time.time()
            for slot in self._engine.runs.due(now, self._idle):
                idle = now - slot.touched_at > self._idle
                self._wake(slot, reload=idle)

    def _wake(self, slot: Slot, *, reload: bool) -> None:
        if slot.run_id in self._busy:
            return
        self._busy.add(slot.run_id)
        task = asyncio.create_task(self._wake_one(slot, reload=reload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake_one(self, slot: Slot, *, reload: bool) -> None:
        try:
            async with self._limit:
                await self._engine.wake(slot, datetime.now(UTC), reload=reload)
        except PenstockError as error:
            _log.warning("reconciler.failed", extra={"run_id": slot.run_id, "code": error.code})
        finally:
            self._busy.discard(slot.run_id)

    async def scan(self, shard: int) -> int:
        """Find the open runs of a shard in the log and look after them; return how many.

        Raises:
            PenstockError: The server does not answer.
        """
        asked = await self._runs(f"run.*.{shard}.*.in.invoke")
        open_runs = set(asked) - set(await self._runs(f"run.*.{shard}.*.out.*.end"))
        for tenant, run_id in sorted(open_runs):
            if not self._engine.runs.known(run_id):
                slot = self._engine.runs.slot(tenant, shard, run_id)
                self._wake(slot, reload=False)
        return len(open_runs)

    async def _runs(self, subject_filter: str) -> list[tuple[str, str]]:
        """Return tenant and id of every run that has a fact under the filter."""
        found: list[tuple[str, str]] = []
        while True:
            try:
                info: dict[str, Any] = await self._bus.api(
                    f"STREAM.INFO.{subjects.RUNS}",
                    {"subjects_filter": subject_filter, "offset": len(found)},
                    timeout_seconds=30,
                )
            except JetStreamError as error:
                _log.warning("reconciler.scan_failed", extra={"error": str(error)})
                return found
            page = info["state"].get("subjects") or {}
            for subject in page:
                parts = subject.split(".")
                found.append((parts[1], parts[3]))
            if not page or len(found) >= int(info.get("total", 0)):
                return found
