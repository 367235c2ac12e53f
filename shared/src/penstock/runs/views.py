"""What clients read of a run: views folded from its state."""

from __future__ import annotations

from typing import Final

from pydantic import AwareDatetime, TypeAdapter

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    DefinitionKind,
    ForkedFrom,
    ParentRef,
    PendingRequest,
    Record,
    RecordKind,
    RunEnded,
    RunInvoked,
    RunLimits,
    RunStatus,
    StepKind,
    Trigger,
    Usage,
)
from penstock.contracts.ids import answer_signal_id, child_run_id
from penstock.contracts.json import Json
from penstock.runs.state import PENDING, NodeRecordState, RunState, StepState

ANSWER_KINDS: Final = {
    "approval": "approval",
    "client_tool": "tool_result",
    "resolution": "resolution",
}
"""The kind of signal that answers an open node record, by the node record's kind."""
CHILD_QUEUE: Final = "workflow"
"""Queue of the steps that are runs of their own."""


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


class NodeRecordView(Record):
    """What the engine decided about one node, or asks of the world outside."""

    record_id: str
    kind: RecordKind
    status: str
    at: AwareDatetime
    due_at: AwareDatetime | None = None
    choice: str | None = None
    count: int | None = None
    request: PendingRequest | None = None
    """What is asked, where something is."""
    output: Json = None
    error: ErrorInfo | None = None


class ChildView(Record):
    """A run that is the work of a step of another run."""

    run_id: str
    step_id: str
    name: str
    status: str
    """Status of the step."""


class Allowance(Record):
    """One limit of a run: ``left`` is what is neither spent nor set aside for work under way."""

    limit: float
    spent: float
    reserved: float
    left: float


class BudgetView(Record):
    """What a run may still spend, for each limit that it has."""

    steps: Allowance | None = None
    tokens: Allowance | None = None
    cost_usd: Allowance | None = None


class RunView(Record):
    """A run as clients see it. ``steps`` is empty in lists, and so is all that needs them."""

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
    waiting_for: tuple[NodeRecordView, ...] = ()
    """What it waits for: times, events, approvals, results of client tools, resolutions."""
    node_records: tuple[NodeRecordView, ...] = ()
    """All that the engine decided, where that was asked for."""
    parent: ParentRef | None = None
    children: tuple[ChildView, ...] = ()
    forked_from: ForkedFrom | None = None
    priority: int = 0
    limits: RunLimits = RunLimits()
    """As the run was asked for; the definition's own apply as well."""
    budget: BudgetView | None = None
    """Absent where nothing is limited."""


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


def node_record_view(state: NodeRecordState) -> NodeRecordView:
    """Return a node record as clients see it."""
    node_record = state.node_record
    return NodeRecordView(
        record_id=node_record.record_id,
        kind=node_record.kind,
        status=node_record.status,
        at=state.at,
        due_at=node_record.due_at,
        choice=node_record.choice,
        count=node_record.count,
        request=node_record.request,
        output=node_record.output,
        error=node_record.error,
    )


def awaited(state: RunState) -> tuple[NodeRecordState, ...]:
    """Return the open node records of a run that have no answer yet, oldest first."""
    if state.ended is not None:
        return ()
    found = [
        node_record
        for node_record in state.node_records.values()
        if node_record.open
        and node_record.node_record.kind in PENDING
        and not _answered(state, node_record)
    ]
    return tuple(
        sorted(
            found, key=lambda node_record: (node_record.decision, node_record.node_record.record_id)
        )
    )


def _answered(state: RunState, node_record: NodeRecordState) -> bool:
    kind = ANSWER_KINDS.get(node_record.node_record.kind)
    if kind is None:
        return False
    request = node_record.node_record.request
    digest = request.digest if request is not None else ""
    return answer_signal_id(kind, node_record.node_record.record_id, digest) in state.signals


def stricter(asked: RunLimits, planned: RunLimits) -> RunLimits:
    """Return the limits that hold where both apply."""
    merged = {}
    for name in RunLimits.__struct_fields__:
        given = (getattr(asked, name), getattr(planned, name))
        values = [value for value in given if value is not None]
        if values:
            merged[name] = min(values)
    return RunLimits(**merged)


def budget_view(state: RunState, limits: RunLimits) -> BudgetView | None:
    """Return what is left of a run's limits; ``None`` where none of them is given."""
    usage, reserved = state.usage, state.reserved
    steps = _allowance(limits.max_steps, state.attempts + usage.steps, reserved.steps)
    tokens = _allowance(limits.max_tokens, usage.tokens, reserved.tokens)
    cost = _allowance(limits.max_cost_usd, usage.cost_usd, reserved.cost_usd)
    if steps is None and tokens is None and cost is None:
        return None
    return BudgetView(steps=steps, tokens=tokens, cost_usd=cost)


def _allowance(limit: float | None, spent: float, reserved: float) -> Allowance | None:
    if limit is None:
        return None
    left = max(limit - spent - reserved, 0)
    return Allowance(limit=limit, spent=spent, reserved=reserved, left=left)


def _children(state: RunState, steps: list[StepState]) -> tuple[ChildView, ...]:
    return tuple(
        ChildView(
            run_id=child_run_id(state.tenant, state.run_id, step.step_id, step.attempt),
            step_id=step.step_id,
            name=step.name,
            status=step.status,
        )
        for step in steps
        if step.kind is StepKind.RUN and step.queue == CHILD_QUEUE and not step.seeded
    )


def run_view(
    state: RunState, *, node_records: bool = False, planned: RunLimits | None = None
) -> RunView | None:
    """Return a run as clients see it, or ``None`` where it was never asked for.

    Args:
        state: The run.
        node_records: Whether all node records are wanted, not only what the run waits for.
        planned: Limits of its plan, where they are known.
    """
    invoked = state.invoked
    if invoked is None:
        return None
    steps = sorted(state.steps.values(), key=lambda step: (step.decision, step.step_id))
    limits = invoked.limits if planned is None else stricter(invoked.limits, planned)
    every = sorted(
        state.node_records.values(), key=lambda one: (one.decision, one.node_record.record_id)
    )
    return _view(
        state,
        invoked,
        steps=tuple(step_view(step) for step in steps),
        waiting_for=tuple(node_record_view(node_record) for node_record in awaited(state)),
        node_records=tuple(node_record_view(node_record) for node_record in every)
        if node_records
        else (),
        children=_children(state, steps),
        budget=budget_view(state, limits),
    )


def summary_view(
    tenant: str, run_id: str, last_seq: int, invoked: RunInvoked, ended: RunEnded | None = None
) -> RunView:
    """Return a run by its first and its last fact, without its steps and all that needs them."""
    updated_at = invoked.occurred_at if ended is None else ended.occurred_at
    state = RunState(tenant, 0, run_id, last_seq, invoked, ended=ended, updated_at=updated_at)
    return _view(state, invoked)


def _view(
    state: RunState,
    invoked: RunInvoked,
    *,
    steps: tuple[StepView, ...] = (),
    waiting_for: tuple[NodeRecordView, ...] = (),
    node_records: tuple[NodeRecordView, ...] = (),
    children: tuple[ChildView, ...] = (),
    budget: BudgetView | None = None,
) -> RunView:
    ended = state.ended
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
        steps=steps,
        waiting_for=waiting_for,
        node_records=node_records,
        parent=invoked.parent,
        children=children,
        forked_from=invoked.forked_from,
        priority=invoked.priority,
        limits=invoked.limits,
        budget=budget,
    )
