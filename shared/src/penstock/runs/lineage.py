"""Lineage: which nodes of a plan depend on which, and which are stale once one of them changes.

A node depends on what it needs, on what its templates and conditions read, on the nodes around it
and, within a loop, on the iterations before. Staleness is stored by prefixes of instance paths,
so that a map of ten thousand items costs no more than one of two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from penstock.contracts.ids import instance_id, parse_step_id
from penstock.contracts.json import Json
from penstock.contracts.plan import (
    ApprovalNode,
    Block,
    BranchNode,
    CompiledTool,
    EndNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    Plan,
    Position,
    SendNode,
    WaitNode,
)
from penstock.expressions import evaluator, templates
from penstock.expressions.conditions import condition_references

Path = tuple[int, ...]
Reference = tuple[str | int, ...]

Extent = Literal["whole", "outcome", "followers"]
"""Stale part of a node: the node with its inside, its own outcome, or the nodes after it."""

_MISSING: Final = object()


class Element(NamedTuple):
    """The element of a plan that the id of a step or node record names."""

    node: Node
    path: Path
    turn: int | None
    call: int | None
    phase: str

    @property
    def iid(self) -> str:
        """The instance of the node."""
        return instance_id(self.node.id, self.path)


def element_of(plan: Plan, step_or_record_id: str) -> Element | None:
    """Return the element of a plan that an id names; ``None`` if there is none."""
    try:
        node_id, path, turn, index = parse_step_id(step_or_record_id)
    except ValueError:
        return None
    position = plan.positions.get(node_id)
    if position is None or position.depth != len(path):
        return None
    if turn is not None and position.node.kind != "agent":
        return None
    return Element(position.node, path, turn, index, position.phase)


class Lineage:
    """The dependencies of one plan."""

    def __init__(self, plan: Plan) -> None:
        """Read all templates and conditions of ``plan``."""
        self.plan = plan
        self.followers: dict[str, set[str]] = defaultdict(set)
        """For each node those that begin only after it."""
        self.shown_in: dict[str, set[str]] = defaultdict(set)
        """For each node the containers whose output alone reads it."""
        self.inputs: dict[str, set[Reference]] = defaultdict(set)
        """For each node what it reads of the run's input."""
        for position in plan.positions.values():
            self._read(position)

    def _read(self, position: Position) -> None:
        node = position.node
        for needed in node.needs:
            self.followers[needed].add(node.id)
        for reference in _references(self.plan, node):
            if reference[0] == "input":
                self.inputs[node.id].add(reference)
            for read in self._nodes_of(reference, node.id):
                self.followers[read].add(node.id)
        for block in node.blocks:
            for reference in _of_template(block.output):
                if reference[0] == "input":
                    self.inputs[node.id].add(reference)
                for read in self._nodes_of(reference, node.id):
                    self.shown_in[read].add(node.id)

    def _nodes_of(self, reference: Reference, reader: str) -> Iterator[str]:
        """Yield the nodes that a reference reads, and what stands around them."""
        if reference[0] != "steps":
            return
        around = {reader, *(owner.id for owner in self.owners(reader))}
        named = [str(reference[1])] if len(reference) > 1 else list(self.plan.positions)
        for node_id in named:
            if node_id in self.plan.positions:
                enclosing = [owner.id for owner in self.owners(node_id)]
                if reader not in enclosing:  # nodes inside are known by the reader's outcome
                    yield from (found for found in (node_id, *enclosing) if found not in around)

    def owners(self, node_id: str) -> Iterator[Node]:
        """Yield the nodes around a node, innermost first."""
        owner = self.plan.positions[node_id].owner
        while owner is not None:
            yield owner
            owner = self.plan.positions[owner.id].owner

    def readers(self, before: Json, after: Json) -> frozenset[str]:
        """Return the nodes that read something of the run's input that is another now."""
        return frozenset(
            node_id
            for node_id, references in self.inputs.items()
            if any(_read_at(before, path[1:]) != _read_at(after, path[1:]) for path in references)
        )


class Staleness:
    """What of a run's recorded outcomes no longer holds."""

    def __init__(self, lineage: Lineage) -> None:
        """Begin with nothing stale."""
        self._lineage = lineage
        self._positions = lineage.plan.positions
        self._whole: dict[str, set[Path]] = defaultdict(set)
        self._outcomes: dict[str, set[Path]] = defaultdict(set)
        self._changed: dict[str, set[Path]] = defaultdict(set)
        self._loops: dict[tuple[str, Path], int] = {}

    def add(self, node_id: str, prefix: Path, extent: Extent) -> None:
        """Note that a node's instances under ``prefix`` are stale, with all that depends on them.

        Args:
            node_id: A node of the plan.
            prefix: The beginning of its instances' paths; ``()`` for all of them.
            extent: What of the node itself is stale.
        """
        pending: list[tuple[str, Path, Extent]] = [(node_id, prefix, extent)]
        while pending:
            current, prefix, extent = pending.pop()
            position = self._positions[current]
            prefix = prefix[: position.depth]
            known = {
                "whole": self._whole,
                "outcome": self._outcomes,
                "followers": self._changed,
            }[extent][current]
            if _under(prefix, known):
                continue
            known.add(prefix)
            if extent == "whole":
                for block in position.node.blocks:
                    pending += [(inner.id, prefix, "whole") for inner in block.nodes]
            pending += [(each, prefix, "whole") for each in self._lineage.followers[current]]
            pending += [(each, prefix, "outcome") for each in self._lineage.shown_in[current]]
            if position.owner is not None:
                self._around(position.owner, prefix, pending)

    def _around(self, owner: Node, prefix: Path, pending: list[tuple[str, Path, Extent]]) -> None:
        depth = self._positions[owner.id].depth
        pending.append((owner.id, prefix, "outcome"))
        if isinstance(owner, LoopNode) and len(prefix) > depth:
            key = (owner.id, prefix[:depth])
            self._loops[key] = min(prefix[depth] + 1, self._loops.get(key, prefix[depth] + 1))

    def whole(self, node_id: str, path: Path) -> bool:
        """Whether an instance is stale with all that is inside it."""
        if _under(path, self._whole.get(node_id, ())):
            return True
        if not self._loops:
            return False
        for owner in self._lineage.owners(node_id):
            depth = self._positions[owner.id].depth
            if isinstance(owner, LoopNode) and len(path) > depth:
                first = self._loops.get((owner.id, path[:depth]))
                if first is not None and path[depth] >= first:
                    return True
        return False

    def outcome(self, node_id: str, path: Path) -> bool:
        """Whether the outcome of an instance is stale."""
        return _under(path, self._outcomes.get(node_id, ())) or self.whole(node_id, path)

    @property
    def touches_main(self) -> bool:
        """Whether anything of the run's main phase is stale."""
        return any(
            prefixes and self._positions[node_id].phase == "main"
            for found in (self._whole, self._outcomes, self._changed)
            for node_id, prefixes in found.items()
        )


def changed_nodes(before: Plan, after: Plan) -> tuple[frozenset[str], frozenset[str]]:
    """Return which nodes of ``after`` are defined otherwise than in ``before``.

    Returns:
        Nodes that are another thing now, and those of which only the shape of the output is.
    """
    whole: set[str] = set()
    outcome: set[str] = set()
    for node_id, position in after.positions.items():
        old = before.positions.get(node_id)
        if old is None:
            continue
        if _definition(before, old) != _definition(after, position):
            whole.add(node_id)
        elif [_shape(block) for block in old.node.blocks] != [
            _shape(block) for block in position.node.blocks
        ]:
            outcome.add(node_id)
    return frozenset(whole), frozenset(outcome)


def _definition(plan: Plan, position: Position) -> tuple[object, ...]:
    node = position.node
    bare: dict[str, object] = {"compensate": None}
    if isinstance(node, MapNode | LoopNode):
        bare["body"] = None
    elif isinstance(node, BranchNode | ParallelNode):
        bare["blocks"] = ()
    agents = _agents_of(plan, node)
    return (
        node.model_copy(update=bare),
        tuple(block.name for block in node.blocks),
        position.owner.id if position.owner is not None else None,
        position.block.name,
        position.depth,
        position.phase,
        [plan.agents[name] for name in agents],
        list(_tools_of(plan, node, agents)),
    )


def _shape(block: Block) -> tuple[Json, tuple[str, ...]]:
    return block.output, tuple(node.id for node in block.nodes)


def _agents_of(plan: Plan, node: Node) -> list[str]:
    """Return the agents that may speak in a node, the first one first."""
    if node.kind != "agent":
        return []
    found: list[str] = []
    pending = [node.ref]
    while pending:
        name = pending.pop(0)
        if name in plan.agents and name not in found:
            found.append(name)
            pending += plan.agents[name].routes
    return found


def _tools_of(plan: Plan, node: Node, agents: list[str]) -> Iterator[CompiledTool]:
    if node.kind == "tool" and node.ref in plan.tools:
        yield plan.tools[node.ref]
    for name in agents:
        agent = plan.agents[name]
        for tool_name in agent.tools:
            tool = agent.overrides.get(tool_name) or plan.tools.get(tool_name)
            if tool is not None:
                yield tool


def _references(plan: Plan, node: Node) -> Iterator[Reference]:
    """Yield what a node reads before or while it runs, but not what its blocks do."""
    agents = _agents_of(plan, node)
    read: list[Json] = [node.input, node.fallback]
    read += [plan.agents[name].instructions for name in agents]
    for tool in _tools_of(plan, node, agents):
        read += [parameter.value for parameter in tool.sources.values()]
    conditions: list[Json] = [node.when]
    match node:
        case BranchNode():
            conditions += node.conditions
        case LoopNode():
            conditions += [node.while_, node.until]
        case WaitNode():
            conditions.append(node.match)
            read += [node.seconds, node.until, node.correlation]
        case ApprovalNode():
            read.append(node.message)
        case SendNode():
            read += [node.run_id, node.correlation, node.session_id, node.payload]
        case EndNode():
            read += [node.output, node.message]
        case MapNode():
            yield from evaluator.references(node.over)
        case _:
            pass
    for template in read:
        yield from _of_template(template)
    for condition in conditions:
        if condition is not None:
            yield from condition_references(condition)


def _of_template(template: Json) -> Iterator[Reference]:
    for _, path in templates.references(template):
        yield path


def _under(path: Path, prefixes: set[Path] | tuple[()]) -> bool:
    return bool(prefixes) and any(path[:length] in prefixes for length in range(len(path) + 1))


def _read_at(value: object, path: Reference) -> object:
    for part in path:
        if isinstance(value, dict):
            value = value.get(str(part), _MISSING)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return _MISSING
    return value
