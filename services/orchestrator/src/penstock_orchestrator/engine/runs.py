"""The runs of an engine: their states, cached while the lease on their shard is held; plans."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, islice, takewhile
from typing import Final

from pydantic import ValidationError

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError
from penstock.contracts.facts import RunStatus, StepKind
from penstock.contracts.plan import PLAN, Plan
from penstock.runs.state import RunState
from penstock_orchestrator.core.decide import wake_at
from penstock_orchestrator.core.progress import Progress
from penstock_orchestrator.engine.containment import contained

_ENDED_KEPT: Final = 20_000
_PLANS_KEPT: Final = 1000
_NEVER: Final = float("inf")
_STALE_ENTRIES: Final = 10_000


@dataclass(slots=True, eq=False)
class Slot:
    """One run: its state (``None``: not in memory), and the lock that orders its inputs."""

    tenant: str
    shard: int
    run_id: str
    prefix: str
    """The stem of the run's subjects."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    state: RunState | None = None
    generation: int = 0
    """``Cancels.generation`` when the state was read."""
    progress: Progress | None = None
    """Derived from the state, and dropped with it."""
    plan: Plan | None = None
    traceparent: str | None = None
    wake_at: float | None = None
    """Unix time when time alone changes something; ``None``: not computed yet."""
    touched_at: float = 0.0
    """Unix time of the last input or check."""
    failure: Exception | None = None
    """Why the time of the next wake-up cannot be computed: the wake-up ends the run."""
    checked_seq: int = 0
    """Last sequence of a run that was checked completely; 0: the next check reloads it."""

    def note_check(self, reloaded_seq: int) -> None:
        """Note a check of the run, which was reloaded up to a sequence (0: it was not).

        The next check is short if the run waits, and was reloaded and repaired without a decision.
        A run with an open child is reloaded each time: the child may have ended without a result
        in this log.
        """
        state = self.state
        complete = (
            state is not None
            and state.status is RunStatus.WAITING
            and state.last_seq == reloaded_seq
            and not any(step.kind is StepKind.RUN and step.open for step in state.steps.values())
        )
        self.checked_seq = reloaded_seq if complete else 0


class RunTable:
    """All slots of a process, and the ids of runs that ended lately.

    What a tick does costs in proportion to the runs that it finds, not to those that wait.
    """

    def __init__(self) -> None:
        """Create an empty table."""
        self._slots: dict[str, Slot] = {}
        """The longest untouched first."""
        self._loaded: dict[str, Slot] = {}
        """Slots that may have a state in memory, the longest untouched first."""
        self._unscheduled: dict[str, Slot] = {}
        """Slots that may have no entry in ``_timetable``."""
        self._timetable: list[tuple[float, int, Slot]] = []
        """A heap by ``wake_at``; entries of another time than the slot's are stale."""
        self._entries = count()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """Count the open runs of this process."""
        return len(self._slots)

    def slot(self, tenant: str, shard: int, run_id: str) -> Slot:
        """Return the slot of a run; create it if there is none."""
        slot = self._slots.get(run_id)
        if slot is None:
            prefix = subjects.run_prefix(tenant, shard, run_id)
            slot = self._slots[run_id] = Slot(tenant, shard, run_id, prefix)
        return slot

    def touch(self, slot: Slot, now: float) -> None:
        """Record an input or check of a run at ``now`` (Unix time)."""
        slot.touched_at = now
        run_id = slot.run_id
        if self._slots.get(run_id) is not slot:
            return  # forgotten while it waited for its lock
        for slots in (self._slots, self._loaded):
            slots.pop(run_id, None)
            slots[run_id] = slot
        self._unscheduled[run_id] = slot

    def reschedule(self, slot: Slot) -> None:
        """Compute at the next tick when time alone changes something."""
        slot.wake_at = None
        if self._slots.get(slot.run_id) is slot:
            self._unscheduled[slot.run_id] = slot

    def has_ended(self, run_id: str) -> bool:
        """Return whether the run is known to have ended, without a read."""
        return run_id in self._ended

    def end(self, slot: Slot) -> bool:
        """Evict an ended run and remember its id. Returns True the first time."""
        self.forget(slot)
        if slot.run_id in self._ended:
            return False
        self._ended[slot.run_id] = None
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        return True

    def forget_end(self, run_id: str) -> None:
        """Forget that a run has ended."""
        self._ended.pop(run_id, None)

    def forget(self, slot: Slot) -> None:
        """Drop a run and all that is cached of it."""
        for slots in (self._slots, self._loaded, self._unscheduled):
            slots.pop(slot.run_id, None)

    def forget_shard(self, shard: int) -> list[Slot]:
        """Drop and return the slots of a shard that another engine leads now."""
        dropped = [slot for slot in self._slots.values() if slot.shard == shard]
        for slot in dropped:
            self.forget(slot)
        return dropped

    def due(self, now: float) -> list[Slot]:
        """Return the runs for which time alone changes something by ``now`` (Unix time)."""
        for slot in self._unscheduled.values():
            at = _wake_at(slot)
            if at != _NEVER:
                heappush(self._timetable, (at, next(self._entries), slot))
        self._unscheduled.clear()
        due: dict[str, Slot] = {}
        while self._timetable and self._timetable[0][0] <= now:
            at, _, slot = heappop(self._timetable)
            if slot.wake_at == at and self._slots.get(slot.run_id) is slot:
                due[slot.run_id] = slot
        # A run that cannot be woken now is due again at the next tick.
        self._unscheduled.update(due)
        if len(self._timetable) > 2 * len(self._slots) + _STALE_ENTRIES:
            self._rebuild_timetable()
        return list(due.values())

    def _rebuild_timetable(self) -> None:
        """Drop stale entries; ``due`` enters the other slots again."""
        self._timetable.clear()
        self._unscheduled.update(self._slots)

    def idle(self, before: float, most: int) -> list[Slot]:
        """Return the runs without input or check since ``before``, the longest idle first.

        Args:
            before: Unix time.
            most: Maximum length of the result.
        """
        oldest = islice(self._slots.values(), most)
        return list(takewhile(lambda slot: slot.touched_at < before, oldest))

    def evict_idle(self, before: float) -> None:
        """Drop the states of runs that wait and had no input since ``before`` (Unix time).

        The next input reads the run from the log. The slot stays, with the time at which it is
        due. A run whose lock is held is in use and keeps its state.
        """
        for slot in list(takewhile(lambda one: one.touched_at < before, self._loaded.values())):
            state = slot.state
            if slot.lock.locked():
                continue
            del self._loaded[slot.run_id]
            if state is not None and state.status is RunStatus.WAITING:
                slot.wake_at = _wake_at(slot)
                slot.state = slot.progress = slot.plan = None

    def known(self, run_id: str) -> bool:
        """Return whether the run has a slot."""
        return run_id in self._slots


def _wake_at(slot: Slot) -> float:
    """Return when time alone changes something; computed late, as most runs end before that."""
    if slot.wake_at is None:
        at = None
        with contained() as failed:
            if slot.plan is not None and slot.state is not None:
                at = wake_at(slot.plan, slot.state)
            slot.wake_at = at.timestamp() if at is not None else _NEVER
        if failed.error is not None:
            slot.failure, slot.wake_at = failed.error, 0.0
    return slot.wake_at or 0.0


class Plans:
    """The plans that this engine has used lately, by digest: a plan never changes."""

    def __init__(self, bus: Bus) -> None:
        """Read from bucket ``plans``."""
        self._bucket = Bucket(bus, subjects.PLANS)
        self._kept: OrderedDict[str, Plan] = OrderedDict()

    async def get(self, digest: str) -> Plan | None:
        """Return the plan with this digest, or ``None`` if it is not published.

        Raises:
            InvariantError: ``unreadable_plan``.
            TransientError: The bucket does not answer.
        """
        plan = self._kept.get(digest)
        if plan is not None:
            self._kept.move_to_end(digest)
            return plan
        entry = await self._bucket.get(digest)
        if entry is None:
            return None
        try:
            plan = PLAN.validate_json(entry.value)
        except ValidationError as error:
            raise InvariantError("unreadable_plan", f"plan {digest}: {error}") from error
        self._kept[digest] = plan
        if len(self._kept) > _PLANS_KEPT:
            self._kept.popitem(last=False)
        return plan
