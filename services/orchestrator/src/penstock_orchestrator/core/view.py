"""The view of a decision: the run's state, the node records that it adds, and what expressions see.

Expressions see input, finished nodes, items and iterations, session and run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pydantic import JsonValue

from penstock.contracts.actions import Respond
from penstock.contracts.errors import ErrorDetail, ErrorInfo, RejectedError
from penstock.contracts.facts import NodeRecord
from penstock.contracts.ids import MAIN_RECORD, instance_id, turn_step_id
from penstock.contracts.json import Json
from penstock.contracts.plan import AgentNode, Block, LoopNode, MapNode, Node, Plan
from penstock.expressions.evaluator import evaluate
from penstock.expressions.templates import render
from penstock.runs.state import RunState
from penstock_orchestrator.core.progress import (
    MapRun,
    Outcome,
    Path,
    Progress,
    action_of,
    answer_of,
    latest_turn,
    recorded_outcome,
)

ExpressionScope = dict[str, JsonValue]
"""Values of expressions by name: ``input``, ``session``, ``run``, ``steps``, ``error``, and the
variables of the maps and loops around a node."""
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


def shown(outcome: Outcome) -> Json:
    """Return an outcome as expressions see it."""
    error = outcome.error
    return {
        "output": outcome.output,
        "status": outcome.status,
        "error": error_value(error) if error is not None else None,
    }


def error_value(error: ErrorInfo) -> Json:
    """Return an error as expressions see it."""
    return {"code": error.code, "message": error.message, "family": error.family.value}


def run_scope(state: RunState) -> ExpressionScope:
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
    scope: ExpressionScope,
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


class View:
    """Plan, state and progress, with the node records that are being made."""

    __slots__ = ("_base", "made", "plan", "progress", "state")

    def __init__(self, plan: Plan, state: RunState, progress: Progress | None = None) -> None:
        """Look at a run that was asked for."""
        self.plan = plan
        self.state = state
        self.progress = progress if progress is not None else Progress()
        self.made: dict[str, NodeRecord] = {}
        self._base: ExpressionScope | None = None

    def node_record(self, record_id: str) -> NodeRecord | None:
        """Return a node record as it is after this decision."""
        made = self.made.get(record_id)
        if made is not None:
            return made
        known = self.state.node_records.get(record_id)
        return known.node_record if known is not None else None

    def note(self, node_record: NodeRecord) -> None:
        """Make a node record."""
        self.made[node_record.record_id] = node_record

    # -- outcomes ----------------------------------------------------------------------------

    def lookup(self, node: Node, path: Path) -> Outcome | None:
        """Return the outcome of a node's instance; ``None`` if it has none yet."""
        iid = instance_id(node.id, path)
        known = self.progress.outcomes.get(iid)
        if known is not None:
            return known
        node_record = self.node_record(iid)
        if node_record is not None:
            outcome = recorded_outcome(node, node_record)
            if outcome is None or not isinstance(node, MapNode) or outcome.status != "succeeded":
                return outcome
            if outcome.output is None:  # given otherwise only by an override of a fork
                return outcome._replace(output=self._map_output(node, path, node_record.count or 0))
            return outcome
        if isinstance(node, AgentNode):
            return self._answer(node, iid)
        step = self.state.steps.get(iid)
        if step is not None and step.status == "succeeded":
            return Outcome("succeeded", step.output)
        return None

    def _answer(self, node: AgentNode, iid: str) -> Outcome | None:
        turn = latest_turn(iid, self.state, self.progress.turns.get(iid, 0))
        step = self.state.steps.get(turn_step_id(iid, turn))
        if step is None or step.status != "succeeded":
            return None
        try:
            action = action_of(step)
        except ValueError:
            return None
        if not isinstance(action, Respond):
            return None
        agent = self.plan.agents.get(step.name)
        if agent is not None and agent.routes and agent.responds_to != "user":
            return None
        if agent is not None and agent.responds_to != "user" and step.name != node.ref:
            return None
        return Outcome("succeeded", answer_of(action))

    def _map_output(self, node: MapNode, path: Path, count: int) -> Json:
        """Return the result of a map: it is not stored a second time."""
        return [
            self.item_result(node.body, (*path, index), collect=node.collect)
            for index in range(count)
        ]

    def item_result(self, block: Block, path: Path, *, collect: bool) -> Json:
        """Return what a block of a map or parallel step adds to the result."""
        error = self.block_error(block, path) if collect else None
        if error is not None:
            return {"status": "failed", "output": None, "error": error_value(error)}
        output = self.block_output(block, path)
        return {"status": "succeeded", "output": output, "error": None} if collect else output

    def block_error(self, block: Block, path: Path) -> ErrorInfo | None:
        """Return why a block failed, if it did."""
        for node in block.nodes:
            outcome = self.lookup(node, path)
            if outcome is not None and outcome.broken:
                return outcome.error
        return None

    def block_output(self, block: Block, path: Path) -> Json:
        """Return the output of a block that has finished."""
        last = block.nodes[-1]
        if block.output is not None:
            return render(block.output, self.scope(last.id, path))
        outcome = self.lookup(last, path)
        return outcome.output if outcome is not None else None

    # -- scope -------------------------------------------------------------------------------

    def scope(
        self, node_id: str, path: Path, extra: Mapping[str, JsonValue] | None = None
    ) -> ExpressionScope:
        """Return what the expressions of a node can see in one of its instances."""
        if self._base is None:
            self._base = run_scope(self.state)
            failure = self.node_record(MAIN_RECORD)
            if failure is not None and failure.error is not None:
                self._base["error"] = error_value(failure.error)
        scope = dict(self._base)
        scope["steps"] = NodeOutputs(self.plan, path, self.lookup)  # type: ignore[assignment]
        if path:
            with_variables(scope, self.plan, node_id, path, self.item, self._previous)
        if extra:
            scope.update(extra)
        return scope

    def run_scope(self) -> ExpressionScope:
        """Return what the run's own templates can see."""
        return self.scope("", ())

    def forget_scope(self) -> None:
        """Drop the cached scope: the run has failed meanwhile."""
        self._base = None

    def item(self, owner: MapNode, path: Path, index: int) -> Json:
        """Return one item of a map."""
        items = self.items(owner, path)
        return items[index] if index < len(items) else None

    def items(self, owner: MapNode, path: Path) -> list[Json]:
        """Return the list that a map goes over.

        Raises:
            RejectedError: ``map_not_a_list``, or the expression's error.
        """
        iid = instance_id(owner.id, path)
        run = self.progress.maps.get(iid)
        if run is None:
            found = evaluate(owner.over, self.scope(owner.id, path))
            if not isinstance(found, list):
                raise RejectedError(
                    "map_not_a_list",
                    f"step {owner.id} maps over {owner.over}, which is no list",
                    details=(
                        ErrorDetail(
                            path=f"{owner.id}.over",
                            message=f"got {type(found).__name__}",
                            allowed="a list",
                        ),
                    ),
                )
            run = self.progress.maps[iid] = MapRun(found)
        return run.items

    def _previous(self, owner: LoopNode, path: Path, index: int) -> Json:
        return self.block_output(owner.body, (*path, index))

    def shown(self, node: Node, path: Path) -> Json:
        """Return a node as other expressions see it."""
        outcome = self.lookup(node, path)
        return shown(outcome) if outcome is not None else None
