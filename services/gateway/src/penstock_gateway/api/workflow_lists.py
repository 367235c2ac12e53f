"""Older lists of a workflow API: the tasks of executions, and messages between them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from penstock.contracts.archive import ListRuns, RunPage
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import Record
from penstock.contracts.ids import Token
from penstock.contracts.json import Json
from penstock.contracts.state import RunState
from penstock.contracts.views import StepView, step_view
from penstock_gateway.api.context import GatewayParts, Viewer
from penstock_gateway.core.access import Caller
from penstock_gateway.runs import NOT_FOUND

ExecutionId = Annotated[str | None, Query(max_length=64, description="Of this run only.")]
Limit = Annotated[int, Query(ge=1, le=50, description="Of so many of the latest runs.")]

workflow_lists: Final = APIRouter(tags=["older paths"])


class TaskView(StepView):
    """A step of a run, by the name that other systems have for it."""

    execution_id: str
    workflow: str


class Tasks(Record):
    """Tasks of one execution, or of the latest ones."""

    items: tuple[TaskView, ...]


class MessageView(Record):
    """A message or event that reached an execution."""

    execution_id: str
    message_id: str
    kind: Literal["event", "message"]
    name: str
    payload: Json = None
    from_execution: str | None = None
    sent_by: str | None = None
    at: AwareDatetime


class Messages(Record):
    """Messages of one execution, or of the latest ones, in the order in which each had them."""

    items: tuple[MessageView, ...]


async def _states(
    gateway: GatewayParts, caller: Caller, run_id: str | None, limit: int
) -> list[RunState]:
    if run_id is not None:
        return [await gateway.runs.state(caller.tenant, run_id)]
    request = ListRuns(tenant=caller.tenant, limit=limit)
    page = await gateway.archive.ask("list_runs", request, RunPage)
    states = []
    for item in page.items:
        try:
            states.append(await gateway.runs.state(caller.tenant, item.run_id))
        except RejectedError as error:
            # Deleted meanwhile.
            if error.code != NOT_FOUND:
                raise
    return states


@workflow_lists.get("/v1/workflows/tasks")
async def list_tasks(
    gateway: GatewayParts,
    caller: Viewer,
    execution_id: ExecutionId = None,
    status: Annotated[Token | None, Query()] = None,
    limit: Limit = 20,
) -> Tasks:
    """List the steps of a run, or of the latest runs."""
    states = await _states(gateway, caller, execution_id, limit)
    items = [
        TaskView(
            execution_id=state.run_id,
            workflow=state.request.name,
            **step_view(step).model_dump(),
        )
        for state in states
        for step in sorted(state.steps.values(), key=lambda step: (step.decision, step.step_id))
        if status in (None, step.status)
    ]
    return Tasks(items=tuple(items))


@workflow_lists.get("/v1/workflows/messages")
async def list_messages(
    gateway: GatewayParts,
    caller: Viewer,
    execution_id: ExecutionId = None,
    limit: Limit = 20,
) -> Messages:
    """List what was sent to a run, or to the latest runs: events and messages of other runs."""
    states = await _states(gateway, caller, execution_id, limit)
    items = [
        MessageView(
            execution_id=state.run_id,
            message_id=signal_id,
            kind="message" if signal.fact.kind == "message" else "event",
            name=signal.fact.name,
            payload=signal.fact.payload,
            from_execution=signal.fact.from_run,
            sent_by=signal.fact.sent_by,
            at=signal.fact.occurred_at,
        )
        for state in states
        for signal_id, signal in sorted(state.signals.items(), key=lambda item: item[1].seq)
        if signal.fact.kind in ("event", "message")
    ]
    return Messages(items=tuple(items))
