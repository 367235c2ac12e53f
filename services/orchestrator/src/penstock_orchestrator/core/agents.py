"""Agent nodes: turn after turn until an answer, through calls of tools and other agents.

Requested actions are checked against the plan: a tool must be equipped, a route must exist, and
agents that may not respond must route on. Disallowed actions are logged and returned to the agent
as errors.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.contracts.actions import Action, Respond, RouteToAgent, UseTools
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import BlockedCall, ToolCall
from penstock.contracts.ids import approval_record_id, call_step_id, parse_step_id, turn_step_id
from penstock.contracts.plan import AgentNode, CompiledAgent
from penstock.expressions.templates import render
from penstock.runs.state import StepState
from penstock_orchestrator.core import (
    attempts,
    budget,
    conversation,
    dispatch,
    waiting_nodes,
)
from penstock_orchestrator.core.progress import Instance, Outcome, action_of, answer_of, latest_turn
from penstock_orchestrator.core.walk import Walk


class Speech(NamedTuple):
    """An attempt at a turn, and whose turn it is."""

    turn: int
    attempt: int
    name: str


def agent(walk: Walk, instance: Instance[AgentNode]) -> Outcome | None:
    """Advance an agent node."""
    node = instance.node
    turns = walk.progress.turns
    number = latest_turn(instance.id, walk.state, turns.get(instance.id, 0))
    turns[instance.id] = number
    if number == 0:
        return _speak(walk, instance, Speech(1, 1, node.ref))
    turn = walk.state.steps[turn_step_id(instance.id, number)]
    speaker = walk.plan.agents.get(turn.name) or walk.plan.agents[node.ref]
    if turn.status != "succeeded":
        return _unfinished(walk, instance, turn, speaker)
    try:
        action = action_of(turn)
    except ValueError as error:
        message = f"the turn {turn.step_id} ended with no valid action: {error}"[:500]
        return walk.fail(instance, ErrorInfo(code="invalid_action", message=message))
    if isinstance(action, UseTools):
        if _calls(walk, instance, number, speaker, action):
            return None
    else:
        _note_refusal(walk, turn, speaker, action)
    following = conversation.following(walk.view, instance.id, number, node.ref, speaker, action)
    if following is None and isinstance(action, Respond):
        return Outcome("succeeded", answer_of(action))
    return _next_turn(walk, instance, number, following or speaker.name, speaker, action)


def _note_refusal(
    walk: Walk, turn: StepState, speaker: CompiledAgent, action: Respond | RouteToAgent
) -> None:
    """Log an action that the agent may not take."""
    if isinstance(action, Respond):
        if speaker.responds_to == "nobody":
            _block(walk, turn, "respond", "this agent may not respond; it must route on")
        return
    fault = conversation.route_fault(walk.view, turn, action)
    if fault is not None:
        _block(walk, turn, f"{conversation.ROUTE}:{action.agent}", fault)


def _unfinished(
    walk: Walk, instance: Instance[AgentNode], turn: StepState, speaker: CompiledAgent
) -> Outcome | None:
    if turn.status in ("failed", "waiting"):
        verdict = attempts.again(walk, instance, turn, instance.node.retry or speaker.retry)
        if verdict == "failed":
            error = dispatch.step_error(turn.step_id, turn.attempt, turn.error)
            return walk.fail(instance, error)
        if verdict == "now" and turn.wait is not None:
            _, _, number, _ = parse_step_id(turn.step_id)
            again = Speech(number or 1, turn.wait.next_attempt, speaker.name)
            return _speak(walk, instance, again)
    return None


def _block(walk: Walk, turn: StepState, wanted: str, reason: str) -> None:
    walk.blocked.append(BlockedCall(step_id=turn.step_id, tool=wanted, reason=reason))


def _next_turn(
    walk: Walk,
    instance: Instance[AgentNode],
    number: int,
    following: str,
    speaker: CompiledAgent,
    action: Action,
) -> Outcome | None:
    """Begin the next turn, unless the limit of turns is reached."""
    entry = walk.plan.agents[instance.node.ref]
    own = entry if entry.routes else speaker
    limit = own.max_turns
    asked = walk.budget.limits.max_turns
    if asked is not None:
        limit = min(limit, asked)
    if number >= limit:
        what = "the agents did" if entry.routes else f"agent {speaker.name} did"
        message = f"{what} not respond within {limit} turns"
        return walk.fail(instance, ErrorInfo(code="max_turns_exceeded", message=message))
    if isinstance(action, RouteToAgent) and following not in walk.plan.agents:
        message = f"there is no agent {following!r} in the plan"
        return walk.fail(instance, ErrorInfo(code="no_such_agent", message=message))
    return _speak(walk, instance, Speech(number + 1, 1, following))


def _speak(walk: Walk, instance: Instance[AgentNode], speech: Speech) -> Outcome | None:
    """Schedule an attempt at a turn, if the budget allows."""
    compiled = walk.plan.agents[speech.name]
    given = render(instance.node.input, walk.scope(instance))
    messages = conversation.messages(
        walk.view, instance.id, given, speech.turn, compiled, instance.node.ref
    )
    reserve, most = None, None
    limited = walk.budget.bounded or compiled.max_tokens or compiled.max_cost_usd is not None
    if limited:
        size = dispatch.prompt_bytes(compiled, messages)
        reserve, most, verdict = budget.turn_reservation(walk.budget, compiled, size)
        if verdict == "later":
            walk.starve(instance)
            return None
        if verdict == "exhausted":
            walk.run_out()
            return None
    prompt = dispatch.Prompt(messages, reserve, most)
    planned = dispatch.agent_turn(
        walk.view, instance, compiled, speech.turn, speech.attempt, walk.now, prompt
    )
    attempts.order(walk, instance, planned)
    return None


def _calls(
    walk: Walk,
    instance: Instance[AgentNode],
    number: int,
    speaker: CompiledAgent,
    action: UseTools,
) -> bool:
    """Advance the tool calls of a turn; return whether any of them is still open."""
    waiting, begun = False, False
    blocked: list[BlockedCall] = []
    for index, call in enumerate(action.calls):
        step_id = call_step_id(instance.id, number, index)
        reason = _refusal(walk, speaker, call)
        if reason is not None:
            blocked.append(BlockedCall(step_id=step_id, tool=call.name, reason=reason))
            continue
        step = walk.state.steps.get(step_id)
        begun |= step is not None or _has_record(walk, step_id)
        waiting |= _call(walk, instance, speaker, step_id, call, step)
    if not begun:
        # All calls of a turn begin in one decision; later decisions do not log them again.
        walk.blocked += blocked
    return waiting


def _has_record(walk: Walk, step_id: str) -> bool:
    return (
        step_id in walk.state.node_records or approval_record_id(step_id) in walk.state.node_records
    )


def _refusal(walk: Walk, speaker: CompiledAgent, call: ToolCall) -> str | None:
    equipped = call.name in speaker.tools and (
        call.name in speaker.overrides or call.name in walk.plan.tools
    )
    if equipped and dispatch.tool_for(walk.view, speaker, call.name).policy != "block":
        return None
    return conversation.blocked_reason(walk.view, speaker, call)


def _call(
    walk: Walk,
    instance: Instance[AgentNode],
    speaker: CompiledAgent,
    step_id: str,
    call: ToolCall,
    step: StepState | None,
) -> bool:
    """Advance one call; return whether it is still open. The agent handles a failure."""
    tool = dispatch.tool_for(walk.view, speaker, call.name)
    if step is None:
        made = dispatch.Call(tool, call.arguments, {})
        gate = waiting_nodes.gate(walk, instance, step_id, made)
        if gate is not None:
            return gate.status != "failed"
        if tool.client:
            node_record = walk.view.node_record(step_id)
            if node_record is not None and node_record.status != "open":
                return False
            return waiting_nodes.client_tool(walk, instance, step_id, made) is None
        planned = dispatch.tool_step(walk.view, instance, made, step_id, 1, walk.now)
        attempts.order(walk, instance, planned)
        return True
    if step.status in ("failed", "waiting"):
        verdict = attempts.again(walk, instance, step, tool.retry)
        if verdict == "now" and step.wait is not None:
            attempts.retry(walk, instance, step, step.wait.next_attempt)
        return verdict != "failed"
    if step.status == "unknown":
        return waiting_nodes.resolution(walk, instance, step) is None
    return step.open
