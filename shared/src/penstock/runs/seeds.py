"""Seeded outcomes: how what one run has recorded stands in another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from msgspec import structs
from pydantic import ValidationError

from penstock.contracts.actions import ACTION, UseTools
from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import SeededStep, StepKind
from penstock.contracts.json import Json
from penstock.contracts.plan import Node, Plan
from penstock.runs.state import StepState


@dataclass(frozen=True, slots=True)
class Cut:
    """Up to where the turns of an agent's instance hold."""

    turn: int
    index: int | None = None
    """The call whose outcome is another; ``None``: the turn's, so that its calls are made again."""
    calls: bool = False
    """Whether the calls of the last turn hold."""


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


def replaced(step: StepState, output: Json) -> SeededStep:
    """Return another outcome in the place of the recorded one."""
    changes = {"status": "succeeded", "output": output, "error": None, "overridden": True}
    return structs.replace(seeded(step), **changes)


def made_up(
    plan: Plan, at: datetime, step_id: str, node: Node, kind: StepKind, name: str, output: Json
) -> SeededStep:
    """Return the outcome of something that was never done."""
    queue = "default"
    if kind is StepKind.AGENT and name in plan.agents:
        queue = plan.agents[name].queue
    elif name in plan.tools:
        queue = plan.tools[name].queue
    return SeededStep(
        step_id=step_id,
        kind=kind,
        queue=queue,
        attempt=1,
        node_id=node.id,
        name=name,
        output=output,
        started_at=at,
        ended_at=at,
        overridden=True,
    )


def invalid(step_id: str, message: str, allowed: str) -> RejectedError:
    """Return the error of an override that can be no outcome."""
    detail = ErrorDetail(path=f"overrides.{step_id}", message=message, allowed=allowed)
    return RejectedError("invalid_override", f"{step_id}: {message}", details=(detail,))
