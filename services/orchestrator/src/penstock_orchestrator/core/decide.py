"""``decide``: the next decision of a run, from its plan, its state and the time.

It is level-triggered: it reads the state and not the change, so any engine may call it at any
time, and the same arguments give the same decision. Called again after its decision is folded in,
it returns the remaining actions, in the end none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, TypeVar

from penstock.contracts.errors import ErrorFamily, ErrorInfo, RejectedError, finding
from penstock.contracts.facts import (
    Decision,
    NodeRecord,
    RunEnded,
    RunStatus,
    StateChanged,
    StepResult,
    Wait,
)
from penstock.contracts.ids import parse_step_id
from penstock.contracts.plan import Plan
from penstock.contracts.subjects import END_SUFFIX, STATE_SUFFIX
from penstock.contracts.usage import Reservation
from penstock.contracts.versions import check_against
from penstock.expressions.values import METER
from penstock.runs.state import RunState, StepState
from penstock_orchestrator.core import attempts, phases
from penstock_orchestrator.core.budget import run_deadline
from penstock_orchestrator.core.decisions import (
    Decided,
    Expired,
    Output,
    Planned,
    Repair,
    Timer,
    timer_at,
)
from penstock_orchestrator.core.kinds import advance
from penstock_orchestrator.core.progress import Path, Progress, instance_of
from penstock_orchestrator.core.view import View
from penstock_orchestrator.core.walk import MOST_WORK, Walk

FoundT = TypeVar("FoundT", Planned, Wait)

EXPIRY_GRACE: Final = timedelta(seconds=2)
"""How long after a step's expiry its runner may still report; then it is recorded as failed."""


def decide(
    plan: Plan,
    state: RunState,
    now: datetime,
    cause_seq: int,
    progress: Progress | None = None,
    room: Mapping[str, int] | None = None,
    most_work: int | None = None,
) -> Decided | None:
    """Return the run's next decision, or ``None`` if there is nothing to decide.

    A decision whose expressions cost much is cut: the next one continues, and ``progress.spent`` is
    at least ``MOST_WORK``, also where nothing was found before the cut. Where it is cut may depend
    on what ``progress`` has cached.

    Args:
        plan: The plan that the run executes.
        state: The run's state.
        now: Time of the cause.
        cause_seq: Stream sequence of the cause; 0 if it is time alone.
        progress: Cache of earlier decisions of the same run, notified of the changes since; it is
            updated on the assumption that the decision is published and folded in. Without it
            the result is the same, at a higher cost.
        room: How many more steps of this run each runner pool (``{kind}.{queue}``) takes; a pool
            that is not named takes any number. Steps beyond that are decided later, and the
            result names their pools.
        most_work: Work that the expressions of a run may cost, in units; beyond it the run fails.
    """
    if progress is not None:
        progress.spent = 0
    if state.ended is not None or state.invoked is None:
        return None
    if state.cancel is not None:
        reason = state.cancel.reason or "cancelled on request"
        error = ErrorInfo(code="cancelled", message=reason)
        return _end(state, now, cause_seq, RunStatus.CANCELLED, error=error)
    if now >= run_deadline(plan, state.invoked):
        error = ErrorInfo(code="run_timeout", message="the run took longer than it may")
        return _end(state, now, cause_seq, RunStatus.FAILED, error=error)
    if state.paused or (plan.concurrency is not None and not state.admitted):
        return None
    if state.decisions == 0 and state.invoked.parent is not None and plan.input_schema is not None:
        # A parent's templates give an input that no gateway has validated.
        try:
            check_against(plan.name, plan.input_schema, state.invoked.input)
        except RejectedError as rejected:
            return _end(state, now, cause_seq, RunStatus.FAILED, error=rejected.info())
    remembered = progress is not None
    walk = Walk(plan, state, now, progress or Progress(), advance, room, interruptible=remembered)
    return _advance(state, now, cause_seq, walk, most_work)


def _advance(
    state: RunState, now: datetime, cause_seq: int, walk: Walk, most_work: int | None
) -> Decided | None:
    progress, meter = walk.progress, walk.meter
    token = METER.set(meter)
    try:
        ended = phases.advance(walk)
    except RejectedError as rejected:
        return _end(state, now, cause_seq, RunStatus.FAILED, error=rejected.info(), walk=walk)
    finally:
        METER.reset(token)
        if meter.spent:
            progress.spent = meter.spent
            progress.work = max(state.work, progress.work) + meter.spent
    if most_work is not None and progress.work > most_work:
        return _end(state, now, cause_seq, RunStatus.FAILED, error=_exhausted(most_work))
    if ended is None:
        return _continue(state, now, cause_seq, walk)
    if ended.error is not None:
        return _end(state, now, cause_seq, RunStatus.FAILED, error=ended.error, walk=walk)
    decision = _last(state, cause_seq, walk)
    fact = RunEnded(
        occurred_at=now,
        decision=decision,
        status=RunStatus.DONE,
        output=ended.output,
        usage=state.spent,
    )
    outputs = (Output(END_SUFFIX, fact),)
    stop = state.open_steps > 0
    return Decided(state.decisions + 1, outputs, stop=stop, node_records=_node_records(walk))


def _exhausted(most_work: int) -> ErrorInfo:
    message = (
        f"the expressions of the run cost more than {most_work} units of work "
        "(PENSTOCK_RUN_MAX_WORK); do it in a tool"
    )
    detail = finding("expressions", "too much work", f"<= {most_work} units")
    return ErrorInfo(code="work_exhausted", message=message, details=(detail,))


def _work(walk: Walk) -> int:
    """Return the work so far as a decision records it; 0 while it has hardly grown."""
    work = walk.progress.work // MOST_WORK * MOST_WORK
    return work if work > walk.state.work else 0


def _continue(state: RunState, now: datetime, cause_seq: int, walk: Walk) -> Decided | None:
    """Build the decision from the walk's findings, or return ``None`` if there are none."""
    node_records = _node_records(walk)
    full_pools = frozenset(walk.full_pools)
    if not (walk.steps or node_records or walk.waits or walk.stops or walk.blocked):
        return Decided(state.decisions + 1, (), full_pools=full_pools) if full_pools else None
    stops = tuple(walk.stops)
    steps = _in_order(walk.plan, walk.steps)
    decision = Decision(
        cause_seq=cause_seq,
        manifest=tuple(planned.suffix for planned in steps[1:]),
        blocked=tuple(walk.blocked),
        node_records=node_records,
        waits=tuple(_in_order(walk.plan, walk.waits)),
        stops=stops,
        reserves=_reserves(walk, steps),
        work=_work(walk),
    )
    outputs: tuple[Output, ...]
    if steps:
        first, *others = steps
        outputs = (first.output(decision), *(planned.output() for planned in others))
    else:
        outputs = (Output(STATE_SUFFIX, StateChanged(occurred_at=now, decision=decision)),)
    return Decided(
        state.decisions + 1,
        outputs,
        tuple(sorted(walk.timers, key=_due)),
        stops=stops,
        node_records=node_records,
        used={} if walk.room is None else Counter(planned.pool for planned in steps),
        full_pools=full_pools,
    )


def _node_records(walk: Walk) -> tuple[NodeRecord, ...]:
    return tuple(walk.view.made.values())


def _in_order(plan: Plan, found: Sequence[FoundT]) -> Sequence[FoundT]:
    """Return what a walk has found in the order of the plan.

    A walk that remembers visits other nodes than one that does not, and must decide the same.
    """

    def place(one: FoundT) -> tuple[Path, int]:
        node_id, path, _, _ = parse_step_id(one.step_id)
        return path, plan.positions[node_id].order

    return found if len(found) < 2 else sorted(found, key=place)


def _due(timer: Timer) -> tuple[datetime, str]:
    return timer.due_at, timer.timer_id


def _reserves(walk: Walk, steps: Sequence[Planned]) -> dict[str, Reservation]:
    """Return what the steps after the first have reserved: a repair must say the same."""
    if not walk.budgeted:
        return {}
    return {
        planned.step_id: planned.reserve for planned in steps[1:] if planned.reserve is not None
    }


def repair(plan: Plan, state: RunState) -> list[Repair]:
    """Return the messages that decisions promised and that are not published yet.

    Nothing is left to publish for a run that has ended or is to be cancelled.
    """
    missing: dict[int, list[Output]] = {}
    if state.ended is not None or state.cancel is not None or state.invoked is None:
        return []
    view = View(plan, state)
    for step in state.steps.values():
        if step.status == "planned":
            missing.setdefault(step.decision, []).append(_scheduled_again(view, step))
    return [Repair(number, tuple(outputs)) for number, outputs in sorted(missing.items())]


def _scheduled_again(view: View, step: StepState) -> Output:
    node_id, path, _, _ = parse_step_id(step.step_id)
    node = view.plan.positions[node_id].node
    planned = attempts.attempted(view, instance_of(node, path), step, step.attempt, step.decided_at)
    return planned.output()


def expired(state: RunState, now: datetime) -> list[Expired]:
    """Return the attempts whose time is over without an outcome."""
    reserved = state.reserved.tokens or state.reserved.steps or state.reserved.cost_usd
    if state.ended is not None or not (state.open_steps or reserved):
        return []
    return [
        Expired(
            step.step_id,
            step.attempt,
            StepResult(
                occurred_at=now,
                kind=step.kind,
                name=step.name,
                status="unknown" if step.at_most_once else "failed",
                error=ErrorInfo(
                    code="outcome_unknown" if step.at_most_once else "step_timeout",
                    message="no outcome before the step's deadline",
                    family=ErrorFamily.TRANSIENT,
                ),
                started_at=step.decided_at,
            ),
        )
        for step in state.steps.values()
        if _awaited(step) and step.expires_at is not None and now >= step.expires_at + EXPIRY_GRACE
    ]


def _awaited(step: StepState) -> bool:
    """Return whether an attempt's outcome matters: to the plan, or to the budget alone."""
    return step.status == "scheduled" or (step.status == "stopped" and step.reserve is not None)


def wake_at(plan: Plan, state: RunState) -> datetime | None:
    """Return when time alone will next change the result of ``decide`` or ``expired``."""
    if state.ended is not None or state.invoked is None:
        return None
    soonest = run_deadline(plan, state.invoked)
    if state.open_steps or state.reserved.tokens or state.reserved.steps:
        for step in state.steps.values():
            if _awaited(step) and step.expires_at is not None:
                soonest = min(soonest, step.expires_at + EXPIRY_GRACE)
            elif step.status == "waiting" and step.wait is not None and not state.paused:
                soonest = min(soonest, step.wait.due_at)
    if state.open_records and not state.paused:
        for known in state.node_records.values():
            if known.open and known.node_record.due_at is not None:
                soonest = min(soonest, known.node_record.due_at)
    return soonest


def timers_of(state: RunState, now: datetime) -> list[Timer]:
    """Return the timers that a run waits for."""
    timers = {
        Timer(step.wait.timer_id, step.wait.due_at)
        for step in state.steps.values()
        if step.status == "waiting" and step.wait is not None and step.wait.due_at > now
    }
    timers |= {
        timer_at(known.node_record.due_at)
        for known in state.node_records.values()
        if known.open and known.node_record.due_at is not None and known.node_record.due_at > now
    }
    return sorted(timers, key=lambda timer: timer.timer_id)


def unplanned(state: RunState, now: datetime, cause_seq: int, error: ErrorInfo) -> Decided:
    """Return the decision that fails a run without a look at its plan."""
    return _end(state, now, cause_seq, RunStatus.FAILED, error=error)


def _end(
    state: RunState,
    now: datetime,
    cause_seq: int,
    status: Literal[RunStatus.FAILED, RunStatus.CANCELLED],
    *,
    error: ErrorInfo,
    walk: Walk | None = None,
) -> Decided:
    node_records = _node_records(walk) if walk is not None else ()
    fact = RunEnded(
        occurred_at=now,
        decision=_last(state, cause_seq, walk),
        status=status,
        error=error,
        usage=state.spent,
    )
    outputs = (Output(END_SUFFIX, fact),)
    stop = state.open_steps > 0
    return Decided(state.decisions + 1, outputs, stop=stop, node_records=node_records)


def _last(state: RunState, cause_seq: int, walk: Walk | None) -> Decision:
    """Return the decision in the fact that ends a run: it stops every step without an outcome."""
    stops = tuple(sorted(step.step_id for step in state.steps.values() if step.undone))
    if walk is None:
        return Decision(cause_seq=cause_seq, stops=stops)
    return Decision(
        cause_seq=cause_seq,
        node_records=_node_records(walk),
        blocked=tuple(walk.blocked),
        stops=stops,
    )
