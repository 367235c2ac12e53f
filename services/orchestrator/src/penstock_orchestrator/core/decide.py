"""``decide``: the next decision of a run, from its plan, its state and the time.

It looks at what is the case, not at what has just changed, so it may be asked at any time and by
anybody; the same question gets the same answer. Asked again after its decision is folded in, it
says what is left to do, in the end nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal

from penstock.contracts.actions import Respond, UseTools
from penstock.contracts.errors import (
    ErrorDetail,
    ErrorFamily,
    ErrorInfo,
    InvariantError,
    RejectedError,
)
from penstock.contracts.facts import (
    BlockedCall,
    Decision,
    RunEnded,
    RunStatus,
    StateChanged,
    StepResult,
    Wait,
)
from penstock.contracts.ids import call_step_id
from penstock.contracts.plan import Node, Plan, RetryPolicy
from penstock.contracts.state import RunState, StepState
from penstock.contracts.subjects import END_SUFFIX, STATE_SUFFIX
from penstock.contracts.templates import render
from penstock_orchestrator.core import nodes, schedule
from penstock_orchestrator.core.decisions import Decided, Expired, Output, Planned, Repair
from penstock_orchestrator.core.retries import next_attempt
from penstock_orchestrator.core.scope import scope_of

EXPIRY_GRACE: Final = timedelta(seconds=2)
"""How long after a step's expiry its runner may still report; then it is stated as failed."""


class _RunFailedError(Exception):
    def __init__(self, error: ErrorInfo) -> None:
        super().__init__(error.code)
        self.error = error


def decide(
    plan: Plan, state: RunState, now: datetime, cause_seq: int, changed_step: str | None = None
) -> Decided | None:
    """Return the run's next decision, or ``None`` if there is nothing to decide.

    Args:
        plan: The plan that the run was asked to execute.
        state: All that is known of the run.
        now: Time of the cause.
        cause_seq: Stream sequence of the cause; 0 if it is time alone.
        changed_step: If only this step changed since the last answer ``None``, its id: the answer
            is the same, found sooner.
    """
    if state.ended is not None or state.invoked is None:
        return None
    if state.cancel is not None:
        reason = state.cancel.reason or "cancelled on request"
        error = ErrorInfo(code="cancelled", message=reason)
        return _end(state, now, cause_seq, RunStatus.CANCELLED, error=error)
    if now >= run_deadline(plan, state):
        error = ErrorInfo(code="run_timeout", message="the run took longer than it may")
        return _end(state, now, cause_seq, RunStatus.FAILED, error=error)
    try:
        found = _Found(plan, state, now)
        found.look(changed_step)
        if found.waits:
            return _wait(state, now, cause_seq, tuple(found.waits))
        if found.steps:
            return _schedule(state, cause_seq, found)
        if state.open_steps == 0 and all(nodes.finished(node, state) for node in plan.nodes):
            return _done(plan, state, now, cause_seq)
    except _RunFailedError as failed:
        return _end(state, now, cause_seq, RunStatus.FAILED, error=failed.error)
    except RejectedError as rejected:
        return _end(state, now, cause_seq, RunStatus.FAILED, error=rejected.info())
    return None


def repair(plan: Plan, state: RunState) -> list[Repair]:
    """Return the messages that decisions promised and that nobody has published yet.

    Nothing is left to publish for a run that has ended or is to be cancelled.
    """
    missing: dict[int, list[Output]] = {}
    if state.ended is not None or state.cancel is not None:
        return []
    for step in state.steps.values():
        if step.status == "planned":
            output = _scheduled_again(plan, state, step)
            missing.setdefault(step.decision, []).append(output)
    return [Repair(number, tuple(outputs)) for number, outputs in sorted(missing.items())]


def expired(state: RunState, now: datetime) -> list[Expired]:
    """Return the attempts whose time is over without an outcome."""
    if state.ended is not None:
        return []
    return [
        Expired(
            step.step_id,
            step.attempt,
            StepResult(
                occurred_at=now,
                kind=step.kind,
                name=step.name,
                status="failed",
                error=ErrorInfo(
                    code="step_timeout",
                    message="no outcome before the step's deadline",
                    family=ErrorFamily.TRANSIENT,
                ),
                started_at=step.decided_at,
            ),
        )
        for step in state.steps.values()
        if step.status == "scheduled"
        and step.expires_at is not None
        and now >= step.expires_at + EXPIRY_GRACE
    ]


def run_deadline(plan: Plan, state: RunState) -> datetime:
    """Return when the run ends at the latest; it must have been asked for."""
    invoked = state.request
    limit = invoked.limits.timeout_seconds or plan.timeout_seconds
    return invoked.occurred_at + timedelta(seconds=min(limit, plan.timeout_seconds))


def wake_at(plan: Plan, state: RunState) -> datetime | None:
    """Return when time alone will next change what ``decide`` or ``expired`` says."""
    if state.ended is not None or state.invoked is None:
        return None
    soonest = run_deadline(plan, state)
    if state.open_steps:
        for step in state.steps.values():
            if step.status == "scheduled" and step.expires_at is not None:
                soonest = min(soonest, step.expires_at + EXPIRY_GRACE)
            elif step.status == "waiting" and step.wait is not None:
                soonest = min(soonest, step.wait.due_at)
    return soonest


class _Found:
    """What is to be done now: steps to schedule, waits to begin, calls that are blocked."""

    def __init__(self, plan: Plan, state: RunState, now: datetime) -> None:
        self.plan = plan
        self.state = state
        self.now = now
        self.steps: list[Planned] = []
        self.waits: list[Wait] = []
        self.blocked: list[BlockedCall] = []

    def look(self, changed_step: str | None) -> None:
        if changed_step is None:
            for node in self.plan.nodes:
                self._node(node)
            return
        changed = self.plan.by_id[changed_step.split("-", 1)[0]]
        self._node(changed)
        if nodes.finished(changed, self.state):
            for node in self.plan.successors[changed.id]:
                self._node(node)

    def _node(self, node: Node) -> None:
        state = self.state
        if not nodes.started(node, state):
            # The last need is the likeliest to be open still.
            if all(
                nodes.finished(self.plan.by_id[needed], state) for needed in reversed(node.needs)
            ):
                self.steps.append(self._begin(node))
        elif node.kind == "tool":
            step = state.steps[node.id]
            if step.status == "failed" or step.status == "waiting":
                policy = node.retry or self.plan.tools[node.ref].retry
                if self._again(node, step, policy):
                    raise _RunFailedError(_step_error(step))
        else:
            self._agent(node)

    def _begin(self, node: Node) -> Planned:
        if node.kind == "tool":
            return schedule.tool_node(self.plan, self.state, node, 1, self.now)
        return schedule.agent_turn(self.plan, self.state, node, 1, 1, self.now)

    def _again(self, node: Node, step: StepState, policy: RetryPolicy) -> bool:
        """Take a failed or waiting step on; tell whether it has failed for good."""
        if step.status == "failed":
            wait = next_attempt(policy, self.state, step, self.now)
            if wait is None:
                return True
            self.waits.append(wait)
        elif step.status == "waiting" and step.wait is not None and self.now >= step.wait.due_at:
            attempt = step.wait.next_attempt
            self.steps.append(_attempt(self.plan, self.state, node, step, attempt, self.now))
        return False

    def _agent(self, node: Node) -> None:
        agent = self.plan.agents[node.ref]
        number, turn = nodes.latest_turn(node, self.state)
        if turn.status != "succeeded":
            if self._again(node, turn, node.retry or agent.retry):
                raise _RunFailedError(_step_error(turn))
            return
        try:
            action = nodes.action_of(turn)
        except ValueError as error:
            raise _RunFailedError(
                ErrorInfo(
                    code="invalid_action",
                    message=f"the turn {turn.step_id} ended with no valid action: {error}"[:500],
                )
            ) from error
        if isinstance(action, Respond) or self._calls(node, number, action):
            return
        limit = self._max_turns(agent.max_turns)
        if number >= limit:
            raise _RunFailedError(
                ErrorInfo(
                    code="max_turns_exceeded",
                    message=f"agent {agent.name} did not respond within {limit} turns",
                )
            )
        self.steps.append(schedule.agent_turn(self.plan, self.state, node, number + 1, 1, self.now))

    def _calls(self, node: Node, number: int, action: UseTools) -> bool:
        """Take the tool calls of a turn on; tell whether any of them is still open."""
        agent = self.plan.agents[node.ref]
        waiting, begun = False, False
        blocked: list[BlockedCall] = []
        for index, call in enumerate(action.calls):
            step_id = call_step_id(node.id, number, index)
            if call.name not in agent.tools or call.name not in self.plan.tools:
                reason = schedule.blocked_reason(agent, call)
                blocked.append(BlockedCall(step_id=step_id, tool=call.name, reason=reason))
                continue
            step = self.state.steps.get(step_id)
            begun |= step is not None
            if step is None:
                self.steps.append(
                    schedule.tool_call(self.plan, self.state, node, step_id, call, 1, self.now)
                )
                waiting = True
            elif step.status in ("failed", "waiting"):
                # An agent is told of a tool's failure: it does not fail the run.
                waiting |= not self._again(node, step, self.plan.tools[call.name].retry)
            elif step.open:
                waiting = True
        if not begun:
            # All calls of a turn begin in one decision; later ones do not tell of it again.
            self.blocked += blocked
        return waiting

    def _max_turns(self, planned: int) -> int:
        invoked = self.state.invoked
        asked = invoked.limits.max_turns if invoked is not None else None
        return min(planned, asked) if asked is not None else planned


def _attempt(
    plan: Plan, state: RunState, node: Node, step: StepState, attempt: int, now: datetime
) -> Planned:
    """Schedule an attempt at a step that was decided before."""
    parts = step.step_id.split("-")
    if len(parts) == 1:
        return schedule.tool_node(plan, state, node, attempt, now)
    turn = int(parts[1])
    if len(parts) == 2:
        return schedule.agent_turn(plan, state, node, turn, attempt, now)
    action = nodes.action_of(state.steps[f"{parts[0]}-{turn}"])
    if isinstance(action, Respond):
        raise InvariantError("no_such_call", f"step {step.step_id} belongs to no tool call")
    call = action.calls[int(parts[2])]
    return schedule.tool_call(plan, state, node, step.step_id, call, attempt, now)


def _scheduled_again(plan: Plan, state: RunState, step: StepState) -> Output:
    node = plan.by_id[step.step_id.split("-", 1)[0]]
    return _attempt(plan, state, node, step, step.attempt, step.decided_at).output()


def _schedule(state: RunState, cause_seq: int, found: _Found) -> Decided:
    first, *others = found.steps
    decision = Decision(
        cause_seq=cause_seq,
        manifest=tuple(planned.suffix for planned in others),
        blocked=tuple(found.blocked),
    )
    outputs = (first.output(decision), *(planned.output() for planned in others))
    return Decided(state.decisions + 1, outputs)


def _wait(state: RunState, now: datetime, cause_seq: int, waits: tuple[Wait, ...]) -> Decided:
    fact = StateChanged(occurred_at=now, decision=Decision(cause_seq=cause_seq), waits=waits)
    return Decided(state.decisions + 1, (Output(STATE_SUFFIX, fact),), waits=waits)


def _done(plan: Plan, state: RunState, now: datetime, cause_seq: int) -> Decided:
    if plan.output is not None:
        output = render(plan.output, scope_of(plan, state))
    else:
        output = nodes.outcome(plan.nodes[-1], state)[1]
    fact = RunEnded(
        occurred_at=now,
        decision=Decision(cause_seq=cause_seq),
        status=RunStatus.DONE,
        output=output,
        usage=state.usage,
    )
    return Decided(state.decisions + 1, (Output(END_SUFFIX, fact),))


def _end(
    state: RunState,
    now: datetime,
    cause_seq: int,
    status: Literal[RunStatus.FAILED, RunStatus.CANCELLED],
    *,
    error: ErrorInfo,
) -> Decided:
    fact = RunEnded(
        occurred_at=now,
        decision=Decision(cause_seq=cause_seq),
        status=status,
        error=error,
        usage=state.usage,
    )
    return Decided(state.decisions + 1, (Output(END_SUFFIX, fact),), stop=state.open_steps > 0)


def _step_error(step: StepState) -> ErrorInfo:
    error = step.error or ErrorInfo(code="step_failed", message="the step failed")
    return ErrorInfo(
        code=error.code,
        message=f"step {step.step_id} failed at attempt {step.attempt}: {error.message}",
        family=error.family,
        details=(ErrorDetail(path=step.step_id, message=error.message), *error.details),
    )
