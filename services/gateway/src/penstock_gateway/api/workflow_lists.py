"""Older lists of a workflow API: the tasks of executions, and messages between them."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query

from penstock.contracts.archive import ListSignals, ListSteps, SignalPage, StepPage
from penstock_gateway.api.context import GatewayParts, Viewer

ExecutionId = Annotated[str | None, Query(max_length=64, description="Of this run only.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(description="The `next_cursor` of the page before.")]

workflow_lists: Final = APIRouter(tags=["older paths"])


@workflow_lists.get("/v1/workflows/tasks")
async def list_tasks(
    gateway: GatewayParts,
    caller: Viewer,
    execution_id: ExecutionId = None,
    status: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
    limit: Limit = 50,
    cursor: Cursor = None,
) -> StepPage:
    """List steps, of one run or of all, the latest first."""
    request = ListSteps(
        tenant=caller.tenant,
        run_id=execution_id,
        status=tuple(status),
        limit=limit,
        cursor=cursor,
    )
    return await gateway.archive.ask("list_steps", request, StepPage)


@workflow_lists.get("/v1/workflows/messages")
async def list_messages(
    gateway: GatewayParts,
    caller: Viewer,
    execution_id: ExecutionId = None,
    from_execution_id: ExecutionId = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> SignalPage:
    """List what was sent to runs, by other runs or from outside, the latest first."""
    request = ListSignals(
        tenant=caller.tenant,
        kind=("event", "message"),
        run_id=execution_id,
        from_run=from_execution_id,
        limit=limit,
        cursor=cursor,
    )
    return await gateway.archive.ask("list_signals", request, SignalPage)
