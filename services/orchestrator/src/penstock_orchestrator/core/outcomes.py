"""The outcome of a node, derived from the run's node records and steps alone."""

from __future__ import annotations

from pydantic import JsonValue

from penstock.contracts.actions import ACTION, Action, Respond
from penstock.contracts.facts import NodeRecord
from penstock.contracts.ids import approval_record_id, instance_id, turn_step_id
from penstock.contracts.json import Json
from penstock.contracts.plan import Block, Node
from penstock.runs.state import RunState, StepState
from penstock_orchestrator.core.progress import Outcome, Path


def action_of(step: StepState) -> Action:
    """Read what a turn ended with.

    Raises:
        ValueError: The runner's output is no action.
    """
    return ACTION.validate_python(step.output)


def latest_turn(iid: str, state: RunState, known: int = 0) -> int:
    """Return the number of an agent node's latest turn; 0 if it has not begun.

    Args:
        iid: The node's instance.
        state: All that is known of the run.
        known: A turn that is known to have begun.
    """
    turn = known
    while turn_step_id(iid, turn + 1) in state.steps:
        turn += 1
    return turn


def answer_of(action: Respond) -> Json:
    """Return the output of an agent node that has responded."""
    output: dict[str, JsonValue] = {"text": action.text}
    if action.output is not None:
        output["output"] = action.output
    return output


def of_record(node: Node, node_record: NodeRecord) -> Outcome | None:
    """Return the outcome in a node record; ``None`` while it is open."""
    if node_record.status == "open":
        return None
    handled = node_record.status == "failed" and node.on_error == "continue"
    return Outcome(node_record.status, node_record.output, node_record.error, handled)


def begun(node: Node, iid: str, state: RunState) -> bool:
    """Return whether a decision exists for a node's instance."""
    steps = state.steps
    if node.kind == "agent":
        return turn_step_id(iid, 1) in steps or iid in state.node_records
    if iid in steps:
        return True
    node_records = state.node_records
    return len(node_records) > 0 and (
        iid in node_records or approval_record_id(iid) in node_records
    )


def instances(block: Block, path: Path) -> list[tuple[Node, str]]:
    """Return the nodes of a block with their instance ids."""
    return [(node, instance_id(node.id, path)) for node in block.nodes]
