"""Attempts at steps: the first, the next, and the repeat of one that was decided before.

Every kind of node schedules its steps here, so that budget and room are checked in one place. No
other module of Penstock decides that a failed attempt is tried again.
"""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Final, Literal

from penstock.contracts.actions import Respond, RouteToAgent
from penstock.contracts.errors import THROTTLED, InvariantError
from penstock.contracts.facts import Wait
from penstock.contracts.ids import parse_step_id, turn_step_id
from penstock.contracts.plan import AgentNode, Node, RetryPolicy, SendNode, ToolNode, WorkflowNode
from penstock.expressions.templates import render
from penstock.runs.state import RunState, StepState
from penstock_orchestrator.core import budget, conversation, dispatch
from penstock_orchestrator.core.budget import step_deadline
from penstock_orchestrator.core.decisions import Planned, Timer
from penstock_orchestrator.core.progress import Instance, action_of
from penstock_orchestrator.core.view import View
from penstock_orchestrator.core.walk import Walk

_LONGEST_SECONDS: Final = 366 * 86_400.0
"""No run lives so long; beyond it a foreign ``Retry-After`` would leave the calendar."""


def order(walk: Walk, instance: Instance[Node], planned: Planned) -> bool:
    """Schedule a step if its runner pool has room and the budget allows; return whether it was."""
    if walk.budget.bounded:
        verdict = walk.budget.take(planned.reserve or budget.NOTHING)
        if verdict == "later":
            walk.starve(instance)
            return False
        if verdict == "exhausted":
            walk.run_out()
            return False
    if not walk.take_room(planned.pool):
        walk.hold(instance)
        return False
    walk.ordered.add(instance.id)
    walk.plan_step(planned)
    return True


def again(
    walk: Walk, instance: Instance[Node], step: StepState, policy: RetryPolicy
) -> Literal["wait", "now", "failed"]:
    """Decide whether a failed or waiting step retries now, keeps waiting, or has failed."""
    if step.status == "failed":
        wait = next_attempt(policy, walk.state, step, walk.now)
        if wait is None:
            return "failed"
        walk.waits.append(wait)
        walk.timers.append(Timer(wait.timer_id, wait.due_at))
        walk.progress.later(wait.due_at, instance)
        return "wait"
    if step.status == "waiting" and step.wait is not None:
        if walk.now >= step.wait.due_at:
            return "now"
        walk.progress.later(step.wait.due_at, instance)
    return "wait"


def next_attempt(
    policy: RetryPolicy, state: RunState, step: StepState, now: datetime
) -> Wait | None:
    """Return when a failed step is tried again, or ``None`` if it has failed for good.

    The delay grows by ``factor`` from ``initial_seconds`` up to ``max_seconds``, spread by a
    jitter that is derived from run, step and attempt; a longer ``retry_after_seconds`` of the
    error is honoured. An attempt that a rate limit turned away is no try.
    """
    error = step.error
    if error is None:
        return None
    throttled = error.code == THROTTLED
    tries = step.attempt - step.throttled
    if not throttled and (error.family not in policy.retry_on or tries >= policy.max_attempts):
        return None
    delay = _back_off(policy, max(tries, 1))
    seed = zlib.crc32(f"{state.run_id}:{step.step_id}:{step.attempt}".encode()) / 0xFFFFFFFF
    delay *= 1 + policy.jitter * (2 * seed - 1)
    if error.retry_after_seconds is not None:
        delay = max(delay, error.retry_after_seconds)
    delay = min(delay, _LONGEST_SECONDS)
    attempt = step.attempt + 1
    return Wait(
        timer_id=f"{step.step_id}-{attempt}"[-64:],
        step_id=step.step_id,
        next_attempt=attempt,
        due_at=now + timedelta(seconds=delay),
    )


def _back_off(policy: RetryPolicy, attempt: int) -> float:
    try:
        delay = policy.initial_seconds * policy.factor ** (attempt - 1)
    except OverflowError:
        return policy.max_seconds
    return min(delay, policy.max_seconds)


def retry(walk: Walk, instance: Instance[Node], step: StepState, attempt: int) -> None:
    """Schedule a further attempt at a step."""
    if isinstance(instance.node, WorkflowNode):
        begin_child(walk, instance.of(instance.node), attempt)
        return
    order(walk, instance, attempted(walk.view, instance, step, attempt, walk.now))


def attempted(
    view: View, instance: Instance[Node], step: StepState, attempt: int, now: datetime
) -> Planned:
    """Rebuild an attempt decided before, with its reservation.

    Raises:
        InvariantError: The step belongs to no node of the plan.
        RejectedError: A template cannot be rendered.
    """
    match instance.node:
        case ToolNode() as node:
            call = dispatch.node_call(view, instance.of(node))
            return dispatch.tool_step(view, instance, call, step.step_id, attempt, now)
        case WorkflowNode() as node:
            own = budget.limits_of(view.plan, view.state)
            limits = budget.limits_within(own, node.child.limits, step.reserve or budget.NOTHING)
            end = step_deadline(node, view.plan, view.state, now)
            return dispatch.child_run(
                view, instance.of(node), attempt, now, end, limits, step.reserve
            )
        case SendNode() as node:
            end = step_deadline(node, view.plan, view.state, now)
            return dispatch.message(view, instance.of(node), attempt, now, end)
        case AgentNode() as node:
            return _agent_step(view, instance.of(node), step, attempt, now)
        case _:
            raise InvariantError("no_such_step", f"{step.step_id} belongs to no node of the plan")


def _agent_step(
    view: View, instance: Instance[AgentNode], step: StepState, attempt: int, now: datetime
) -> Planned:
    """Build an attempt at a turn of an agent, or at a tool call of a turn."""
    _, _, turn, index = parse_step_id(step.step_id)
    if turn is None:
        raise InvariantError("no_such_step", f"{step.step_id} belongs to no node of the plan")
    if index is None:
        return _turn(view, instance, step, turn, now)
    asked_by = view.state.steps[turn_step_id(instance.id, turn)]
    action = action_of(asked_by)
    if isinstance(action, Respond | RouteToAgent):
        raise InvariantError("no_such_call", f"step {step.step_id} belongs to no tool call")
    requested = action.calls[index]
    speaker = view.plan.agents[asked_by.name or instance.node.ref]
    tool = dispatch.tool_for(view, speaker, requested.name)
    call = dispatch.Call(tool, requested.arguments, {})
    return dispatch.tool_step(view, instance, call, step.step_id, attempt, now)


def _turn(
    view: View, instance: Instance[AgentNode], step: StepState, turn: int, now: datetime
) -> Planned:
    node = instance.node
    name = step.name or conversation.speaker_at(view, instance.id, turn, node.ref)
    agent = view.plan.agents[name]
    given = render(node.input, view.scope(node.id, instance.path))
    messages = conversation.messages(view, instance.id, given, turn, agent, node.ref)
    most = budget.answer_within(step.reserve, dispatch.prompt_bytes(agent, messages))
    prompt = dispatch.Prompt(messages, step.reserve, most)
    return dispatch.agent_turn(view, instance, agent, turn, step.attempt, now, prompt)


def begin_child(walk: Walk, instance: Instance[WorkflowNode], attempt: int) -> None:
    """Schedule an attempt at a child run, with the share of the budget that is left for it."""
    limits, reserve, verdict = budget.child_limits(walk.budget, instance.node.child.limits)
    if verdict == "later":
        walk.starve(instance)
    elif verdict == "exhausted":
        walk.run_out()
    else:
        expires_at = step_deadline(instance.node, walk.plan, walk.state, walk.now)
        planned = dispatch.child_run(
            walk.view, instance, attempt, walk.now, expires_at, limits, reserve
        )
        order(walk, instance, planned)
