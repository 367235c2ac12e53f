"""What templates of a plan can see: the run's input, finished nodes, session and run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from penstock.contracts.plan import Plan
from penstock.contracts.state import RunState
from penstock_orchestrator.core import nodes


class NodeOutputs(Mapping[str, JsonValue]):
    """``steps`` in templates: finished nodes, looked up when asked for."""

    def __init__(self, plan: Plan, state: RunState) -> None:
        """Read from ``state``."""
        self._plan = plan
        self._state = state

    def __getitem__(self, node_id: str) -> JsonValue:
        """Return ``{"output": ...}`` of a finished node."""
        node = self._plan.by_id[node_id]
        finished, output = nodes.outcome(node, self._state)
        if not finished:
            raise KeyError(node_id)
        return {"output": output}

    def __contains__(self, node_id: object) -> bool:
        """Tell whether a node is finished."""
        node = self._plan.by_id.get(str(node_id))
        return node is not None and nodes.finished(node, self._state)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the finished nodes."""
        return (node.id for node in self._plan.nodes if nodes.finished(node, self._state))

    def __len__(self) -> int:
        """Count the finished nodes."""
        return sum(1 for _ in self)


def scope_of(plan: Plan, state: RunState) -> Mapping[str, JsonValue]:
    """Return the scope of templates for a run that was asked for."""
    invoked = state.request
    return {
        "input": invoked.input,
        "steps": NodeOutputs(plan, state),  # type: ignore[dict-item]
        "session": {"id": invoked.session_id},
        "run": {
            "id": state.run_id,
            "tenant": state.tenant,
            "name": invoked.name,
            "tags": dict(invoked.tags),
        },
    }
