"""Overrides of a fork: outputs that replace recorded outcomes of its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import ValidationError

from penstock.contracts.actions import ACTION
from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import NodeRecord, SeededStep, StepKind
from penstock.contracts.ids import call_step_id, instance_id, turn_step_id
from penstock.contracts.json import Json
from penstock.contracts.plan import AgentNode, LoopNode, MapNode, ToolNode
from penstock.runs.lineage import Element, Staleness
from penstock.runs.seeds import Cut, Source, called_tool, invalid

_ADVICE: Final = 20


class Overrides:
    """Checks overrides, and records which outcomes of the source they replace."""

    def __init__(self, source: Source, stale: Staleness) -> None:
        """Begin without overrides.

        Args:
            source: The run that is forked.
            stale: Gets the nodes that depend on an override.
        """
        self._source = source
        self._stale = stale
        self.cuts: dict[str, Cut] = {}
        """By agent instance: up to where its turns hold."""
        self.replaced: set[str] = set()
        """Instances and steps whose outcomes overrides give."""

    def outcomes(self, overrides: Mapping[str, Json]) -> Iterator[SeededStep | NodeRecord]:
        """Yield the outcome of each override, and mark what depends on it.

        Raises:
            RejectedError: ``unknown_step``, ``invalid_override``.
        """
        for step_id, output in overrides.items():
            found = self._source.element(step_id)
            if found is None or not (self._replaceable(step_id, found) and self._reached(found)):
                raise self._unknown(step_id)
            if found.node.kind == "end":
                raise invalid(step_id, "an end has no outcome to replace", "another step")
            self.replaced.add(step_id)
            self._stale.add(found.node.id, found.path, "followers")
            if found.turn is not None:
                yield self._turn(step_id, found, output)
            elif found.node.kind in ("tool", "workflow", "send"):
                yield self._step(step_id, found, output)
            else:
                yield NodeRecord(
                    record_id=step_id, kind=found.node.kind, status="succeeded", output=output
                )

    def check_turns(self) -> None:
        """Reject an override of a turn of an agent that starts over."""
        for iid, cut in self.cuts.items():
            found = self._source.element(iid)
            if not cut.overridden:
                continue
            first = cut.turn <= 1 and cut.index is None
            if found is not None and not first and self._stale.whole(found.node.id, found.path):
                step_id = turn_step_id(iid, cut.turn)
                if cut.index is not None:
                    step_id = call_step_id(iid, cut.turn, cut.index)
                raise invalid(
                    step_id,
                    f"agent {iid} begins anew, for something that it depends on changes",
                    f"{turn_step_id(iid, 1)}, or {iid} as a whole",
                )

    def _replaceable(self, step_id: str, found: Element) -> bool:
        """Whether an element is of the main phase, or a handler's step that has no outcome."""
        step = self._source.state.steps.get(step_id)
        return found.phase == "main" or (
            step is not None and step.status not in ("succeeded", "failed")
        )

    def _reached(self, found: Element) -> bool:
        """Whether the run knows the items and iterations that an instance is in."""
        owner = self._source.plan.positions[found.node.id].owner
        while owner is not None:
            depth = self._source.plan.positions[owner.id].depth
            if isinstance(owner, MapNode | LoopNode):
                known = self._source.state.node_records.get(
                    instance_id(owner.id, found.path[:depth])
                )
                if known is None or found.path[depth] >= (known.node_record.count or 0):
                    return False
            owner = self._source.plan.positions[owner.id].owner
        return True

    def _turn(self, step_id: str, found: Element, output: Json) -> SeededStep:
        turn = found.turn or 0
        if not isinstance(found.node, AgentNode):
            raise self._unknown(step_id)
        before = self.cuts.get(found.iid)
        if before is not None or found.iid in self.replaced:
            raise invalid(
                step_id, f"agent {found.iid} is overridden twice", "one override for each agent"
            )
        if found.call is not None:
            name = called_tool(
                self._source.state.steps.get(turn_step_id(found.iid, turn)), found.call
            )
            if name is None:
                raise self._unknown(step_id)
            self.cuts[found.iid] = Cut(turn, found.call)
            return self._source.overridden(step_id, found.node, StepKind.TOOL, name, output)
        if not 1 <= turn <= self._source.latest_turn(found.iid) + 1:
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
        return self._source.overridden(step_id, found.node, StepKind.AGENT, found.node.ref, output)

    def _step(self, step_id: str, found: Element, output: Json) -> SeededStep | NodeRecord:
        node = found.node
        if isinstance(node, ToolNode) or step_id in self._source.state.steps:
            return self._source.overridden(
                step_id, node, StepKind.TOOL, getattr(node, "ref", ""), output
            )
        return NodeRecord(record_id=step_id, kind=node.kind, status="succeeded", output=output)

    def _unknown(self, step_id: str) -> RejectedError:
        known = [
            *self._source.state.steps,
            *(each for each in self._source.state.node_records if each[0] != "-"),
        ]
        shown = sorted(each for each in set(known) if self._source.element(each) is not None)
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
