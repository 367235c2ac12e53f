"""The reconciler: nothing stays where it is because a wake-up was lost.

Every second it lets time pass for the runs whose moment has come; now and then it reads again
those that have not moved for long; and for a shard newly won it finds the open runs in the log,
and those older than the log in the archive.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from penstock import rpc
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.history import AGAIN_SECONDS, KEPT_SECONDS
from penstock.contracts import subjects
from penstock.contracts.archive import OpenRunPage, OpenRuns
from penstock.contracts.errors import PenstockError
from penstock.contracts.ids import shard_of
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.metrics import ENGINE_RUNS
from penstock_orchestrator.engine.runs import Slot

_log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_AT_ONCE: Final = 64
_SEARCH_SECONDS: Final = 600.0
"""A run becomes too old for the log once; after that only a lost wake-up makes it be found."""


class Reconciler:
    """Wakes up runs; one per engine process."""

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        *,
        idle_seconds: float,
        shards: int,
        held: Callable[[], Collection[int]],
    ) -> None:
        """Watch over ``engine``.

        Args:
            bus: An open connection.
            engine: Whose runs to wake up.
            idle_seconds: A run that has not moved for so long is read again.
            shards: Number of shards of the installation.
            held: The shards that are this engine's at the moment.
        """
        self._bus = bus
        self._engine = engine
        self._idle = idle_seconds
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()
        self._shards = shards
        self._held = held
        self._won = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None
        self._searcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tick."""
        self._ticker = asyncio.create_task(self._tick(), name="reconciler")
        self._searcher = asyncio.create_task(self._search(), name="reconciler-search")

    async def stop(self) -> None:
        """Stop ticking; what is under way is left to its end."""
        for task in (self._ticker, self._searcher):
            if task is not None:
                task.cancel()
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

        Those older than the log are looked for in the archive, whenever that answers.

        Raises:
            PenstockError: The server does not answer.
        """
        self._won.set()
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

    async def _search(self) -> None:
        """Look for the open runs that are older than the log."""
        while True:
            delay = _SEARCH_SECONDS
            self._won.clear()
            if self._held():
                try:
                    await self._search_archive()
                except PenstockError as error:
                    # Nothing depends on it but the deadlines of runs older than the log.
                    _log.debug("reconciler.archive_away", extra={"code": error.code})
                    delay = AGAIN_SECONDS
            try:
                await asyncio.wait_for(self._won.wait(), delay)
            except TimeoutError:
                continue

    async def _search_archive(self) -> None:
        before = datetime.now(UTC) - timedelta(seconds=KEPT_SECONDS)
        after: int | None = 0
        while after is not None:
            request = OpenRuns(created_before=before, after=after)
            page = await rpc.call(self._bus, "archive", "open_runs", request, OpenRunPage)
            held, runs = self._held(), self._engine.runs
            for found in page.items:
                shard = shard_of(found.run_id, self._shards)
                lost = not runs.known(found.run_id) and not runs.has_ended(found.run_id)
                if shard in held and lost:
                    self._wake(runs.slot(found.tenant, shard, found.run_id), reload=False)
            after = page.next_after
