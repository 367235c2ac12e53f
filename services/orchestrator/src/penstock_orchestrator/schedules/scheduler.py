"""The scheduler: sees to it that each tick of each schedule is fired, once, soon after its time.

Every engine follows all schedules and looks after those whose shard it leases. Leases are for
economy; two engines that look after one schedule agree by compare-and-set on which ticks are to
be fired, and the stream refuses the second run of a tick.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from penstock import clock
from penstock.bus.capacity import LogCapacity
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv import Bucket
from penstock.bus.kv_watch import KvChange, Watch
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, PenstockError
from penstock.contracts.facts import Record
from penstock.contracts.ids import shard_of
from penstock.contracts.schedules import (
    SCHEDULE_CONTROL,
    SCHEDULE_PROGRESS,
    SCHEDULE_RECORD,
    ScheduleControl,
    ScheduleFailure,
    ScheduleProgress,
    ScheduleRecord,
)
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.schedules.firing import Firing
from penstock_orchestrator.schedules.metrics import SCHEDULES_KNOWN, SCHEDULES_LEFT_OUT
from penstock_orchestrator.schedules.reckoning import begun, reckon

log = EventLog(__name__)

RecordT = TypeVar("RecordT", bound=Record)

_LOOK_SECONDS: Final = 1.0
"""How often leases are compared; ticks themselves are waited for exactly."""
_AGAIN_SECONDS: Final = 1.0
_LEFT_BEHIND_SECONDS: Final = 5.0
_AT_ONCE: Final = 64


@dataclass(slots=True, eq=False)
class _Known:
    """A schedule as the bucket has it."""

    tenant: str
    name: str
    record: ScheduleRecord | None = None
    control: ScheduleControl | None = None
    progress: ScheduleProgress | None = None
    revision: int = 0
    """Of the progress; also where that was deleted."""


class Scheduler:
    """Fires schedules; one per engine process."""

    def __init__(
        self,
        bus: Bus,
        writer: LogWriter,
        capacity: LogCapacity,
        *,
        shards: int,
        held: Callable[[], Collection[int]],
    ) -> None:
        """Prepare to fire.

        Args:
            bus: An open connection.
            writer: Appends the first facts of runs.
            capacity: Refuses runs while the log is full; ``None``: the log has no limit.
            shards: Number of shards of the installation.
            held: Returns the shards that this engine leads now.
        """
        self._bucket = Bucket(bus, subjects.SCHEDULES)
        self._firing = Firing(bus, writer, capacity, shards=shards)
        self._shards = shards
        self._held = held
        self._known: dict[str, _Known] = {}
        self._mine: frozenset[int] = frozenset()
        self._heap: list[tuple[float, str]] = []
        self._wake_at: dict[str, float] = {}
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._woken = asyncio.Event()
        self._watch: Watch | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Follow the schedules and begin to fire.

        Raises:
            JetStreamError: There is no such bucket.
            TransientError: The server did not answer.
        """
        self._watch = await self._bucket.watch(">", self._on_change)
        await self._watch.ready()
        self._ticker = asyncio.create_task(self._tick(), name="scheduler")

    async def stop(self) -> None:
        """Fire nothing more; work under way may finish (5 s at most)."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        if self._watch is not None:
            await self._watch.stop()

    # -- records ------------------------------------------------------------------------------

    def _on_change(self, change: KvChange) -> None:
        tenant, name, *part = change.key.split(".")
        key = subjects.schedule_key(tenant, name)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known(tenant, name)
        match part:
            case []:
                known.record = _read(SCHEDULE_RECORD, change)
                SCHEDULES_KNOWN.set(sum(one.record is not None for one in self._known.values()))
            case ["control"]:
                known.control = _read(SCHEDULE_CONTROL, change)
            case ["progress"] if change.revision > known.revision:
                known.progress = _read(SCHEDULE_PROGRESS, change)
                known.revision = change.revision
                if known.progress is not None and known.progress.pending:
                    # Another engine is about to fire them, or died over it.
                    self._look_at(key, clock.epoch() + _LEFT_BEHIND_SECONDS)
                return
            case _:
                return
        if known.record is None and known.progress is None and known.control is None:
            del self._known[key]
            self._wake_at.pop(key, None)
        else:
            self._look_at(key, clock.epoch())

    def _look_at(self, key: str, at: float) -> None:
        """Look after a schedule at a time, or sooner if that was arranged before."""
        if self._shard(key) not in self._mine:
            return
        if at < self._wake_at.get(key, float("inf")):
            self._wake_at[key] = at
            heapq.heappush(self._heap, (at, key))
            self._woken.set()

    def _shard(self, key: str) -> int:
        return shard_of(key, self._shards)

    # -- time ---------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            self._compare_leases()
            now = clock.epoch()
            while self._heap and self._heap[0][0] <= now:
                at, key = heapq.heappop(self._heap)
                if self._wake_at.get(key) == at and key not in self._busy:
                    del self._wake_at[key]
                    self._begin(key)
            pause = min(_LOOK_SECONDS, self._heap[0][0] - now) if self._heap else _LOOK_SECONDS
            self._woken.clear()
            try:
                async with asyncio.timeout(max(0.0, pause)):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _compare_leases(self) -> None:
        mine = frozenset(self._held())
        won, self._mine = mine - self._mine, mine
        if won:
            now = clock.epoch()
            for key in self._known:
                if self._shard(key) in won:
                    self._look_at(key, now)

    def _begin(self, key: str) -> None:
        self._busy.add(key)
        task = asyncio.create_task(self._look_after(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_after(self, key: str) -> None:
        again: float | None = clock.epoch() + _AGAIN_SECONDS
        try:
            async with self._limit:
                again = await self._advance(key)
        except (PenstockError, JetStreamError) as error:
            log.warning("schedule.delayed", schedule=key, reason=str(error))
        finally:
            self._busy.discard(key)
            # A wake-up set meanwhile had no effect, because the schedule was busy.
            arranged = self._wake_at.pop(key, None)
            at = min((one for one in (again, arranged) if one is not None), default=None)
            if at is not None:
                self._look_at(key, at)

    async def _advance(self, key: str) -> float | None:
        """Record and fire due ticks; return the Unix time of the next one."""
        while (known := self._known.get(key)) is not None:
            record, progress = known.record, known.progress
            if record is None:
                return None
            if progress is None:
                await self._store(known, begun(record, clock.now()))
                continue
            if progress.pending:
                await self._store(known, await self._fired(known.tenant, record, progress))
                continue
            found = reckon(known.tenant, record, known.control, progress, clock.now())
            if found.progress == progress:
                return found.wake_at.timestamp() if found.wake_at is not None else None
            SCHEDULES_LEFT_OUT.inc(found.progress.left_out - progress.left_out)
            await self._store(known, found.progress)
        return None

    async def _fired(
        self, tenant: str, record: ScheduleRecord, progress: ScheduleProgress
    ) -> ScheduleProgress:
        """Fire pending ticks, in order; return the progress without them."""
        fired, failure = progress.fired, progress.failure
        last_tick, last_run_id = progress.last_tick, progress.last_run_id
        for tick in progress.pending:
            outcome = await self._firing.fire(tenant, record, tick)
            if isinstance(outcome, ScheduleFailure):
                failure = outcome
                continue
            fired, failure = fired + 1, None
            last_tick, last_run_id = tick, outcome
        return progress.model_copy(
            update={
                "pending": (),
                "fired": fired,
                "failure": failure,
                "last_tick": last_tick,
                "last_run_id": last_run_id,
            }
        )

    async def _store(self, known: _Known, progress: ScheduleProgress) -> None:
        """Record progress; where another engine was first, take over its record."""
        key = subjects.schedule_part_key(known.tenant, known.name, "progress")
        value = progress.model_dump_json(exclude_defaults=True).encode()
        before = known.revision
        try:
            if known.progress is None:
                revision = await self._bucket.create(key, value)
            else:
                revision = await self._bucket.update(key, value, before)
        except ConflictError:
            entry = await self._bucket.get(key)
            if entry is None:
                known.progress = None
            elif entry.revision >= known.revision:
                known.progress = SCHEDULE_PROGRESS.validate_json(entry.value)
                known.revision = entry.revision
            return
        if revision > known.revision:
            known.progress, known.revision = progress, revision


def _read(adapter: TypeAdapter[RecordT], change: KvChange) -> RecordT | None:
    """Read a stored value; one that cannot be read counts as none."""
    if change.value is None:
        return None
    try:
        return adapter.validate_json(change.value)
    except ValidationError as error:
        log.exception("schedule.unreadable", key=change.key, reason=str(error))
        return None
