"""The runs of an engine: their states, cached while the lease on their shard is held."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import nsmallest
from operator import attrgetter
from typing import Final

from penstock.contracts.facts import RunStatus
from penstock.contracts.plan import Plan
from penstock.runs.state import RunState
from penstock_orchestrator.core.decide import wake_at
from penstock_orchestrator.core.progress import Progress

_ENDED_KEPT: Final = 20_000
_touched_at = attrgetter("touched_at")


@dataclass(slots=True, eq=False)
class Slot:
    """One run: its state (``None``: not in memory), and the lock that orders its inputs."""

    tenant: str
    shard: int
    run_id: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    state: RunState | None = None
    progress: Progress | None = None
    """Derived from the state, and dropped with it."""
    plan: Plan | None = None
    traceparent: str | None = None
    wake_at: float | None = None
    """Unix time when time alone changes something; ``None``: not computed yet."""
    touched_at: float = 0.0
    """Unix time of the last input or check."""


class RunTable:
    """All slots of a process, and the ids of runs that ended lately."""

    def __init__(self) -> None:
        """Create an empty table."""
        self._slots: dict[str, Slot] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """Count the open runs of this process."""
        return len(self._slots)

    def slot(self, tenant: str, shard: int, run_id: str) -> Slot:
        """Return the slot of a run; create it if there is none."""
        slot = self._slots.get(run_id)
        if slot is None:
            slot = self._slots[run_id] = Slot(tenant, shard, run_id)
        return slot

    def has_ended(self, run_id: str) -> bool:
        """Return whether the run is known to have ended, without a read."""
        return run_id in self._ended

    def end(self, slot: Slot) -> bool:
        """Evict an ended run and remember its id. Returns True the first time."""
        self._slots.pop(slot.run_id, None)
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
        self._slots.pop(slot.run_id, None)

    def forget_shard(self, shard: int) -> list[Slot]:
        """Drop and return the slots of a shard that another engine leads now."""
        dropped = [slot for slot in self._slots.values() if slot.shard == shard]
        for slot in dropped:
            del self._slots[slot.run_id]
        return dropped

    def due(self, now: float) -> list[Slot]:
        """Return the runs for which time alone changes something by ``now`` (Unix time)."""
        return [slot for slot in self._slots.values() if _wake_at(slot) <= now]

    def idle(self, before: float, most: int) -> list[Slot]:
        """Return the runs without input or check since ``before``, the longest idle first.

        Args:
            before: Unix time.
            most: Maximum length of the result.
        """
        found = (slot for slot in self._slots.values() if slot.touched_at < before)
        return nsmallest(most, found, key=_touched_at)

    def evict_idle(self, before: float) -> None:
        """Drop the states of runs that wait and had no input since ``before`` (Unix time).

        The next input reads the run from the log. The slot stays, with the time at which it is
        due. A run whose lock is held is in use and keeps its state.
        """
        for slot in self._slots.values():
            state = slot.state
            if state is None or slot.touched_at >= before or slot.lock.locked():
                continue
            if state.status is RunStatus.WAITING:
                slot.wake_at = _wake_at(slot)
                slot.state = slot.progress = slot.plan = None

    def known(self, run_id: str) -> bool:
        """Return whether the run has a slot."""
        return run_id in self._slots


def _wake_at(slot: Slot) -> float:
    """Return when time alone changes something; computed late, as most runs end before that."""
    if slot.wake_at is None:
        at = None
        if slot.plan is not None and slot.state is not None:
            at = wake_at(slot.plan, slot.state)
        slot.wake_at = at.timestamp() if at is not None else float("inf")
    return slot.wake_at
