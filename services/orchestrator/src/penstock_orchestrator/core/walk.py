"""The walk over a plan: visits instances that may have changed, then those that depend on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from msgspec import structs

from penstock.contracts.errors import ErrorInfo, RejectedError
from penstock.contracts.facts import BlockedCall, NodeRecord, Wait
from penstock.contracts.ids import RecordId, instance_id, parse_step_id
from penstock.contracts.json import Json
from penstock.contracts.plan import Block, MapNode, Node, Plan
from penstock.expressions.conditions import holds
from penstock.expressions.templates import render
from penstock.expressions.values import Meter
from penstock.runs.state import RunState
from penstock_orchestrator.core.budget import Budget, limits_of
from penstock_orchestrator.core.decisions import Planned, Timer
from penstock_orchestrator.core.progress import (
    Instance,
    Outcome,
    Path,
    Progress,
    Scope,
    has_begun,
    instance_of,
    recorded_outcome,
)
from penstock_orchestrator.core.view import ExpressionScope, View

MOST_STEPS: Final = 250
MOST_RECORDS: Final = 1000
"""Steps and node records of one decision; the rest follows in the next. So many steps go out in
one atomic batch, and so many node records into one message."""

MOST_WORK: Final = 100_000
"""Work of one decision, in units of expressions (about 30 ms); the rest follows in the next."""
MOST_WORK_OF_A_VISIT: Final = 3_000_000
"""Work of one visit, such as for all results of a map (about 1 s); beyond it the node fails."""

_STARVED_AT_ONCE: Final = 8
_HELD_AT_ONCE: Final = 256

Handler = Callable[["Walk", Instance[Node]], Outcome | None]
"""Advances one instance of a node; returns its outcome once it has one."""


class Walk:
    """One traversal of a run: collects steps, node records, waits and stops for a decision."""

    def __init__(
        self,
        plan: Plan,
        state: RunState,
        now: datetime,
        progress: Progress,
        handler: Handler,
        room: Mapping[str, int] | None = None,
        *,
        interruptible: bool = False,
    ) -> None:
        """Prepare a traversal.

        Args:
            plan: What the run executes.
            state: The run's state.
            now: The time.
            progress: Cache of earlier decisions; it is updated.
            handler: Advances a node of any kind.
            room: How many more steps of this run each runner pool (``{kind}.{queue}``) takes; a
                pool that is not named takes any number.
            interruptible: Whether ``progress`` is kept, so that a traversal that has found
                nothing yet may be interrupted as well.
        """
        self.meter = Meter(MOST_WORK_OF_A_VISIT)
        self._interruptible = interruptible
        self.plan = plan
        self.state = state
        self.now = now
        self.progress = progress
        self._handler = handler
        self.room = room
        self._granted: Counter[str] = Counter()
        self.view = View(plan, state, progress)
        if progress.limits is None:
            progress.limits = limits_of(plan, state)
        self.budget = Budget(progress.limits, state)
        self.steps: list[Planned] = []
        self.budgeted = False
        """Whether any step reserves anything."""
        self.full_pools: set[str] = set()
        """Runner pools that had no room for a step of this run."""
        self.ordered: set[str] = set()
        """Instances with a step scheduled in this decision: they are not visited again."""
        self.waits: list[Wait] = []
        self.timers: list[Timer] = []
        self.blocked: list[BlockedCall] = []
        self.stops: list[str] = []
        self.ending: Outcome | None = None
        """How an ``end`` step ends the present phase, whatever else is under way."""
        self.exhausted: ErrorInfo | None = None
        self.broken: ErrorInfo | None = None
        """Why the present phase has failed."""

    @property
    def full(self) -> bool:
        """Whether enough is found, or computed, for one decision."""
        if len(self.steps) >= MOST_STEPS or len(self.view.made) >= MOST_RECORDS:
            return True
        if self.meter.spent < MOST_WORK:
            return False
        # A traversal that is forgotten must leave something in the log.
        return self._interruptible or bool(self.steps or self.view.made)

    # -- visiting ----------------------------------------------------------------------------

    def enter(self, block: Block, path: Path) -> Scope:
        """Return a block's scope; all its nodes are queued if it is new."""
        progress = self.progress
        key = (block.nodes[0].id, path)
        scope = progress.scopes.get(key)
        if scope is None:
            scope = progress.scopes[key] = Scope(block, path, len(block.nodes))
            for node in self._failed_first(block, path):
                progress.enqueue(instance_of(node, path))
        return scope

    def _failed_first(self, block: Block, path: Path) -> Sequence[Node]:
        """Return a block's nodes, those before all others whose failure ends the block."""
        if not self.state.node_records:
            return block.nodes

        def continues(node: Node) -> bool:
            node_record = self.view.node_record(instance_id(node.id, path))
            return (
                node_record is None or node_record.status != "failed" or node.on_error == "continue"
            )

        return sorted(block.nodes, key=continues)

    def run(self) -> None:
        """Visit the queued instances until the decision is full or the phase is over."""
        progress = self.progress
        if progress.due:
            progress.take_due(self.plan, self.now)
        if progress.starved:
            for _ in range(min(len(progress.starved), _STARVED_AT_ONCE)):
                progress.enqueue(progress.starved.popleft())
        if progress.held:
            for _ in range(min(len(progress.held), _HELD_AT_ONCE)):
                progress.enqueue(progress.held.popleft())
        queue = progress.queue
        while queue and not self.full and not self.over:
            _, instance = queue.popitem(last=False)
            self._visit(instance)
        if self.meter.spent:
            self._renew_limit()

    def _renew_limit(self) -> None:
        meter = self.meter
        meter.limit = meter.spent + MOST_WORK_OF_A_VISIT

    def enter_now(self, block: Block, path: Path) -> None:
        """Begin a block and visit its nodes at once, so that their steps are counted."""
        self.progress.scopes[block.nodes[0].id, path] = Scope(block, path, len(block.nodes))
        for node in block.nodes:
            if not self.over:
                self._visit(instance_of(node, path))

    @property
    def over(self) -> bool:
        """Whether the present phase is over, whatever is still queued."""
        return not (self.ending is None and self.exhausted is None and self.broken is None)

    def _visit(self, instance: Instance[Node]) -> None:
        progress = self.progress
        node, path, iid = instance
        if iid in progress.outcomes or iid in self.ordered:
            return
        if self.meter.spent:
            self._renew_limit()
        position = self.plan.positions[node.id]
        if position.phase != progress.phase:
            return  # its phase is over
        if position.owner is not None and self._abandoned(node, path):
            return
        if iid not in progress.begun:
            if not has_begun(node, iid, self.state) and not self._begin(instance):
                return
            progress.begun.add(iid)
        node_record = self.view.node_record(iid)
        outcome = recorded_outcome(node, node_record) if node_record is not None else None
        if outcome is None:
            try:
                outcome = self._handler(self, instance)
            except RejectedError as error:
                outcome = self.fail(instance, error.info())
        elif isinstance(node, MapNode) and outcome.status == "succeeded":
            outcome = self.view.lookup(node, path)
        if outcome is not None:
            self._record_outcome(instance, outcome)

    def _begin(self, instance: Instance[Node]) -> bool:
        """Return whether a node may begin; it is skipped where its condition does not hold."""
        node, path, iid = instance
        settled = self.progress.outcomes
        for needed in reversed(node.needs):
            # The last need is the likeliest to be open still.
            if (instance_id(needed, path) if path else needed) not in settled:
                return False
        if node.when is None:
            return True
        try:
            if holds(node.when, self.view.scope(node.id, path)):
                return True
            self.view.note(NodeRecord(record_id=iid, kind=node.kind, status="skipped"))
            outcome = Outcome("skipped")
        except RejectedError as error:
            outcome = self.fail(instance, error.info())
        self._record_outcome(instance, outcome)
        return False

    def _abandoned(self, node: Node, path: Path) -> bool:
        """Return whether a block around the node has ended without it."""
        positions, outcomes_ = self.plan.positions, self.progress.outcomes
        position = positions[node.id]
        while position.owner is not None:
            scope = self.progress.scopes.get((position.block.nodes[0].id, path[: position.depth]))
            if scope is not None and scope.failed is not None:
                return True
            owner = positions[position.owner.id]
            if instance_id(owner.node.id, path[: owner.depth]) in outcomes_:
                return True
            position = owner
        return False

    def _record_outcome(self, instance: Instance[Node], outcome: Outcome) -> None:
        node, path, iid = instance
        progress, position = self.progress, self.plan.positions[node.id]
        progress.outcomes[iid] = outcome
        scope = progress.scopes.get((position.block.nodes[0].id, path))
        if scope is None:
            return
        scope.remaining -= 1
        if outcome.broken and scope.failed is None:
            scope.failed = outcome.error or ErrorInfo(code="step_failed", message=f"{iid} failed")
            if position.owner is not None and len(position.block.nodes) > 1:
                self.abandon((position.block,), path)
        if scope.failed is None:
            for successor in position.block.successors.get(node.id, ()):
                progress.enqueue(instance_of(successor, path))
        if position.owner is None:
            self.broken = scope.failed
        elif scope.finished:
            if scope.failed is not None and not outcome.broken:
                return
            depth = self.plan.positions[position.owner.id].depth
            owner = instance_of(position.owner, path[:depth])
            if isinstance(position.owner, MapNode):
                run = progress.maps.get(owner.id)
                if run is not None:
                    run.finished.append(scope)
            progress.enqueue(owner)

    # -- what handlers use -------------------------------------------------------------------

    def done(
        self,
        instance: Instance[Node],
        output: Json,
        *,
        choice: str | None = None,
        count: int | None = None,
    ) -> Outcome:
        """Record an instance as succeeded."""
        record = NodeRecord(
            record_id=instance.id,
            kind=instance.node.kind,
            status="succeeded",
            output=None if isinstance(instance.node, MapNode) else output,
            choice=choice,
            count=count,
        )
        self.view.note(record)
        return Outcome("succeeded", output)

    def fail(self, instance: Instance[Node], error: ErrorInfo) -> Outcome:
        """Record a failed instance; with ``on_error: continue`` its fallback is its output."""
        node, path, iid = instance
        handled = node.on_error == "continue"
        output: Json = None
        if handled and node.fallback is not None:
            try:
                output = render(node.fallback, self.view.scope(node.id, path))
            except RejectedError as unrendered:
                handled, error = False, unrendered.info()
        known = self.view.node_record(iid)
        self.view.note(
            NodeRecord(
                record_id=iid,
                kind=node.kind,
                status="failed",
                output=output,
                error=error,
                choice=known.choice if known is not None else None,
                count=known.count if known is not None else None,
            )
        )
        if node.blocks:
            self.abandon(node.blocks, path)
        return Outcome("failed", output, error, handled)

    def abandon(self, blocks_: Sequence[Block], path: Path) -> None:
        """Stop work under way in some blocks, in all instances below ``path``."""
        nodes = {inner.id for block in blocks_ for inner in _all_nodes(block)}

        def inside(step_or_record: str) -> bool:
            node_id, at = _instance_at(step_or_record)
            return node_id in nodes and at[: len(path)] == path

        self.stops += [
            step.step_id
            for step in self.state.steps.values()
            if step.open and step.step_id not in self.stops and inside(step.step_id)
        ]
        for record_id, made in list(self.view.made.items()):
            if made.status == "open" and inside(record_id):
                del self.view.made[record_id]  # opened in vain, in this very decision
        for record_id, known in self.state.node_records.items():
            if known.open and record_id not in self.view.made and inside(record_id):
                closed = structs.replace(known.node_record, status="skipped", request=None)
                self.view.note(closed)
        self.waits = [wait for wait in self.waits if not inside(wait.step_id)]
        self.steps = [planned for planned in self.steps if not inside(planned.step_id)]

    def plan_step(self, planned: Planned) -> None:
        """Add a step to the decision."""
        self.steps.append(planned)
        self.budgeted |= planned.reserve is not None

    def take_room(self, pool: str) -> bool:
        """Return whether a runner pool has room for one more step, which is counted."""
        if self.room is None or pool not in self.room:
            return True
        if self._granted[pool] >= self.room[pool]:
            self.full_pools.add(pool)
            return False
        self._granted[pool] += 1
        return True

    def hold(self, instance: Instance[Node]) -> None:
        """Visit an instance again when its runner pool has room."""
        self.progress.held.append(instance)

    def starve(self, instance: Instance[Node]) -> None:
        """Visit an instance again when the budget has something left for it."""
        self.progress.starved.append(instance)

    def run_out(self) -> None:
        """End the run: its budget is used up."""
        self.exhausted = self.budget.exhausted()

    def scope(
        self, instance: Instance[Node], extra: Mapping[str, Json] | None = None
    ) -> ExpressionScope:
        """Return what a node's expressions can see."""
        return self.view.scope(instance.node.id, instance.path, extra)


def _all_nodes(block: Block) -> list[Node]:
    found: list[Node] = []
    for node in block.nodes:
        found.append(node)
        if node.compensate is not None:
            found.append(node.compensate)
        for inner in node.blocks:
            found += _all_nodes(inner)
    return found


def _instance_at(record_id: str) -> tuple[str, Path]:
    try:
        node_id, path, _, _ = parse_step_id(RecordId.parse(record_id).step_id)
    except ValueError:
        return "", ()
    return node_id, path
