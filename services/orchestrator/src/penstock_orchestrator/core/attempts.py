"""Attempts at steps: the first, the next, and the repeat of one that was decided before.

Every kind of node schedules its steps here, so that budget and room are checked in one place.
"""

from __future__ import annotations

from datetime import datetime

from penstock.contracts.actions import Respond, RouteToAgent
from penstock.contracts.errors import InvariantError
from penstock.contracts.ids import parse_step_id, turn_step_id
from penstock.contracts.plan import AgentNode, Node, SendNode, ToolNode, WorkflowNode
from penstock.expressions.templates import render
from penstock.runs.state import StepState
from penstock_orchestrator.core import budget, conversation, dispatch, outcomes
from penstock_orchestrator.core.deadlines import step_deadline
from penstock_orchestrator.core.decisions import Planned
from penstock_orchestrator.core.progress import Instance
from penstock_orchestrator.core.view import View
from penstock_orchestrator.core.walk import Walk


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
    action = outcomes.action_of(asked_by)
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
