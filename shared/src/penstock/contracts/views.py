"""What clients read of a run: views folded from its state."""

from __future__ import annotations

from typing import Final

from pydantic import AwareDatetime, TypeAdapter

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import DefinitionKind, Record, RunStatus, StepKind, Trigger, Usage
from penstock.contracts.json import Json
from penstock.contracts.state import RunState, StepState


class StepView(Record):
    """One step of a run, at its latest attempt."""

    step_id: str
    node_id: str
    kind: StepKind
    name: str
    status: str
    attempt: int
    scheduled_at: AwareDatetime | None = None
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage | None = None


class RunView(Record):
    """A run as clients see it. ``steps`` is empty in lists."""

    run_id: str
    tenant: str
    name: str
    kind: DefinitionKind
    version: int
    plan_digest: str
    status: RunStatus
    trigger: Trigger
    session_id: str | None = None
    input: Json = None
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage = Usage()
    tags: dict[str, str] = {}
    created_at: AwareDatetime
    updated_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    last_seq: int
    steps: tuple[StepView, ...] = ()


RUN_VIEW: Final[TypeAdapter[RunView]] = TypeAdapter(RunView)


def step_view(step: StepState) -> StepView:
    """Return a step as clients see it."""
    return StepView(
        step_id=step.step_id,
        node_id=step.node_id,
        kind=step.kind,
        name=step.name,
        status=step.status,
        attempt=step.attempt,
        scheduled_at=step.decided_at,
        started_at=step.started_at,
        ended_at=step.ended_at,
        output=step.output,
        error=step.error,
        usage=step.usage,
    )


def run_view(state: RunState) -> RunView | None:
    """Return a run as clients see it, or ``None`` where it was never asked for."""
    invoked, ended = state.invoked, state.ended
    if invoked is None:
        return None
    steps = sorted(state.steps.values(), key=lambda step: (step.decision, step.step_id))
    return RunView(
        run_id=state.run_id,
        tenant=state.tenant,
        name=invoked.name,
        kind=invoked.kind,
        version=invoked.version,
        plan_digest=invoked.plan_digest,
        status=state.status,
        trigger=invoked.trigger,
        session_id=invoked.session_id,
        input=invoked.input,
        output=ended.output if ended is not None else None,
        error=ended.error if ended is not None else None,
        usage=ended.usage if ended is not None else state.usage,
        tags=invoked.tags,
        created_at=invoked.occurred_at,
        updated_at=state.updated_at or invoked.occurred_at,
        ended_at=ended.occurred_at if ended is not None else None,
        last_seq=state.last_seq,
        steps=tuple(step_view(step) for step in steps),
    )
