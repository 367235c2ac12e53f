"""Client tool calls, and resolutions of lost attempts."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Header, Response

from penstock.contracts.answers import ResolutionAnswer, ToolAnswer, ToolError
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.ids import resolution_record_id
from penstock.runs.replies import Calls, Unknowns
from penstock.runs.state import RunState
from penstock.runs.views import RunView, awaited
from penstock_gateway.context import AnyCaller, GatewayParts, PathToken, Viewer
from penstock_gateway.core.node_records import call_view, unknown_view
from penstock_gateway.core.preferences import wait_seconds
from penstock_gateway.core.requests import Resolution, ToolFailure, ToolResult, ToolResults
from penstock_gateway.openapi import DONE_BEFORE
from penstock_gateway.runs.answer import Answer
from penstock_gateway.runs.wait import open_calls

tool_calls: Final = APIRouter(tags=["tool calls"])


@tool_calls.get("/v1/runs/{run_id}/tool_calls")
async def list_tool_calls(gateway: GatewayParts, caller: Viewer, run_id: str) -> Calls:
    """List the calls that the run waits for its client to execute."""
    state = await gateway.runs.state(caller.tenant, run_id)
    node_records = open_calls(state)
    return Calls(
        run_id=run_id,
        items=tuple(
            call_view(node_record.node_record, node_record.at) for node_record in node_records
        ),
    )


@tool_calls.post("/v1/runs/{run_id}/tool_results", status_code=202, responses=DONE_BEFORE)
async def post_tool_results(
    gateway: GatewayParts,
    caller: AnyCaller,
    run_id: str,
    body: ToolResults,
    response: Response,
    prefer: Annotated[
        str | None, Header(description="`wait=N`: answer when the run has ended, or asks again.")
    ] = None,
) -> RunView:
    """Store results of client tools; all are checked before the first is stored.

    A result counts once: the same one again changes nothing, another one is refused.
    """
    _require_distinct(body.results)
    answers = tuple(
        Answer(result.step_id, _given(result, index), path=f"results[{index}]")
        for index, result in enumerate(body.results)
    )
    recorded = await gateway.answering.answer(caller, run_id, "client_tool", answers)
    seconds = wait_seconds(
        None if prefer is None else prefer.encode("latin-1"), gateway.settings.max_wait_seconds
    )
    state: RunState
    if seconds is None:
        last = max(one.seq for one in recorded)
        state = await gateway.runs.state(caller.tenant, run_id, at_least_seq=last)
    else:
        response.headers["preference-applied"] = f"wait={seconds:.0f}"
        state = await gateway.waiter.wait_for(caller.tenant, run_id, seconds)
    if state.ended is not None or all(one.repeated for one in recorded):
        response.status_code = 200
    return await gateway.runs.view_of(state)


def _require_distinct(results: tuple[ToolResult, ...]) -> None:
    seen: set[str] = set()
    for index, result in enumerate(results):
        if result.step_id in seen:
            raise _invalid(f"results[{index}].step_id", "given twice", "each step once")
        seen.add(result.step_id)


def _given(result: ToolResult, index: int) -> ToolAnswer:
    if result.status == "succeeded" and result.error is not None:
        raise _invalid(f"results[{index}].error", "a success has no error", "status: failed")
    if result.status == "failed" and result.output is not None:
        raise _invalid(f"results[{index}].output", "a failure has no output", "error")
    if result.status == "succeeded":
        return ToolAnswer(result.output)
    error = result.error or ToolFailure()
    return ToolAnswer(error=ToolError(error.code, error.message))


def _invalid(path: str, message: str, allowed: str) -> RejectedError:
    return RejectedError(
        "invalid_request",
        "the body does not have the expected form",
        details=(finding(path, message, allowed),),
    )


@tool_calls.get("/v1/runs/{run_id}/unknown")
async def list_unknown(gateway: GatewayParts, caller: Viewer, run_id: str) -> Unknowns:
    """List steps whose attempt was lost, and that must not be made again by themselves."""
    state = await gateway.runs.state(caller.tenant, run_id)
    items = tuple(
        unknown_view(node_record.node_record, node_record.at)
        for node_record in awaited(state)
        if node_record.node_record.kind == "resolution"
    )
    return Unknowns(run_id=run_id, items=items)


@tool_calls.post(
    "/v1/runs/{run_id}/steps/{step_id}/resolve", status_code=202, responses=DONE_BEFORE
)
async def resolve(
    gateway: GatewayParts,
    caller: AnyCaller,
    run_id: str,
    step_id: PathToken,
    body: Resolution,
    response: Response,
) -> RunView:
    """Resolve a lost attempt: repeat it, or record it as succeeded or failed."""
    if body.action != "succeed" and body.output is not None:
        raise _invalid("output", f"{body.action} has no output", "action: succeed")
    decided = ResolutionAnswer(body.action, body.output, body.reason, caller.key_id)
    answer = Answer(resolution_record_id(step_id), decided, body.digest)
    (recorded,) = await gateway.answering.answer(caller, run_id, "resolution", (answer,))
    if recorded.repeated:
        response.status_code = 200
    state = await gateway.runs.state(caller.tenant, run_id, at_least_seq=recorded.seq)
    return await gateway.runs.view_of(state)
