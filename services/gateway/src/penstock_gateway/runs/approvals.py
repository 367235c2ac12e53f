"""Approvals: what runs ask people to agree to, and their answers."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response

from penstock import clock
from penstock.contracts.answers import ApprovalAnswer
from penstock.contracts.errors import RejectedError, finding
from penstock.runs.replies import ApprovalPage, ApprovalStatus, ApprovalView
from penstock.runs.state import NodeRecordState, RunState
from penstock_gateway.context import AnyCaller, GatewayParts, PathToken, Viewer
from penstock_gateway.core.access import Caller
from penstock_gateway.core.node_records import approval_view
from penstock_gateway.core.preferences import CURSOR_PATTERN
from penstock_gateway.core.preferences import cursor as revision_of
from penstock_gateway.core.requests import Verdict
from penstock_gateway.openapi import DONE_BEFORE
from penstock_gateway.runs.answer import Answer, answer_to, find_record

approvals: Final = APIRouter(tags=["approvals"])


@approvals.get("/v1/approvals")
async def list_approvals(
    gateway: GatewayParts,
    caller: Viewer,
    status: ApprovalStatus | Literal["all"] = "open",
    role: Annotated[str | None, Query(max_length=64)] = None,
    run_id: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[
        str | None,
        Query(
            description="The `next_cursor` before.",
            json_schema_extra={"pattern": CURSOR_PATTERN},
        ),
    ] = None,
) -> ApprovalPage:
    """List approvals. Those of one run are read from its log; open ones of all from an index."""
    last = revision_of(None, cursor)
    if run_id is not None:
        found = await _of_run(gateway, caller, run_id, status, role)
        end = last + limit
        following = str(end) if len(found) > end else None
        return ApprovalPage(items=tuple(found[last:end]), next_cursor=following)
    if status != "open":
        raise RejectedError(
            "invalid_request",
            "other approvals than open ones are listed for one run",
            details=(finding("run_id", "missing", "a run, or status=open"),),
        )
    now = clock.now()
    items: list[ApprovalView] = []
    async for revision, record in gateway.pending.requests(caller.tenant, after=last):
        if record.node_record.kind != "approval":
            continue
        view = approval_view(
            record.run_id, record.name, record.node_record, record.asked_at, now=now
        )
        if view.status == "open" and role in (None, view.role):
            if len(items) == limit:
                return ApprovalPage(items=tuple(items), next_cursor=str(last))
            items.append(view)
            last = revision
    return ApprovalPage(items=tuple(items))


async def _of_run(
    gateway: GatewayParts, caller: Caller, run_id: str, status: str, role: str | None
) -> list[ApprovalView]:
    state = await gateway.runs.state(caller.tenant, run_id)
    node_records = [
        node_record
        for node_record in state.node_records.values()
        if node_record.node_record.kind == "approval"
    ]
    views = [_view(state, node_record) for node_record in node_records]
    selected = [
        view for view in views if status in ("all", view.status) and role in (None, view.role)
    ]
    return sorted(selected, key=lambda view: (view.asked_at, view.record_id))


def _view(state: RunState, node_record: NodeRecordState) -> ApprovalView:
    answer = answer_to(state, "approval", node_record)
    return approval_view(
        state.run_id,
        state.request.name,
        node_record.node_record,
        node_record.at,
        now=clock.now(),
        answer=answer.fact if answer is not None else None,
        run_ended=state.ended is not None,
    )


@approvals.get("/v1/approvals/{run_id}/{record_id}")
async def get_approval(
    gateway: GatewayParts, caller: Viewer, run_id: str, record_id: PathToken
) -> ApprovalView:
    """Return one approval, from its run's log."""
    state = await gateway.runs.state(caller.tenant, run_id)
    return _view(state, find_record(state, "approval", record_id))


@approvals.post(
    "/v1/approvals/{run_id}/{record_id}/approve", status_code=202, responses=DONE_BEFORE
)
async def approve(
    gateway: GatewayParts,
    caller: AnyCaller,
    run_id: str,
    record_id: PathToken,
    response: Response,
    body: Verdict | None = None,
) -> ApprovalView:
    """Approve a request: 202; 200 if it was approved before, 409 if it was rejected."""
    return await _decide(gateway, caller, run_id, record_id, "approve", body, response)


@approvals.post("/v1/approvals/{run_id}/{record_id}/reject", status_code=202, responses=DONE_BEFORE)
async def reject(
    gateway: GatewayParts,
    caller: AnyCaller,
    run_id: str,
    record_id: PathToken,
    response: Response,
    body: Verdict | None = None,
) -> ApprovalView:
    """Reject a request; otherwise as `approve`."""
    return await _decide(gateway, caller, run_id, record_id, "reject", body, response)


async def _decide(
    gateway: GatewayParts,
    caller: Caller,
    run_id: str,
    record_id: str,
    decision: Literal["approve", "reject"],
    verdict: Verdict | None,
    response: Response,
) -> ApprovalView:
    given = verdict or Verdict()
    answer = Answer(record_id, ApprovalAnswer(decision, given.reason, caller.key_id), given.digest)
    (recorded,) = await gateway.answering.answer(caller, run_id, "approval", (answer,))
    if recorded.repeated:
        response.status_code = 200
    state = await gateway.runs.state(caller.tenant, run_id, at_least_seq=recorded.seq)
    return _view(state, find_record(state, "approval", record_id))
