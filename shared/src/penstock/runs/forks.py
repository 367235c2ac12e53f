"""Forks: the outcomes that a new run takes over from another one, to continue from there.

A seed holds recorded outcomes and nothing else: what it leaves out is decided again, and what it
holds is never done again. It leaves out whatever depends on something that is another thing now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from msgspec import structs

from penstock.contracts.facts import NodeRecord, Seed, SeededSignal, SeededStep
from penstock.contracts.ids import (
    MAIN_RECORD,
    RecordId,
    instance_id,
    resolution_record_id,
    turn_step_id,
)
from penstock.contracts.json import Json
from penstock.contracts.plan import MapNode, Node, ParallelNode, Plan
from penstock.runs.lineage import Element, Lineage, Path, Staleness
from penstock.runs.overrides import Overrides
from penstock.runs.seeds import Cut, Source, outcome_unknown, seeded
from penstock.runs.state import Entry, StepState

FROM_OUTSIDE: Final = frozenset({"cancelled", "run_timeout", "budget_exhausted", "plan_missing"})
"""Codes of ends that no recorded outcome leads to: a run without them would continue."""

_ADVICE: Final = 20


def seed_of(
    plan: Plan,
    entries: Sequence[Entry],
    *,
    at_seq: int | None = None,
    decided_by: int | None = None,
    overrides: Mapping[str, Json] | None = None,
    drop: Collection[str] = (),
    reshaped: Collection[str] = (),
    as_recorded: bool = False,
) -> Seed:
    """Return what a new run takes over from a run.

    Args:
        plan: What the new run executes.
        entries: All facts of the source, in order.
        at_seq: Take outcomes that were recorded up to this sequence.
        decided_by: Take outcomes of decisions up to this sequence, also of a later time.
        overrides: Outputs by step or node instance, in place of recorded ones.
            Nodes that depend on them are left out.
        drop: Nodes whose outcomes are left out, with all that depends on them.
        reshaped: Nodes whose inner outcomes hold, while their own output is another.
        as_recorded: Take failures and compensated steps over as well: nothing is tried again.

    Raises:
        RejectedError: ``unknown_step``: an override names none. ``invalid_override``: there can be
            no such outcome. ``outcome_unknown``: the outcome of a step that must not be repeated
            is not known.
    """
    source = Source(plan, entries, at_seq)
    return _Harvest(source, decided_by, as_recorded=as_recorded).seed(
        overrides or {}, drop, reshaped
    )


class _Harvest:
    """Sorts out what of a run's outcomes holds."""

    def __init__(self, source: Source, decided_by: int | None, *, as_recorded: bool) -> None:
        self.source = source
        self.plan, self.state = source.plan, source.state
        self.as_recorded = as_recorded
        self.decided_by = decided_by
        self.stale = Staleness(Lineage(source.plan))
        self.overrides = Overrides(source, self.stale)
        self.cuts = self.overrides.cuts
        self.handlers_hold = False
        self.clean = False
        """Whether nothing is done again: the run ends as it did."""

    def seed(
        self, overrides: Mapping[str, Json], drop: Collection[str], reshaped: Collection[str]
    ) -> Seed:
        overridden = list(self.overrides.outcomes(overrides))
        for node_id in drop:
            if node_id in self.plan.positions:
                self.stale.add(node_id, (), "whole")
        for node_id in reshaped:
            if node_id in self.plan.positions:
                self.stale.add(node_id, (), "outcome")
        if not self.as_recorded:
            self._leave_out_failures()
            self._leave_out_undone()
        self.handlers_hold = self._main_holds()
        self.overrides.check_turns()
        self.clean = self.as_recorded and not (overrides or drop or reshaped)
        self.clean &= self.decided_by is None
        node_records = {
            node_record.record_id: node_record
            for node_record in (*self._records_of_node(), *self._phase_records())
        }
        steps = {step.step_id: step for step in self._steps(node_records)}
        node_records |= {
            node_record.record_id: node_record
            for node_record in self._call_records(steps, node_records)
        }
        for outcome in overridden:
            if isinstance(outcome, NodeRecord):
                node_records[outcome.record_id] = outcome
            else:
                steps[outcome.step_id] = outcome
        return Seed(
            steps=tuple(steps.values()),
            node_records=tuple(node_records.values()),
            signals=tuple(self._signals(node_records)),
            spent=self.state.spent,
        )

    # -- left out ----------------------------------------------------------------------------

    def _leave_out_failures(self) -> None:
        """Leave out failed instances after which the run did not continue."""
        for record_id, known in self.state.node_records.items():
            found = self.source.element(record_id)
            if found is None or found.turn is not None or known.node_record.status != "failed":
                continue
            if self._tolerated(found.node, found.path):
                continue
            self.stale.add(found.node.id, found.path, "outcome")
            if found.node.kind == "agent":
                turn = self.source.latest_turn(record_id)
                step = self.state.steps.get(turn_step_id(record_id, turn))
                if step is not None and step.status == "succeeded" and turn > 0:
                    # Its last turn had no valid action: the turn is repeated.
                    self.cuts.setdefault(record_id, Cut(turn - 1, calls=True, overridden=False))

    def _tolerated(self, node: Node, path: Path) -> bool:
        """Whether the run continued although an instance failed."""
        while node.on_error != "continue":
            position = self.plan.positions[node.id]
            owner = position.owner
            if owner is None:
                return position.phase == "compensation"
            around = path[: self.plan.positions[owner.id].depth]
            if isinstance(owner, MapNode | ParallelNode):
                if owner.collect and (isinstance(owner, MapNode) or owner.wait is None):
                    return True
                settled = self.state.node_records.get(instance_id(owner.id, around))
                if settled is not None and settled.node_record.status == "succeeded":
                    return True
            node, path = owner, around
        return True

    def _leave_out_undone(self) -> None:
        """Leave out steps undone by their compensation, even if that was later."""
        undoes = {
            position.node.compensate.id: node_id
            for node_id, position in self.plan.positions.items()
            if position.node.compensate is not None
        }
        for each in (*self.source.whole.steps, *self.source.whole.node_records):
            found = self.source.element(each)
            if found is not None and found.node.id in undoes:
                self.stale.add(undoes[found.node.id], found.path, "whole")

    def _main_holds(self) -> bool:
        """Whether the main phase ends as recorded, so that the phases after it hold as well."""
        main = self.state.node_records.get(MAIN_RECORD)
        if main is None or self.stale.touches_main:
            return False
        if self.decided_by is not None and self.source.decided[main.decision] > self.decided_by:
            return False
        error = main.node_record.error
        return error is None or (self.as_recorded and error.code not in FROM_OUTSIDE)

    def _holds(self, found: Element, decision: int) -> bool:
        """Whether the record of an element still counts."""
        if found.phase != "main" and not self.handlers_hold:
            return False
        if self.decided_by is not None and self.source.decided.get(decision, 0) > self.decided_by:
            return False
        if found.iid in self.overrides.replaced:
            return False
        if self.stale.whole(found.node.id, found.path):
            return False
        cut = self.cuts.get(found.iid)
        if cut is None or found.turn is None:
            return True
        if found.turn != cut.turn:
            return found.turn < cut.turn
        return found.call is None or cut.calls or cut.index is not None

    # -- kept --------------------------------------------------------------------------------

    def _records_of_node(self) -> Iterator[NodeRecord]:
        """Yield the final outcomes of nodes."""
        for record_id, known in self.state.node_records.items():
            node_record = known.node_record
            found = self.source.element(record_id)
            if found is None or found.turn is not None or node_record.status == "open":
                continue
            if node_record.kind == "end" and node_record.status == "succeeded":
                continue  # it ends the new run by being reached
            if node_record.status == "skipped" and record_id in self.source.opened:
                continue  # no node waited for it any more
            if record_id in self.overrides.replaced or self.stale.outcome(
                found.node.id, found.path
            ):
                continue
            if found.iid not in self.cuts and self._holds(found, known.decision):
                yield node_record

    def _phase_records(self) -> Iterator[NodeRecord]:
        """Yield how phases of the run ended, where nothing of the main one is done again."""
        if self.handlers_hold:
            for known in self.state.node_records.values():
                decided = self.source.decided.get(known.decision, 0)
                late = self.decided_by is not None and decided > self.decided_by
                if known.node_record.kind == "phase" and not late:
                    yield known.node_record

    def _steps(self, node_records: Mapping[str, NodeRecord]) -> Iterator[SeededStep]:
        """Yield the outcomes of steps in the order in which they came."""
        for step in sorted(self.state.steps.values(), key=lambda each: each.outcome_seq):
            found = self.source.element(step.step_id)
            if found is None or step.step_id in self.overrides.replaced:
                continue
            if not self._holds(found, step.decision):
                continue
            if found.turn is None and self.stale.outcome(found.node.id, found.path):
                continue
            if step.status == "succeeded" or (
                step.status == "failed" and self._run_continued(found, step, node_records)
            ):
                yield seeded(step)
            else:
                resolved = self._resolved(step)
                if resolved is not None:
                    yield resolved
                elif step.status != "failed":
                    self._require_known(step)

    def _run_continued(
        self, found: Element, step: StepState, node_records: Mapping[str, NodeRecord]
    ) -> bool:
        if found.call is not None and found.turn is not None:
            following = turn_step_id(found.iid, found.turn + 1)
            return following in self.state.steps or found.iid in node_records
        node_record = node_records.get(found.iid)
        return node_record is not None and node_record.status == "failed" and step.error is not None

    def _resolved(self, step: StepState) -> SeededStep | None:
        """Return a lost attempt with the outcome that was decided for it."""
        if step.status != "unknown":
            return None
        known = self.state.node_records.get(resolution_record_id(step.step_id))
        if known is None or known.node_record.choice != f"attempt-{step.attempt}":
            return None
        node_record = known.node_record
        if node_record.status not in ("succeeded", "failed"):
            return None
        failed = node_record.status == "failed"
        changes = {
            "status": "failed" if failed else "succeeded",
            "output": node_record.output,
            "error": node_record.error,
        }
        return structs.replace(seeded(step), **changes)

    def _require_known(self, step: StepState) -> None:
        """Refuse to do again, in silence, what must not be repeated."""
        latest = self.source.whole.steps.get(step.step_id, step)
        if self.clean or not step.at_most_once or latest.status in ("succeeded", "failed"):
            return
        if latest.status == "unknown" and self._resolved(latest) is not None:
            return
        raise outcome_unknown(step.step_id, self.source.decided.get(step.decision, 0))

    def _call_records(
        self, steps: Mapping[str, SeededStep], node_records: Mapping[str, NodeRecord]
    ) -> Iterator[NodeRecord]:
        """Yield the closed records of calls: results of callers, decisions of approvers."""
        for record_id, known in self.state.node_records.items():
            node_record = known.node_record
            step_id, purpose = RecordId.parse(record_id)
            if purpose not in ("node", "approval"):
                continue
            found = self.source.element(step_id)
            if found is None or node_record.status not in ("succeeded", "failed"):
                continue
            if step_id in self.overrides.replaced or not self._holds(found, known.decision):
                continue
            if found.turn is None:
                settled = step_id != record_id and (step_id in steps or step_id in node_records)
            else:
                # A refusal is part of the conversation; a consent holds with the call's outcome.
                refused = node_record.status == "failed" or step_id == record_id
                settled = refused or step_id in steps or self._answered(step_id)
            if settled:
                yield node_record

    def _answered(self, step_id: str) -> bool:
        known = self.state.node_records.get(step_id)
        found = self.source.element(step_id)
        if known is None or found is None or found.turn is None:
            return False
        return known.node_record.status in ("succeeded", "failed")

    def _signals(self, node_records: Mapping[str, NodeRecord]) -> Iterator[SeededSignal]:
        """Yield the signals that no kept wait has taken, in their order."""
        taken = {
            node_record.choice
            for node_record in node_records.values()
            if node_record.kind == "wait"
        }
        left = [
            (signal.seq, signal_id, signal.fact)
            for signal_id, signal in self.state.signals.items()
            if signal.fact.kind in ("event", "message") and signal_id not in taken
        ]
        left.sort(key=lambda each: each[:2])
        for _, signal_id, fact in left:
            yield SeededSignal(signal_id=signal_id, name=fact.name, payload=fact.payload)
