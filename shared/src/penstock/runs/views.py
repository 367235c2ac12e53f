"""What clients read of a run: views folded from its state."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import Final, Literal, NamedTuple, TypedDict, Unpack

from pydantic import AwareDatetime, TypeAdapter

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    DefinitionKind,
    ForkedFrom,
    ImportedFrom,
    ParentRef,
    PendingRequest,
    Record,
    RecordKind,
    RunEnded,
    RunInvoked,
    RunStatus,
    StepKind,
    Trigger,
)
from penstock.contracts.ids import answer_signal_id, child_run_id
from penstock.contracts.json import Json
from penstock.contracts.usage import RunLimits, Usage
from penstock.runs.endings import at_end
from penstock.runs.state import PENDING, NodeRecordState, RunState, StepState

ANSWER_KINDS: Final = {
    "approval": "approval",
    "client_tool": "tool_result",
    "resolution": "resolution",
}
"""The kind of signal that answers an open node record, by the node record's kind."""
CHILD_QUEUE: Final = "workflow"
"""Queue of the steps that are child runs."""
MAX_PENDING: Final = 250
"""Most pending requests in a view that has one page of steps."""


Activity = Literal["working", "queued", "unserved"]


class StepView(Record):
    """One step of a run, at its latest attempt."""

    step_id: str
    node_id: str
    kind: StepKind
    queue: str = ""
    """Runners of this kind and queue perform it; the engine performs steps of kind ``run``."""
    name: str
    status: str
    attempt: int
    scheduled_at: AwareDatetime | None = None
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    activity: Activity | None = None
    """Of a scheduled step: whether a runner works on it, none has taken it yet, or no runner
    serves its queue."""
    runner_id: str | None = None
    """The runner that works on it."""
    progress: str | None = None
    """The details of its last heartbeat."""


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
    """The question, if there is one."""
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
    """One limit of a run: ``left`` is neither spent nor reserved for work under way."""

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
    """A run as clients see it. Lists leave out ``steps`` and all fields that depend on them."""

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
    """In the order of their decisions; of a large run one page."""
    step_counts: dict[str, int] = {}
    """Number of all steps by status."""
    next_steps_cursor: str | None = None
    """Cursor of the next page of steps; absent on the last page."""
    waiting_for: tuple[NodeRecordView, ...] = ()
    """Open times, events, approvals, client tool calls, resolutions; of a large run the oldest."""
    node_records: tuple[NodeRecordView, ...] = ()
    """All that the engine decided, where that was asked for."""
    parent: ParentRef | None = None
    children: tuple[ChildView, ...] = ()
    """Child runs of the steps in ``steps``."""
    forked_from: ForkedFrom | None = None
    imported: ImportedFrom | None = None
    """The bundle that the run, or one that it continues, was imported from."""
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
        queue=step.queue,
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
    """Return the remaining amounts of a run's limits; ``None`` where none of them is given."""
    usage, reserved = state.spent, state.reserved
    steps = _allowance(limits.max_steps, usage.steps, reserved.steps)
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


StepPosition = tuple[int, str]
"""Decision and id of a step. Steps are in this order; a retry moves a step to a later decision."""


class StepWindow(NamedTuple):
    """One page of the steps of a run."""

    limit: int
    after: StepPosition | None = None
    """Position of the last step of the previous page."""


def _position(step: StepState) -> StepPosition:
    return step.decision, step.step_id


def _page(steps: list[StepState], window: StepWindow | None) -> tuple[list[StepState], str | None]:
    """Return the steps of a page, and the cursor of the next page."""
    if window is None:
        return steps, None
    first = 0 if window.after is None else bisect_right(steps, window.after, key=_position)
    page = steps[first : first + window.limit]
    if first + window.limit >= len(steps):
        return page, None
    decision, step_id = _position(page[-1])
    return page, f"{decision}.{step_id}"


def run_view(
    state: RunState,
    *,
    node_records: bool = False,
    planned: RunLimits | None = None,
    window: StepWindow | None = None,
) -> RunView | None:
    """Return a run as clients see it, or ``None`` where it was never asked for.

    Args:
        state: The run; what follows its end is left out.
        node_records: Whether all node records are wanted, not only what the run waits for.
        planned: Limits of its plan, where they are known.
        window: The page of steps; ``None``: all steps and all pending requests.
    """
    invoked = state.invoked
    if invoked is None:
        return None
    state = at_end(state)
    steps, cursor = _page(sorted(state.steps.values(), key=_position), window)
    pending = awaited(state)[: None if window is None else MAX_PENDING]
    limits = invoked.limits if planned is None else stricter(invoked.limits, planned)
    every = sorted(
        state.node_records.values(), key=lambda one: (one.decision, one.node_record.record_id)
    )
    return _view(
        state,
        invoked,
        steps=tuple(step_view(step) for step in steps),
        step_counts=dict(Counter(step.status for step in state.steps.values())),
        next_steps_cursor=cursor,
        waiting_for=tuple(node_record_view(node_record) for node_record in pending),
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


class _Parts(TypedDict, total=False):
    """Fields of a view that need the steps."""

    steps: tuple[StepView, ...]
    step_counts: dict[str, int]
    next_steps_cursor: str | None
    waiting_for: tuple[NodeRecordView, ...]
    node_records: tuple[NodeRecordView, ...]
    children: tuple[ChildView, ...]
    budget: BudgetView | None


def _view(state: RunState, invoked: RunInvoked, **parts: Unpack[_Parts]) -> RunView:
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
        usage=state.spent,
        tags=invoked.tags,
        created_at=invoked.occurred_at,
        updated_at=state.updated_at or invoked.occurred_at,
        ended_at=ended.occurred_at if ended is not None else None,
        last_seq=state.last_seq,
        parent=invoked.parent,
        forked_from=invoked.forked_from,
        imported=invoked.imported,
        priority=invoked.priority,
        limits=invoked.limits,
        **parts,
    )
