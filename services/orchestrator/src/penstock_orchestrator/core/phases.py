"""The phases of a run: main; if it failed, compensation and ``on_error``; at last ``finally``.

The end of the main phase is recorded before any later phase begins, so that a late result cannot
change it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import structs

from penstock.contracts.errors import ErrorInfo, RejectedError
from penstock.contracts.facts import NodeRecord
from penstock.contracts.ids import MAIN_RECORD, ON_ERROR_DONE_RECORD, ON_ERROR_RECORD, parse_step_id
from penstock.contracts.plan import Block, Node
from penstock_orchestrator.core.progress import Outcome, Path, instance_of
from penstock_orchestrator.core.walk import Walk

_BUDGET: Final = "budget_exhausted"


def advance(walk: Walk) -> Outcome | None:
    """Advance a run through its phases; return how it ends once nothing is left to do."""
    ended = _main(walk)
    if ended is None:
        return None
    if ended.error is not None:
        if not _compensated(walk):
            return None
        recovered = _handler(walk, "on_error")
        if recovered is None:
            return None
        if recovered.status == "succeeded" and walk.view.node_record(ON_ERROR_RECORD) is not None:
            ended = recovered
    last = _handler(walk, "finally")
    if last is None:
        return None
    if last.error is not None and ended.error is None:
        return last
    return ended


def _main(walk: Walk) -> Outcome | None:
    node_record = walk.view.node_record(MAIN_RECORD)
    if node_record is not None:
        return Outcome(
            "succeeded" if node_record.error is None else "failed",
            node_record.output,
            node_record.error,
        )
    ended = _block(walk, walk.plan.main, "main")
    if ended is None:
        return None
    plan = walk.plan
    follows = plan.finally_ or (ended.error is not None and (plan.on_error or _undoable(walk)))
    if follows:
        walk.view.note(
            NodeRecord(
                record_id=MAIN_RECORD,
                kind="phase",
                status="succeeded" if ended.error is None else "failed",
                output=ended.output,
                error=ended.error,
            )
        )
        walk.view.forget_scope()
        _stop_all(walk)
    return ended


def _stop_all(walk: Walk) -> None:
    """Stop the steps and close the records that the main phase left open."""
    for step in walk.state.steps.values():
        if step.open and step.step_id not in walk.stops:
            walk.stops.append(step.step_id)
    for known in walk.state.node_records.values():
        if known.open and known.node_record.record_id not in walk.view.made:
            changes = {"status": "skipped", "request": None}
            walk.view.note(structs.replace(known.node_record, **changes))
    walk.steps.clear()
    walk.waits.clear()
    walk.timers.clear()


def _enter(walk: Walk, phase: str) -> None:
    """Switch the walk to another phase."""
    if walk.progress.phase != phase:
        walk.progress.phase = phase
        walk.progress.queue.clear()
        walk.progress.starved.clear()
        walk.ending = walk.broken = walk.exhausted = None


def _block(walk: Walk, block: Block, phase: str) -> Outcome | None:
    """Walk one of the plan's own blocks; return how it ended, if it did."""
    if not block.nodes:
        return Outcome("succeeded")
    _enter(walk, phase)
    scope = walk.enter(block, ())
    walk.run()
    if walk.exhausted is not None:
        walk.steps.clear()
        return Outcome("failed", None, walk.exhausted)
    if walk.ending is not None:
        return walk.ending
    if scope.failed is not None:
        return Outcome("failed", None, scope.failed)
    if scope.remaining:
        return None
    try:
        output = walk.view.block_output(block, ()) if phase == "main" else None
    except RejectedError as rejected:
        return Outcome("failed", None, rejected.info())
    return Outcome("succeeded", output)


def _handler(walk: Walk, phase: str) -> Outcome | None:
    """Walk ``on_error`` or ``finally``; ``on_error`` recovers the run only by an ``end``."""
    block = walk.plan.handlers[phase]
    if not block.nodes:
        return Outcome("succeeded")
    if phase == "on_error":
        node_record = walk.view.node_record(ON_ERROR_RECORD)
        if node_record is not None:
            return Outcome("succeeded", node_record.output)
        last = walk.view.node_record(ON_ERROR_DONE_RECORD)
        if last is not None:
            return Outcome("failed", None, last.error)
    ended = _block(walk, block, phase)
    if ended is None or phase != "on_error":
        return ended
    if walk.ending is not None and ended.error is None:
        walk.view.note(
            NodeRecord(
                record_id=ON_ERROR_RECORD, kind="phase", status="succeeded", output=ended.output
            )
        )
        return ended
    walk.view.note(
        NodeRecord(record_id=ON_ERROR_DONE_RECORD, kind="phase", status="failed", error=ended.error)
    )
    walk.ending = walk.broken = None
    return Outcome("failed", None, ended.error)


# -- compensation --------------------------------------------------------------------------------


def _undoable(walk: Walk) -> list[tuple[int, Node, Path]]:
    """Return the instances that succeeded and have a compensation, the latest first."""
    found: list[tuple[int, Node, Path]] = []
    if not any(position.node.compensate is not None for position in walk.plan.positions.values()):
        return found
    seen: set[tuple[str, Path]] = set()
    for step in walk.state.steps.values():
        try:
            node_id, path, _, _ = parse_step_id(step.step_id)
        except ValueError:
            continue
        position = walk.plan.positions.get(node_id)
        if position is None or position.node.compensate is None or (node_id, path) in seen:
            continue
        seen.add((node_id, path))
        outcome = walk.view.lookup(position.node, path)
        if outcome is not None and outcome.status == "succeeded":
            found.append((step.outcome_seq, position.node, path))
    return sorted(found, key=lambda each: (-each[0], each[1].id, each[2]))


def _compensated(walk: Walk) -> bool:
    """Compensate nodes one after the other; return whether none is left.

    A compensation that fails is recorded as failed, and the others run all the same.
    """
    progress = walk.progress
    if progress.compensations is None:
        _enter(walk, "compensation")
        progress.compensations = deque(
            instance_of(node.compensate, path)
            for _, node, path in _undoable(walk)
            if node.compensate is not None
        )
    pending = progress.compensations
    while pending:
        node, path, iid = pending[0]
        block = walk.plan.positions[node.id].block
        walk.enter(block, path)
        walk.run()
        if walk.exhausted is not None:
            walk.exhausted = None
            error = ErrorInfo(code=_BUDGET, message="no budget is left to undo it")
            walk.view.note(NodeRecord(record_id=iid, kind=node.kind, status="failed", error=error))
            progress.outcomes[iid] = Outcome("failed", None, error)
        walk.broken = walk.ending = None
        if iid not in progress.outcomes:
            return False
        pending.popleft()
    return True
