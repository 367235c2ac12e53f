"""Seeded outcomes: how what one run has recorded stands in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec import structs
from pydantic import ValidationError

from penstock.contracts.actions import ACTION, UseTools
from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import SeededStep, StepKind
from penstock.contracts.ids import turn_step_id
from penstock.contracts.json import Json
from penstock.contracts.plan import Node, Plan
from penstock.runs.lineage import Element, element_of
from penstock.runs.state import Entry, StepState, fold, new_state


@dataclass(frozen=True, slots=True)
class Cut:
    """Up to where the turns of an agent's instance hold."""

    turn: int
    index: int | None = None
    """The call whose outcome is another; ``None``: the turn's, so that its calls are made again."""
    calls: bool = False
    """Whether the calls of the last turn hold."""
    overridden: bool = True
    """Whether an override is the reason; otherwise the turn after it had no valid action."""


class Source:
    """The run that is forked, as far as outcomes are taken from it."""

    def __init__(self, plan: Plan, entries: Sequence[Entry], at_seq: int | None) -> None:
        """Fold its facts.

        Args:
            plan: What the new run executes.
            entries: All facts, in order.
            at_seq: Take outcomes that were recorded up to this sequence; ``None``: all.
        """
        first = entries[0].subject
        empty = new_state(first.tenant, first.shard, first.run_id)
        self.plan = plan
        self.whole = fold(empty, entries)
        """The state after all facts."""
        self.state = self.whole
        """The state at ``at_seq``."""
        if at_seq is not None:
            self.state = fold(empty, (entry for entry in entries if entry.seq <= at_seq))
        self.decided: dict[int, int] = {0: 0}
        """Sequence of the first fact of each decision."""
        self.opened: set[str] = set()
        """Ids of all node records that were open at any time."""
        for entry in entries:
            number = entry.subject.decision
            self.decided[number] = min(self.decided.get(number, entry.seq), entry.seq)
            decision = getattr(entry.fact, "decision", None)
            if decision is not None:
                records = decision.node_records
                self.opened.update(one.record_id for one in records if one.status == "open")

    @property
    def now(self) -> datetime:
        """The time of the latest fact: the only clock there is here."""
        return self.state.updated_at or self.state.request.occurred_at

    def element(self, step_or_record_id: str) -> Element | None:
        """Return the element of the plan that an id names, if there is one."""
        return element_of(self.plan, step_or_record_id)

    def overridden(
        self, step_id: str, node: Node, kind: StepKind, name: str, output: Json
    ) -> SeededStep:
        """Return the outcome of a step with another output, also where it never ran.

        Args:
            step_id: Id of the step.
            node: Its node.
            kind: Kind of a step that never ran.
            name: Agent or tool of a step that never ran.
            output: The output.
        """
        if (known := self.state.steps.get(step_id)) is not None:
            changes = {"status": "succeeded", "output": output, "error": None, "overridden": True}
            return structs.replace(seeded(known), **changes)
        queue = "default"
        if kind is StepKind.AGENT and name in self.plan.agents:
            queue = self.plan.agents[name].queue
        elif name in self.plan.tools:
            queue = self.plan.tools[name].queue
        return SeededStep(
            step_id=step_id,
            kind=kind,
            queue=queue,
            attempt=1,
            node_id=node.id,
            name=name,
            output=output,
            started_at=self.now,
            ended_at=self.now,
            overridden=True,
        )

    def latest_turn(self, iid: str) -> int:
        """Return the number of the last turn of an agent's instance; 0: it has none."""
        turn = 0
        while turn_step_id(iid, turn + 1) in self.state.steps:
            turn += 1
        return turn


def called_tool(spoken: StepState | None, index: int) -> str | None:
    """Return the tool of a call that a turn has asked for, if it has."""
    if spoken is None or spoken.status != "succeeded":
        return None
    try:
        action = ACTION.validate_python(spoken.output)
    except ValidationError:
        return None
    calls = action.calls if isinstance(action, UseTools) else ()
    return calls[index].name if index < len(calls) else None


def seeded(step: StepState) -> SeededStep:
    """Return a recorded outcome."""
    failed = step.status != "succeeded"
    return SeededStep(
        step_id=step.step_id,
        kind=step.kind,
        queue=step.queue,
        attempt=step.attempt,
        node_id=step.node_id,
        name=step.name,
        output=step.output,
        status="failed" if failed else "succeeded",
        error=step.error if failed else None,
        started_at=step.started_at or step.decided_at,
        ended_at=step.ended_at or step.decided_at,
    )


def invalid(step_id: str, message: str, allowed: str) -> RejectedError:
    """Return the error of an override that can be no outcome."""
    detail = ErrorDetail(path=f"overrides.{step_id}", message=message, allowed=allowed)
    return RejectedError("invalid_override", f"{step_id}: {message}", details=(detail,))


def outcome_unknown(step_id: str, decided_seq: int) -> RejectedError:
    """Return the error of a step that must not be repeated and has no known outcome.

    Args:
        step_id: Id of the step.
        decided_seq: Sequence of the decision that scheduled it.
    """
    detail = ErrorDetail(
        path=f"overrides.{step_id}",
        message="no outcome",
        allowed=f"its output, or a fork from before sequence {decided_seq}, which runs it again",
    )
    message = f"the outcome of step {step_id} is unknown, and it must not be repeated"
    return RejectedError("outcome_unknown", message, details=(detail,))
