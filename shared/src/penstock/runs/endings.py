"""Runs that have ended: what a view shows of them is what their end has found."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from penstock.contracts.usage import Reservation
from penstock.runs.state import RunState, StepState

_NOTHING: Final = Reservation()


def at_end(state: RunState) -> RunState:
    """Return a run that has ended as it was at its end; any other run as it is.

    The last decision names the steps without an outcome. They are ``stopped``, whatever comes
    late: the log keeps a late outcome, its cost counts in reports, and no view shows more of it.
    The sequence alone does not show which outcomes are late: a run that is put back into the log
    begins with its end. Every view of a run is made from this state.
    """
    ended = state.ended
    if ended is None:
        return state
    steps = state.steps
    for step_id in ended.decision.stops:
        step = steps.get(step_id)
        if step is not None and (step.undone or step.outcome_seq > state.ended_seq):
            steps = steps.set(step_id, _stopped(step))
    return replace(
        state,
        last_seq=state.ended_seq,
        updated_at=ended.occurred_at,
        steps=steps,
        reserved=_NOTHING,
    )


def _stopped(step: StepState) -> StepState:
    """Return a step without its late outcome, if it has one."""
    if step.undone:
        return replace(step, status="stopped")
    return replace(
        step,
        status="stopped",
        started_at=None,
        ended_at=None,
        output=None,
        error=None,
        usage=None,
        model=None,
        outcome_seq=0,
    )
