"""The runs at hand: their states while the lease on their shard is held."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from penstock.contracts.plan import Plan
from penstock.runs.state import RunState
from penstock_orchestrator.core.decide import wake_at
from penstock_orchestrator.core.progress import Progress

_ENDED_KEPT: Final = 20_000


@dataclass(slots=True, eq=False)
class Slot:
    """One run: its state (``None``: to be read), and the lock under which it moves."""

    tenant: str
    shard: int
    run_id: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    state: RunState | None = None
    progress: Progress | None = None
    """What is remembered beside the state; it goes when the state does."""
    plan: Plan | None = None
    traceparent: str | None = None
    wake_at: float | None = None
    """Unix time when time alone changes something; ``None``: not worked out yet."""
    touched_at: float = 0.0
    """Unix time of the last input."""


class RunTable:
    """All slots of a process, and which runs have ended lately."""

    def __init__(self) -> None:
        """Create an empty table."""
        self._slots: dict[str, Slot] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """Count the runs at hand."""
        return len(self._slots)

    def slot(self, tenant: str, shard: int, run_id: str) -> Slot:
        """Return the slot of a run, made if need be."""
        slot = self._slots.get(run_id)
        if slot is None:
            slot = self._slots[run_id] = Slot(tenant, shard, run_id)
        return slot

    def has_ended(self, run_id: str) -> bool:
        """Tell whether the run is known to have ended, without reading anything."""
        return run_id in self._ended

    def end(self, slot: Slot) -> bool:
        """Forget a run that has ended, but that it has; tell whether that is news."""
        self._slots.pop(slot.run_id, None)
        if slot.run_id in self._ended:
            return False
        self._ended[slot.run_id] = None
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        return True

    def forget(self, slot: Slot) -> None:
        """Drop a run of which nothing is to be kept."""
        self._slots.pop(slot.run_id, None)

    def forget_shard(self, shard: int) -> list[Slot]:
        """Drop what may go stale, for another engine has the shard now; return what it was."""
        dropped = [slot for slot in self._slots.values() if slot.shard == shard]
        for slot in dropped:
            del self._slots[slot.run_id]
        return dropped

    def due(self, now: float, idle_seconds: float) -> list[Slot]:
        """Return the runs that time has moved, or that have not moved for long."""
        return [
            slot
            for slot in self._slots.values()
            if _wake_at(slot) <= now or now - slot.touched_at > idle_seconds
        ]

    def known(self, run_id: str) -> bool:
        """Tell whether the run has a slot."""
        return run_id in self._slots


def _wake_at(slot: Slot) -> float:
    """Work out when time alone changes something; most runs have ended before anybody asks."""
    if slot.wake_at is None:
        at = None
        if slot.plan is not None and slot.state is not None:
            at = wake_at(slot.plan, slot.state)
        slot.wake_at = at.timestamp() if at is not None else float("inf")
    return slot.wake_at
