"""Where a node of the plan is, read from the run's steps."""

from __future__ import annotations

from pydantic import JsonValue

from penstock.contracts.actions import ACTION, Respond, UseTools
from penstock.contracts.ids import turn_step_id
from penstock.contracts.plan import Node
from penstock.contracts.state import RunState, StepState


def first_step_id(node: Node) -> str:
    """Return the id of the step that a node begins with."""
    return node.id if node.kind == "tool" else turn_step_id(node.id, 1)


def started(node: Node, state: RunState) -> bool:
    """Tell whether any step of the node has been decided."""
    return first_step_id(node) in state.steps


def latest_turn(node: Node, state: RunState) -> tuple[int, StepState]:
    """Return number and step of an agent node's latest turn; the node must have started."""
    turn = 1
    while turn_step_id(node.id, turn + 1) in state.steps:
        turn += 1
    return turn, state.steps[turn_step_id(node.id, turn)]


def action_of(step: StepState) -> Respond | UseTools:
    """Read what a turn ended with.

    Raises:
        ValueError: The runner's output is no action.
    """
    return ACTION.validate_python(step.output)


def finished(node: Node, state: RunState) -> bool:
    """Tell whether the node has its output."""
    return outcome(node, state)[0]


def outcome(node: Node, state: RunState) -> tuple[bool, JsonValue]:
    """Return whether the node is finished, and its output if so."""
    if node.kind == "tool":
        step = state.steps.get(node.id)
        if step is None or step.status != "succeeded":
            return False, None
        return True, step.output
    if not started(node, state):
        return False, None
    _, turn = latest_turn(node, state)
    if turn.status != "succeeded":
        return False, None
    try:
        action = action_of(turn)
    except ValueError:
        return False, None
    if not isinstance(action, Respond):
        return False, None
    output: dict[str, JsonValue] = {"text": action.text}
    if action.output is not None:
        output["output"] = action.output
    return True, output
