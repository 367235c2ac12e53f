"""Work shares: tenants whose expressions cost much take turns, and do not delay the others.

A tenant owes the work of its costly decisions. While it owes, its runs wait here instead of being
decided at once; ``pop`` lets each waiting tenant pay off the work of one decision in turn, and
returns a run once its tenant owes nothing. Runs of other tenants are decided meanwhile.

Pure, and never stored: a new engine finds the runs to decide in the logs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from penstock_orchestrator.core.walk import MOST_WORK

SlotT = TypeVar("SlotT", bound=Hashable)

_LIGHT: Final = MOST_WORK // 10
"""Work of a decision that a tenant does not owe, in units of expressions (about 3 ms)."""


class WorkShares(Generic[SlotT]):
    """The costly runs of one engine."""

    def __init__(self) -> None:
        """Create it: no tenant owes anything."""
        self.debts: dict[str, int] = {}
        """Work that tenants owe, in units of expressions; their runs have to wait."""
        self._waiting: OrderedDict[str, OrderedDict[SlotT, None]] = OrderedDict()
        """Runs by tenant; the next one first."""

    def spend(self, tenant: str, units: int) -> None:
        """Count the work of a decision."""
        if units > _LIGHT:
            self.debts[tenant] = self.debts.get(tenant, 0) + units

    def wait(self, tenant: str, slot: SlotT) -> None:
        """Queue a run, unless it is queued."""
        self._waiting.setdefault(tenant, OrderedDict())[slot] = None

    def drop(self, tenant: str, slot: SlotT) -> None:
        """Forget a run: it has ended, or another engine leads its shard."""
        runs = self._waiting.get(tenant)
        if runs is not None and slot in runs:
            del runs[slot]
            if not runs:
                del self._waiting[tenant]

    def pop(self) -> SlotT | None:
        """Return the next run to decide; ``None`` if none waits."""
        while self._waiting:
            tenant, runs = next(iter(self._waiting.items()))
            self._waiting.move_to_end(tenant)
            owed = self.debts.pop(tenant, 0) - MOST_WORK
            if owed > 0:
                self.debts[tenant] = owed
                continue
            slot, _ = runs.popitem(last=False)
            if not runs:
                del self._waiting[tenant]
            return slot
        return None
