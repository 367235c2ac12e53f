"""The reconciler: no run stays stuck because a wake-up was lost.

Every second it wakes the runs that are due, evicts the states of waiting runs, and checks a bounded
number of the longest idle runs against the log. For a newly leased shard it finds the open runs
in the log, and those older than the log in the archive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final

from penstock import clock, rpc
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.history import AGAIN_SECONDS, KEPT_SECONDS
from penstock.contracts import subjects
from penstock.contracts.archive import OpenRunPage, OpenRuns
from penstock.contracts.errors import PenstockError
from penstock.contracts.ids import shard_of
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.engine.containment import OF_THE_BUS
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.metrics import ENGINE_RUNS
from penstock_orchestrator.engine.runs import Slot

log = EventLog(__name__)

_TICK_SECONDS: Final = 1.0
_AT_ONCE: Final = 64
_CHECKS_PER_TICK: Final = 16
"""Idle runs checked per second, so that the cost stays under 1% of a core however many wait."""
_EVICT_SHARE: Final = 1 / 6
"""Share of the idle time after which the state of a waiting run leaves memory."""
_SEARCH_SECONDS: Final = 600.0
"""A run becomes older than the log once; later searches only serve lost wake-ups."""


class Reconciler:
    """Wakes runs; one per engine process."""

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        *,
        idle_seconds: float,
        shards: int,
        held: Callable[[], Collection[int]],
    ) -> None:
        """Reconcile the runs of ``engine``.

        Args:
            bus: An open connection.
            engine: The engine whose runs to wake.
            idle_seconds: A run without input for this long is read again from the log.
            shards: Number of shards of the installation.
            held: Returns the shards that this engine leads now.
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
        """Start the periodic tasks."""
        self._ticker = asyncio.create_task(self._tick(), name="reconciler")
        self._searcher = asyncio.create_task(self._search(), name="reconciler-search")

    async def stop(self) -> None:
        """Stop the periodic tasks; wait up to 5 s for wake-ups in flight."""
        for task in (self._ticker, self._searcher):
            if task is not None:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            ENGINE_RUNS.set(len(self._engine.runs))
            now = clock.epoch()
            runs = self._engine.runs
            for slot in runs.due(now):
                self._wake(slot)
            for slot in runs.idle(now - self._idle, _CHECKS_PER_TICK):
                self._wake(slot, idle=True)
            runs.evict_idle(now - self._idle * _EVICT_SHARE)

    def _wake(self, slot: Slot, *, idle: bool = False) -> None:
        if slot.run_id in self._busy:
            return
        self._busy.add(slot.run_id)
        task = asyncio.create_task(self._wake_one(slot, idle=idle))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake_one(self, slot: Slot, *, idle: bool) -> None:
        try:
            async with self._limit:
                wake = self._engine.check if idle else self._engine.wake
                await wake(slot, clock.now())
        except (PenstockError, *OF_THE_BUS) as error:
            log.warning("reconciler.failed", run_id=slot.run_id, error=str(error))
        finally:
            self._busy.discard(slot.run_id)

    async def scan(self, shard: int) -> int:
        """Wake the open runs of a shard that the log holds; return their number.

        Runs older than the log follow from the archive, once it answers.

        Raises:
            PenstockError: The server does not answer.
        """
        self._won.set()
        asked = await self._runs(f"run.*.{shard}.*.in.invoke")
        open_runs = set(asked) - set(await self._runs(f"run.*.{shard}.*.out.*.end"))
        for tenant, run_id in sorted(open_runs):
            if not self._engine.runs.known(run_id):
                slot = self._engine.runs.slot(tenant, shard, run_id)
                self._wake(slot)
        return len(open_runs)

    async def _runs(self, subject_filter: str) -> list[tuple[str, str]]:
        """Return tenant and id of every run that has a fact under the filter."""
        found: list[tuple[str, str]] = []
        while True:
            try:
                info = await self._bus.api(
                    f"STREAM.INFO.{subjects.RUNS}",
                    {"subjects_filter": subject_filter, "offset": len(found)},
                    timeout_seconds=30,
                )
            except JetStreamError as error:
                log.warning("reconciler.scan_failed", error=str(error))
                return found
            page = info["state"].get("subjects") or {}
            for subject in page:
                parts = subject.split(".")
                found.append((parts[1], parts[3]))
            if not page or len(found) >= int(info.get("total", 0)):
                return found

    async def _search(self) -> None:
        """Search the archive for open runs that are older than the log."""
        while True:
            delay = _SEARCH_SECONDS
            self._won.clear()
            if self._held():
                try:
                    await self._search_archive()
                except PenstockError as error:
                    # Only the deadlines of runs older than the log depend on it.
                    log.debug("reconciler.archive_away", code=error.code)
                    delay = AGAIN_SECONDS
            try:
                await asyncio.wait_for(self._won.wait(), delay)
            except TimeoutError:
                continue

    async def _search_archive(self) -> None:
        before = clock.now() - timedelta(seconds=KEPT_SECONDS)
        after: int | None = 0
        while after is not None:
            request = OpenRuns(created_before=before, after=after)
            page = await rpc.call(self._bus, "archive", "open_runs", request, OpenRunPage)
            held, runs = self._held(), self._engine.runs
            for found in page.items:
                shard = shard_of(found.run_id, self._shards)
                lost = not runs.known(found.run_id) and not runs.has_ended(found.run_id)
                if shard in held and lost:
                    self._wake(runs.slot(found.tenant, shard, found.run_id))
            after = page.next_after
