"""Places: which runs may be under way, and how many of their steps may wait for runners.

Places of runs with a concurrency key are kept on the bus, those at the runner pools in memory.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from penstock.contracts.errors import ErrorInfo, RejectedError
from penstock.contracts.plan import Plan
from penstock.runs.state import RunState, StepState
from penstock_orchestrator.core.deadlines import run_deadline
from penstock_orchestrator.core.decisions import Decided
from penstock_orchestrator.engine.admission import Admission, turn_name
from penstock_orchestrator.engine.runs import Slot
from penstock_orchestrator.engine.windows import Windows


class Places:
    """What an engine knows of places; with no windows there are always places for steps."""

    def __init__(self, admission: Admission, windows: Windows[Slot] | None) -> None:
        """Use the given ones."""
        self._admission = admission
        self._windows = windows

    # -- runs --------------------------------------------------------------------------------

    async def admit(
        self, slot: Slot, plan: Plan, state: RunState, now: datetime
    ) -> bool | ErrorInfo:
        """Ask for a place for a run that has none.

        Returns:
            ``True``: there is something to decide. ``False``: the run waits for its turn.
            An error: the run is to be ended with it.

        Raises:
            PenstockError: The bus does not answer.
        """
        if plan.concurrency is None or state.admitted or state.cancel is not None:
            return True
        try:
            key = turn_name(plan, state)
        except RejectedError as rejected:
            return rejected.info()
        verdict = await self._admission.ask(
            slot.tenant,
            slot.run_id,
            slot.shard,
            key,
            plan.concurrency,
            priority=state.request.priority,
        )
        if verdict.outcome == "rejected" and verdict.error is not None:
            return verdict.error
        # Its deadline holds while it waits; what admits or cancels it comes as an input.
        return now >= run_deadline(plan, state)

    async def leave(self, slot: Slot, plan: Plan, state: RunState) -> None:
        """Give up the place of a run that has ended.

        Raises:
            PenstockError: The bus does not answer.
        """
        if plan.concurrency is None:
            return
        try:
            key = turn_name(plan, state)
        except RejectedError:
            return  # it never asked for a place
        await self._admission.leave(slot.tenant, slot.run_id, key)

    async def sweep(self, shards: Collection[int]) -> None:
        """Repair the turns at all keys of some shards.

        Raises:
            PenstockError: The bus does not answer.
        """
        await self._admission.sweep(shards)

    # -- steps -------------------------------------------------------------------------------

    def room(self, slot: Slot, plan: Plan) -> dict[str, int] | None:
        """Return how many more steps of a run each of its plan's runner pools takes."""
        windows = self._windows
        if windows is None:
            return None
        return {pool: windows.room(pool, slot) for pool in plan.pools}

    def take(self, slot: Slot, state: RunState, decided: Decided) -> None:
        """Take the room that a decision uses, and wait for what it found full."""
        if self._windows is None:
            return
        tenant, priority = slot.tenant, state.request.priority
        for pool, count in decided.used.items():
            self._windows.take(tenant, pool, priority, slot, count)
        for pool in decided.full_pools:
            self._windows.wait(tenant, pool, priority, slot)

    def came_out(self, slot: Slot, step: StepState) -> None:
        """Give back the place of a step that has its outcome."""
        if self._windows is not None:
            self._windows.release(pool_of(step), slot)

    def read_anew(self, slot: Slot) -> None:
        """Count a run's places by what its log says."""
        state = slot.state
        if self._windows is None or state is None:
            return
        self._windows.drop(slot)
        for step in state.steps.values() if state.open_steps else ():
            if step.status in ("planned", "scheduled"):
                self._windows.hold(pool_of(step), slot, 1)

    def drop(self, slot: Slot) -> None:
        """Give back all places of a run."""
        if self._windows is not None:
            self._windows.drop(slot)

    def settle(self, slot: Slot) -> None:
        """Take back places that a run whose turn had come did not want any more."""
        if self._windows is not None:
            self._windows.settle(slot)

    def resize(self, pool: str, slots: int) -> None:
        """Take note of how many steps the live runners of a pool can work at."""
        if self._windows is not None:
            self._windows.resize(pool, slots)

    def next(self) -> list[Slot]:
        """Return the runs for whose steps places have become free."""
        return self._windows.next() if self._windows is not None else []


def pool_of(step: StepState) -> str:
    """Return the runner pool of a step: ``{kind}.{queue}``."""
    return f"{step.kind.value}.{step.queue}"
