"""Forks: the outcomes that a new run takes over from another one, to continue from there.

A seed holds recorded outcomes and nothing else: what it leaves out is decided again, and what it
holds is never done again. It leaves out whatever depends on something that is another thing now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from msgspec import structs
from pydantic import ValidationError

from penstock.contracts.actions import ACTION
from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import NodeRecord, Seed, SeededSignal, SeededStep, StepKind
from penstock.contracts.ids import (
    MAIN_RECORD,
    RecordId,
    call_step_id,
    instance_id,
    resolution_record_id,
    turn_step_id,
)
from penstock.contracts.json import Json
from penstock.contracts.plan import AgentNode, LoopNode, MapNode, Node, ParallelNode, Plan, ToolNode
from penstock.runs.lineage import Element, Lineage, Path, Staleness, element_of
from penstock.runs.seeds import Cut, called_tool, invalid, made_up, replaced, seeded
from penstock.runs.state import Entry, StepState, fold, new_state

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
    return _Harvest(plan, entries, at_seq, decided_by, as_recorded=as_recorded).seed(
        overrides or {}, drop, reshaped
    )


class _Harvest:
    """Sorts out what of a run's outcomes holds."""

    def __init__(
        self,
        plan: Plan,
        entries: Sequence[Entry],
        at_seq: int | None,
        decided_by: int | None,
        *,
        as_recorded: bool,
    ) -> None:
        first = entries[0].subject
        begun = new_state(first.tenant, first.shard, first.run_id)
        self.plan = plan
        self.all = fold(begun, entries)
        self.state = self.all
        if at_seq is not None:
            self.state = fold(begun, (entry for entry in entries if entry.seq <= at_seq))
        self.as_recorded = as_recorded
        self.decided_by = decided_by
        self.decided: dict[int, int] = {0: 0}
        self.opened: set[str] = set()
        for entry in entries:
            number = entry.subject.decision
            self.decided[number] = min(self.decided.get(number, entry.seq), entry.seq)
            decision = getattr(entry.fact, "decision", None)
            if decision is not None:
                self.opened.update(
                    node_record.record_id
                    for node_record in decision.node_records
                    if node_record.status == "open"
                )
        self.stale = Staleness(Lineage(plan))
        self.cuts: dict[str, Cut] = {}
        self.replaced: set[str] = set()
        """Instances and steps whose outcomes are given by overrides."""
        self.handlers_hold = False
        self.clean = False
        """Whether nothing is done again: the run ends as it did."""

    def seed(
        self, overrides: Mapping[str, Json], drop: Collection[str], reshaped: Collection[str]
    ) -> Seed:
        given = list(self._overridden(overrides))
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
        self._check_turns()
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
        for outcome in given:
            if isinstance(outcome, NodeRecord):
                node_records[outcome.record_id] = outcome
            else:
                steps[outcome.step_id] = outcome
        return Seed(
            steps=tuple(steps.values()),
            node_records=tuple(node_records.values()),
            signals=tuple(self._signals(node_records)),
            spent=structs.replace(self.state.usage, steps=self.state.attempts),
        )

    def element(self, step_or_record_id: str) -> Element | None:
        """Return the element of the plan that an id names, if there is one."""
        return element_of(self.plan, step_or_record_id)

    # -- left out ----------------------------------------------------------------------------

    def _leave_out_failures(self) -> None:
        """Leave out failed instances after which the run did not continue."""
        for record_id, known in self.state.node_records.items():
            found = self.element(record_id)
            if found is None or found.turn is not None or known.node_record.status != "failed":
                continue
            if self._tolerated(found.node, found.path):
                continue
            self.stale.add(found.node.id, found.path, "outcome")
            if found.node.kind == "agent":
                turn = self._latest_turn(record_id)
                step = self.state.steps.get(turn_step_id(record_id, turn))
                if step is not None and step.status == "succeeded" and turn > 0:
                    # Its last turn had no valid action: the turn is repeated.
                    self.cuts[record_id] = Cut(turn - 1, calls=True)

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
        for each in (*self.all.steps, *self.all.node_records):
            found = self.element(each)
            if found is not None and found.node.id in undoes:
                self.stale.add(undoes[found.node.id], found.path, "whole")

    def _main_holds(self) -> bool:
        """Whether the main phase ends as recorded, so that the phases after it hold as well."""
        main = self.state.node_records.get(MAIN_RECORD)
        if main is None or self.stale.touches_main:
            return False
        if self.decided_by is not None and self.decided[main.decision] > self.decided_by:
            return False
        error = main.node_record.error
        return error is None or (self.as_recorded and error.code not in FROM_OUTSIDE)

    def _holds(self, found: Element, decision: int) -> bool:
        """Whether the record of an element still counts."""
        if found.phase != "main" and not self.handlers_hold:
            return False
        if self.decided_by is not None and self.decided.get(decision, 0) > self.decided_by:
            return False
        if found.iid in self.replaced:
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
            found = self.element(record_id)
            if found is None or found.turn is not None or node_record.status == "open":
                continue
            if node_record.kind == "end" and node_record.status == "succeeded":
                continue  # it ends the new run by being reached
            if node_record.status == "skipped" and record_id in self.opened:
                continue  # no node waited for it any more
            if record_id in self.replaced or self.stale.outcome(found.node.id, found.path):
                continue
            if found.iid not in self.cuts and self._holds(found, known.decision):
                yield node_record

    def _phase_records(self) -> Iterator[NodeRecord]:
        """Yield how phases of the run ended, where nothing of the main one is done again."""
        if self.handlers_hold:
            for known in self.state.node_records.values():
                decided = self.decided.get(known.decision, 0)
                late = self.decided_by is not None and decided > self.decided_by
                if known.node_record.kind == "phase" and not late:
                    yield known.node_record

    def _steps(self, node_records: Mapping[str, NodeRecord]) -> Iterator[SeededStep]:
        """Yield the outcomes of steps in the order in which they came."""
        for step in sorted(self.state.steps.values(), key=lambda each: each.outcome_seq):
            found = self.element(step.step_id)
            if found is None or step.step_id in self.replaced:
                continue
            if not self._holds(found, step.decision):
                continue
            if found.turn is None and self.stale.outcome(found.node.id, found.path):
                continue
            if step.status == "succeeded" or (
                step.status == "failed" and self._went_on(found, step, node_records)
            ):
                yield seeded(step)
            else:
                resolved = self._resolved(step)
                if resolved is not None:
                    yield resolved
                elif step.status != "failed":
                    self._require_known(step)

    def _went_on(
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
        latest = self.all.steps.get(step.step_id, step)
        if self.clean or not step.at_most_once or latest.status in ("succeeded", "failed"):
            return
        if latest.status == "unknown" and self._resolved(latest) is not None:
            return
        raise RejectedError(
            "outcome_unknown",
            f"the outcome of step {step.step_id} is unknown, and it must not be repeated",
            details=(
                ErrorDetail(
                    path=f"overrides.{step.step_id}",
                    message="no outcome",
                    allowed=f"its output, or a fork from before sequence "
                    f"{self.decided.get(step.decision, 0)}, which runs it again",
                ),
            ),
        )

    def _call_records(
        self, steps: Mapping[str, SeededStep], node_records: Mapping[str, NodeRecord]
    ) -> Iterator[NodeRecord]:
        """Yield the closed records of calls: results of callers, decisions of approvers."""
        for record_id, known in self.state.node_records.items():
            node_record = known.node_record
            step_id, purpose = RecordId.parse(record_id)
            if purpose not in ("node", "approval"):
                continue
            found = self.element(step_id)
            if found is None or node_record.status not in ("succeeded", "failed"):
                continue
            if step_id in self.replaced or not self._holds(found, known.decision):
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
        found = self.element(step_id)
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

    def _latest_turn(self, iid: str) -> int:
        turn = 0
        while turn_step_id(iid, turn + 1) in self.state.steps:
            turn += 1
        return turn

    # -- overrides ---------------------------------------------------------------------------

    def _overridden(self, overrides: Mapping[str, Json]) -> Iterator[SeededStep | NodeRecord]:
        for step_id, output in overrides.items():
            found = self.element(step_id)
            if found is None or found.phase != "main" or not self._reached(found):
                raise self._unknown(step_id)
            if found.node.kind == "end":
                raise invalid(step_id, "an end has no outcome to replace", "another step")
            self.replaced.add(step_id)
            self.stale.add(found.node.id, found.path, "followers")
            if found.turn is not None:
                yield self._overridden_turn(step_id, found, output)
            elif found.node.kind in ("tool", "workflow", "send"):
                yield self._overridden_step(step_id, found, output)
            else:
                yield NodeRecord(
                    record_id=step_id, kind=found.node.kind, status="succeeded", output=output
                )

    def _check_turns(self) -> None:
        """Reject an override of a turn of an agent that starts over."""
        for iid, cut in self.cuts.items():
            found = self.element(iid)
            first = cut.turn <= 1 and cut.index is None
            if found is not None and not first and self.stale.whole(found.node.id, found.path):
                step_id = turn_step_id(iid, cut.turn)
                if cut.index is not None:
                    step_id = call_step_id(iid, cut.turn, cut.index)
                raise invalid(
                    step_id,
                    f"agent {iid} begins anew, for something that it depends on changes",
                    f"{turn_step_id(iid, 1)}, or {iid} as a whole",
                )

    def _reached(self, found: Element) -> bool:
        """Whether the run knows the items and iterations that an instance is in."""
        owner = self.plan.positions[found.node.id].owner
        while owner is not None:
            depth = self.plan.positions[owner.id].depth
            if isinstance(owner, MapNode | LoopNode):
                known = self.state.node_records.get(instance_id(owner.id, found.path[:depth]))
                if known is None or found.path[depth] >= (known.node_record.count or 0):
                    return False
            owner = self.plan.positions[owner.id].owner
        return True

    def _overridden_turn(self, step_id: str, found: Element, output: Json) -> SeededStep:
        turn = found.turn or 0
        if not isinstance(found.node, AgentNode):
            raise self._unknown(step_id)
        before = self.cuts.get(found.iid)
        if before is not None or found.iid in self.replaced:
            raise invalid(
                step_id, f"agent {found.iid} is overridden twice", "one override for each agent"
            )
        known = self.state.steps.get(step_id)
        if found.call is not None:
            spoken = self.state.steps.get(turn_step_id(found.iid, turn))
            name = called_tool(spoken, found.call)
            if name is None:
                raise self._unknown(step_id)
            self.cuts[found.iid] = Cut(turn, found.call)
            if known is not None:
                return replaced(known, output)
            return made_up(self.plan, self._now, step_id, found.node, StepKind.TOOL, name, output)
        latest = self._latest_turn(found.iid)
        if not 1 <= turn <= latest + 1:
            raise self._unknown(step_id)
        try:
            ACTION.validate_python(output)
        except ValidationError as error:
            raise invalid(
                step_id,
                "the outcome of a turn is an action",
                '{"action": "respond", "text": ...}, or use_tools, or route_to_agent; '
                f"or override {found.iid} as a whole",
            ) from error
        self.cuts[found.iid] = Cut(turn)
        if known is not None:
            return replaced(known, output)
        return made_up(
            self.plan, self._now, step_id, found.node, StepKind.AGENT, found.node.ref, output
        )

    def _overridden_step(
        self, step_id: str, found: Element, output: Json
    ) -> SeededStep | NodeRecord:
        known = self.state.steps.get(step_id)
        if known is not None:
            return replaced(known, output)
        if isinstance(found.node, ToolNode):
            return made_up(
                self.plan, self._now, step_id, found.node, StepKind.TOOL, found.node.ref, output
            )
        return NodeRecord(
            record_id=step_id, kind=found.node.kind, status="succeeded", output=output
        )

    @property
    def _now(self) -> datetime:
        """The time of the latest fact: the only clock there is here."""
        return self.state.updated_at or self.state.request.occurred_at

    def _unknown(self, step_id: str) -> RejectedError:
        known = [*self.state.steps, *(each for each in self.state.node_records if each[0] != "-")]
        shown = sorted(each for each in set(known) if self.element(each) is not None)
        more = ", ..." if len(shown) > _ADVICE else ""
        return RejectedError(
            "unknown_step",
            f"the run has no step {step_id[:80]}",
            details=(
                ErrorDetail(
                    path=f"overrides.{step_id[:80]}",
                    message="no such step or node instance",
                    allowed=", ".join(shown[:_ADVICE]) + more,
                ),
            ),
        )
