"""Nodes that are one step, or none: tools, transforms, child runs, messages, the end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from penstock.contracts.actions import Respond, RouteToAgent
from penstock.contracts.errors import ErrorInfo, InvariantError
from penstock.contracts.facts import RunLimits
from penstock.contracts.ids import instance_id, parse_step_id, turn_step_id
from penstock.contracts.plan import Node, RetryPolicy
from penstock.expressions.templates import render
from penstock.runs.state import StepState
from penstock_orchestrator.core import budget, conversation, outcomes, schedule, waiting_nodes
from penstock_orchestrator.core.decisions import Planned
from penstock_orchestrator.core.progress import Outcome, Path
from penstock_orchestrator.core.view import View

if TYPE_CHECKING:
    from datetime import datetime

    from penstock_orchestrator.core.walk import Walk

ONCE: Final = RetryPolicy(max_attempts=1)
"""A child run retries its own steps; it is not run again unless its step says so."""


def tool(walk: Walk, node: Node, path: Path, iid: str) -> Outcome | None:
    """Take a tool node on."""
    compiled = walk.plan.tools[node.ref]
    step = walk.state.steps.get(iid)
    if step is None:
        call = schedule.node_call(walk.view, node, path)
        gate = waiting_nodes.gate(walk, node, path, iid, call)
        if gate is not None:
            return gate if gate.status == "failed" else None
        if compiled.client:
            return waiting_nodes.client_tool(walk, node, path, iid, call)
        planned = schedule.tool_step(walk.view, node, path, call, iid, 1, walk.now)
        order(walk, node, path, planned)
        return None
    return outcome(walk, node, path, step, node.retry or compiled.retry)


def order(walk: Walk, node: Node, path: Path, planned: Planned) -> bool:
    """Schedule a step if its runner pool has room and the budget allows; return whether it was."""
    if walk.budget.bounded:
        verdict = walk.budget.take(planned.reserve or budget.NOTHING)
        if verdict == "later":
            walk.starve(node, path)
            return False
        if verdict == "exhausted":
            walk.run_out()
            return False
    if not walk.take_room(planned.pool):
        walk.hold(node, path)
        return False
    walk.ordered.add(instance_id(node.id, path) if path else node.id)
    walk.plan_step(planned)
    return True


def outcome(
    walk: Walk, node: Node, path: Path, step: StepState, policy: RetryPolicy
) -> Outcome | None:
    """Take a node on that is one step: its outcome, or its next attempt."""
    if step.status == "succeeded":
        return Outcome("succeeded", step.output)
    if step.status == "unknown":
        return waiting_nodes.resolution(walk, node, path, step)
    if step.status in ("failed", "waiting"):
        verdict = walk.again(node, path, step, policy)
        if verdict == "failed":
            error = schedule.step_error(step.step_id, step.attempt, step.error)
            return walk.fail(node, path, step.step_id, error)
        if verdict == "now" and step.wait is not None:
            retry(walk, node, path, step, step.wait.next_attempt)
    return None


def retry(walk: Walk, node: Node, path: Path, step: StepState, attempt: int) -> None:
    """Schedule a further attempt at a step."""
    if node.kind == "workflow":
        _begin_child(walk, node, path, attempt)
        return
    order(walk, node, path, attempted(walk.view, node, path, step, attempt, walk.now))


def attempted(
    view: View, node: Node, path: Path, step: StepState, attempt: int, now: datetime
) -> Planned:
    """Make an attempt again that was decided before, with what was reserved for it then."""
    iid = instance_id(node.id, path)
    if node.kind == "tool":
        made = schedule.node_call(view, node, path)
        return schedule.tool_step(view, node, path, made, iid, attempt, now)
    if node.kind == "workflow":
        asked = node.child.limits if node.child is not None else RunLimits()
        own = budget.limits_of(view.plan, view.state)
        limits = budget.limits_within(own, asked, step.reserve or budget.NOTHING)
        expires_at = end_of(node, view, now)
        return schedule.child_run(view, node, path, attempt, now, expires_at, limits, step.reserve)
    if node.kind == "send":
        return schedule.message(view, node, path, attempt, now, end_of(node, view, now))
    _, _, turn, index = parse_step_id(step.step_id)
    if turn is None:
        raise InvariantError("no_such_step", f"{step.step_id} belongs to no node of the plan")
    if index is None:
        return _turn(view, node, path, step, turn, now)
    spoken = view.state.steps[turn_step_id(iid, turn)]
    action = outcomes.action_of(spoken)
    if isinstance(action, Respond | RouteToAgent):
        raise InvariantError("no_such_call", f"step {step.step_id} belongs to no tool call")
    call = action.calls[index]
    speaker = view.plan.agents[spoken.name or node.ref]
    made = schedule.Call(schedule.tool_for(view, speaker, call.name), call.arguments, {})
    return schedule.tool_step(view, node, path, made, step.step_id, attempt, now)


def _turn(view: View, node: Node, path: Path, step: StepState, turn: int, now: datetime) -> Planned:
    iid = instance_id(node.id, path)
    name = step.name or conversation.speaker_at(view, iid, turn, node.ref)
    agent = view.plan.agents[name]
    given = render(node.input, view.scope(node.id, path))
    messages = conversation.messages(view, iid, given, turn, agent, node.ref)
    most = budget.answer_within(step.reserve, schedule.prompt_bytes(agent, messages))
    prompt = schedule.Prompt(messages, step.reserve, most)
    return schedule.agent_turn(view, node, path, agent, turn, step.attempt, now, prompt)


def run_deadline(view: View) -> datetime:
    """Return when the run ends at the latest."""
    invoked, plan = view.state.request, view.plan
    limit = invoked.limits.timeout_seconds or plan.timeout_seconds
    return invoked.occurred_at + timedelta(seconds=min(limit, plan.timeout_seconds))


def end_of(node: Node, view: View, now: datetime) -> datetime:
    """Return when a step that the engine does itself ends at the latest."""
    deadline = run_deadline(view)
    if node.timeout_seconds is None:
        return deadline
    return min(deadline, now + timedelta(seconds=node.timeout_seconds))


def transform(walk: Walk, node: Node, path: Path, iid: str) -> Outcome | None:
    """Work out a value."""
    return walk.done(node, iid, render(node.input, walk.scope(node, path)))


def workflow(walk: Walk, node: Node, path: Path, iid: str) -> Outcome | None:
    """Take a child run on."""
    step = walk.state.steps.get(iid)
    if step is not None:
        return outcome(walk, node, path, step, node.retry or ONCE)
    _begin_child(walk, node, path, 1)
    return None


def _begin_child(walk: Walk, node: Node, path: Path, attempt: int) -> None:
    asked = node.child.limits if node.child is not None else RunLimits()
    limits, reserve, verdict = budget.child_limits(walk.budget, asked)
    if verdict == "later":
        walk.starve(node, path)
    elif verdict == "exhausted":
        walk.run_out()
    else:
        expires_at = end_of(node, walk.view, walk.now)
        planned = schedule.child_run(
            walk.view, node, path, attempt, walk.now, expires_at, limits, reserve
        )
        order(walk, node, path, planned)


def send(walk: Walk, node: Node, path: Path, iid: str) -> Outcome | None:
    """Take a message on."""
    step = walk.state.steps.get(iid)
    if step is not None:
        return outcome(walk, node, path, step, node.retry or RetryPolicy())
    expires_at = end_of(node, walk.view, walk.now)
    order(walk, node, path, schedule.message(walk.view, node, path, 1, walk.now, expires_at))
    return None


def end(walk: Walk, node: Node, path: Path, iid: str) -> Outcome | None:
    """End the run, or its present phase."""
    spec = node.end
    scope = walk.scope(node, path)
    output = render(spec.output, scope) if spec is not None else None
    if spec is not None and spec.status == "failed":
        said = str(render(spec.message, scope)) or "a step ended the run as failed"
        error = ErrorInfo(code="ended_by_step", message=said)
        walk.ending = Outcome("failed", output, error)
    else:
        walk.ending = Outcome("succeeded", output)
    return walk.done(node, iid, output)
