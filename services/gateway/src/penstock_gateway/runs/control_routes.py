"""Control of runs over HTTP: pause, resume, cancelling steps and many runs at once."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Response

from penstock.runs.replies import RunsCancelled
from penstock.runs.views import RunView
from penstock_gateway.context import GatewayParts, Operator, PathToken
from penstock_gateway.core.requests import CancelRuns, Control
from penstock_gateway.openapi import DONE_BEFORE

controlling: Final = APIRouter(tags=["runs"])


@controlling.post("/v1/runs/cancel")
async def cancel_runs(gateway: GatewayParts, caller: Operator, body: CancelRuns) -> RunsCancelled:
    """Ask all open runs that match to stop. They are found in the archive, a moment late."""
    return await gateway.controls.cancel_many(caller, body)


@controlling.post("/v1/runs/{run_id}/pause", status_code=202, responses=DONE_BEFORE)
async def pause_run(
    gateway: GatewayParts,
    caller: Operator,
    run_id: str,
    response: Response,
    body: Control | None = None,
) -> RunView:
    """Pause a run: running steps finish, no new step starts. 200 if it is paused already."""
    return await _control(gateway, caller, run_id, "pause", body, response)


@controlling.post("/v1/runs/{run_id}/resume", status_code=202, responses=DONE_BEFORE)
async def resume_run(
    gateway: GatewayParts,
    caller: Operator,
    run_id: str,
    response: Response,
    body: Control | None = None,
) -> RunView:
    """Resume a paused run; 200 if it is not paused."""
    return await _control(gateway, caller, run_id, "resume", body, response)


async def _control(
    gateway: GatewayParts,
    caller: Operator,
    run_id: str,
    kind: Literal["pause", "resume"],
    body: Control | None,
    response: Response,
) -> RunView:
    state, changed = await gateway.controls.pause_or_resume(
        caller, run_id, kind, (body or Control()).reason
    )
    if not changed:
        response.status_code = 200
    return await gateway.runs.view_of(state)


@controlling.post(
    "/v1/runs/{run_id}/steps/{step_id}/cancel", status_code=202, responses=DONE_BEFORE
)
async def cancel_step(
    gateway: GatewayParts,
    caller: Operator,
    run_id: str,
    step_id: PathToken,
    body: Control | None = None,
) -> RunView:
    """Stop one step: a child run with all below it, or an attempt of an agent or a tool."""
    reason = (body or Control()).reason
    state = await gateway.controls.cancel_step(caller, run_id, step_id, reason)
    return await gateway.runs.view_of(state)
