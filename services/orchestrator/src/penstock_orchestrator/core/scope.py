"""What expressions of a plan can see: input, finished nodes, items and iterations, session, run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pydantic import JsonValue

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.json import Json
from penstock.contracts.plan import LoopNode, MapNode, Node, Plan
from penstock.runs.state import RunState
from penstock_orchestrator.core.progress import Outcome, Path

Scope = Mapping[str, JsonValue]
Lookup = Callable[[Node, Path], Outcome | None]


class NodeOutputs(Mapping[str, JsonValue]):
    """``steps`` in expressions: finished nodes, looked up when asked for.

    A node is seen in the instance that encloses, or stands beside, the one that looks.
    """

    def __init__(self, plan: Plan, path: Path, lookup: Lookup) -> None:
        """See from an instance at ``path``."""
        self._plan = plan
        self._path = path
        self._lookup = lookup

    def _outcome(self, node_id: object) -> Outcome | None:
        position = self._plan.positions.get(str(node_id))
        if position is None or position.depth > len(self._path):
            return None
        return self._lookup(position.node, self._path[: position.depth])

    def __getitem__(self, node_id: str) -> JsonValue:
        """Return output, status and error of a finished node."""
        outcome = self._outcome(node_id)
        if outcome is None:
            raise KeyError(node_id)
        return shown(outcome)

    def __contains__(self, node_id: object) -> bool:
        """Return whether a node is finished."""
        return self._outcome(node_id) is not None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the finished nodes."""
        return (node_id for node_id in self._plan.positions if node_id in self)

    def __len__(self) -> int:
        """Count the finished nodes."""
        return sum(1 for _ in self)


def shown(outcome: Outcome) -> dict[str, JsonValue]:
    """Return an outcome as expressions see it."""
    error = outcome.error
    return {
        "output": outcome.output,
        "status": outcome.status,
        "error": error_value(error) if error is not None else None,
    }


def error_value(error: ErrorInfo) -> dict[str, JsonValue]:
    """Return an error as expressions see it."""
    return {"code": error.code, "message": error.message, "family": error.family.value}


def run_scope(state: RunState) -> dict[str, JsonValue]:
    """Return what can be seen of a run before anything is done."""
    invoked = state.request
    return {
        "input": invoked.input,
        "session": {"id": invoked.session_id},
        "run": {
            "id": state.run_id,
            "tenant": state.tenant,
            "name": invoked.name,
            "tags": dict(invoked.tags),
        },
    }


def enclosing(plan: Plan, node_id: str) -> list[MapNode | LoopNode]:
    """Return the maps and loops around a node, outermost first."""
    found: list[MapNode | LoopNode] = []
    owner = plan.positions[node_id].owner
    while owner is not None:
        if isinstance(owner, MapNode | LoopNode):
            found.append(owner)
        owner = plan.positions[owner.id].owner
    found.reverse()
    return found


def with_variables(
    scope: dict[str, JsonValue],
    plan: Plan,
    node_id: str,
    path: Path,
    item: Callable[[MapNode, Path, int], Json],
    previous: Callable[[LoopNode, Path, int], Json],
) -> None:
    """Add the variables of the maps and loops around a node.

    Args:
        scope: What to add to.
        plan: The plan.
        node_id: Who looks.
        path: In which instance.
        item: Returns an item of a map.
        previous: Returns the output of an iteration of a loop.
    """
    for depth, owner in enumerate(enclosing(plan, node_id)):
        index = path[depth]
        if isinstance(owner, MapNode):
            scope[owner.variable] = item(owner, path[:depth], index)
            scope["index"] = index
        else:
            scope["iteration"] = index
            scope["previous"] = previous(owner, path[:depth], index - 1) if index else None
