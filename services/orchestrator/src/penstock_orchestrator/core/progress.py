"""The progress of a run: outcomes of its nodes, and what is cached of them between decisions.

A run's log only grows, so outcomes are final: a node that has its outcome keeps it.
``Progress`` caches outcomes and the instances to visit, so that the next decision costs as much as
the change and not as much as the run is long. It is only a cache: an empty one gives the same
decisions.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, NamedTuple, TypeVar

from penstock.contracts.actions import ACTION, Action, Respond
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import NodeRecord
from penstock.contracts.ids import (
    RecordId,
    approval_record_id,
    instance_id,
    parse_step_id,
    turn_step_id,
)
from penstock.contracts.json import Json
from penstock.contracts.plan import BaseNode, Block, Node, Plan
from penstock.contracts.usage import RunLimits
from penstock.runs.state import RunState, StepState

Path = tuple[int, ...]


class Outcome(NamedTuple):
    """The outcome of a node; ``handled``: the run continues after the failure."""

    status: Literal["succeeded", "failed", "skipped"]
    output: Json = None
    error: ErrorInfo | None = None
    handled: bool = False

    @property
    def broken(self) -> bool:
        """Whether it fails the block that it stands in."""
        return self.status == "failed" and not self.handled


@dataclass(slots=True, eq=False)
class Scope:
    """One block in one of its instances."""

    block: Block
    path: Path
    remaining: int
    failed: ErrorInfo | None = None

    @property
    def finished(self) -> bool:
        """Whether it has failed or all its nodes are done."""
        return self.failed is not None or self.remaining == 0


@dataclass(slots=True, eq=False)
class MapRun:
    """A map under way: its items begin in order and end in any."""

    items: list[Json]
    begun: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    error: ErrorInfo | None = None
    finished: deque[Scope] = field(default_factory=deque)


NodeT_co = TypeVar("NodeT_co", bound=BaseNode, covariant=True)
OtherT = TypeVar("OtherT", bound=BaseNode)


class Instance(NamedTuple, Generic[NodeT_co]):
    """A node in one item or iteration of each map and loop around it."""

    node: NodeT_co
    path: Path
    id: str

    def of(self, node: OtherT) -> Instance[OtherT]:
        """Return the same instance with its node's narrower type."""
        return Instance(node, self.path, self.id)


def instance_of(node: OtherT, path: Path) -> Instance[OtherT]:
    """Return the instance of a node at ``path``."""
    return Instance(node, path, instance_id(node.id, path) if path else node.id)


class Progress:
    """Cache of a run beside its state; replaced when the state is reloaded."""

    __slots__ = (
        "begun",
        "compensations",
        "consumed",
        "due",
        "held",
        "limits",
        "maps",
        "opened",
        "outcomes",
        "phase",
        "queue",
        "scopes",
        "spent",
        "starved",
        "turns",
        "waits",
        "work",
    )

    def __init__(self) -> None:
        """Start empty: the first walk visits everything."""
        self.phase = ""
        self.queue: OrderedDict[str, Instance[Node]] = OrderedDict()
        """Instances to visit by their ids, each once, in the order in which they were added."""
        self.limits: RunLimits | None = None
        self.spent = 0
        """Work of the latest decision, in units of expressions."""
        self.work = 0
        """Work of the run's expressions, in units, with what no decision has recorded."""
        self.outcomes: dict[str, Outcome] = {}
        self.begun: set[str] = set()
        self.opened: set[str] = set()
        self.scopes: dict[tuple[str, Path], Scope] = {}
        self.maps: dict[str, MapRun] = {}
        self.turns: dict[str, int] = {}
        self.due: list[tuple[datetime, str, Path]] = []
        self.waits: dict[str, dict[str, Instance[Node]]] = {}
        self.consumed: set[str] = set()
        self.starved: deque[Instance[Node]] = deque()
        """Nodes that wait for the budget."""
        self.held: deque[Instance[Node]] = deque()
        """Nodes that wait for room at a runner pool."""
        self.compensations: deque[Instance[Node]] | None = None

    def enqueue(self, instance: Instance[Node]) -> None:
        """Visit an instance after those that are queued, unless it is one of them."""
        self.queue.setdefault(instance.id, instance)

    def touch_step(self, plan: Plan, step_id: str) -> None:
        """Visit again the node that a step belongs to."""
        try:
            node_id, path, _, _ = parse_step_id(step_id)
        except ValueError:
            return
        self._touch(plan, node_id, path)

    def touch_result(self, plan: Plan, state: RunState, step_id: str) -> None:
        """Visit again the node of a step with a new result, unless nothing follows from it yet."""
        if not self.absorb(plan, state, step_id):
            self.touch_step(plan, step_id)

    def absorb(self, plan: Plan, state: RunState, step_id: str) -> bool:
        """Record a success that unblocks nothing yet. Returns False if ``decide`` must run.

        For the many results that a join waits for: ``decide`` would return ``None``.
        """
        position = plan.positions.get(step_id)
        if position is None or position.owner is not None or position.phase != self.phase:
            return False
        scope = self.scopes.get((position.block.nodes[0].id, ()))
        step = state.steps.get(step_id)
        if (
            scope is None
            or scope.failed is not None
            or scope.remaining < 2
            or step is None
            or step.status != "succeeded"
            or position.node.kind != "tool"
            or position.block.successors[step_id]
            or step_id in self.outcomes
            or step_id in state.node_records
            or self.queue
            or self.due
            or self.held
            or self.starved
        ):
            return False
        self.outcomes[step_id] = Outcome("succeeded", step.output)
        scope.remaining -= 1
        return True

    def touch_signal(self, plan: Plan, state: RunState, signal_id: str) -> None:
        """Visit again the nodes that a signal may answer."""
        signal = state.signals.get(signal_id)
        if signal is None:
            return
        if signal.fact.target:
            self.touch_record(plan, signal.fact.target)
        else:
            for instance in self.waits.get(signal.fact.name, {}).values():
                self.enqueue(instance)

    def touch_record(self, plan: Plan, record_id: str) -> None:
        """Visit again the node that a node record belongs to."""
        self.touch_step(plan, RecordId.parse(record_id).step_id)

    def _touch(self, plan: Plan, node_id: str, path: Path) -> None:
        position = plan.positions.get(node_id)
        if position is not None and len(path) == position.depth:
            self.enqueue(instance_of(position.node, path))

    def later(self, due_at: datetime, instance: Instance[Node]) -> None:
        """Visit an instance again when it is due."""
        heapq.heappush(self.due, (due_at, instance.node.id, instance.path))

    def take_due(self, plan: Plan, now: datetime) -> None:
        """Queue the instances that are due."""
        while self.due and self.due[0][0] <= now:
            _, node_id, path = heapq.heappop(self.due)
            self._touch(plan, node_id, path)


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
    if action.output is None:
        return {"text": action.text}
    return {"text": action.text, "output": action.output}


def recorded_outcome(node: Node, node_record: NodeRecord) -> Outcome | None:
    """Return the outcome in a node record; ``None`` while it is open."""
    if node_record.status == "open":
        return None
    handled = node_record.status == "failed" and node.on_error == "continue"
    return Outcome(node_record.status, node_record.output, node_record.error, handled)


def has_begun(node: Node, iid: str, state: RunState) -> bool:
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
