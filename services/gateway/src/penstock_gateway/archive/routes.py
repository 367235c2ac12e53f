"""Lists that the archive answers: runs, steps, sessions and their messages, usage."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query

from penstock.contracts.archive import (
    GetSession,
    ListRuns,
    ListSessions,
    ListSignals,
    ListSteps,
    MessagePage,
    MessageView,
    RunPage,
    SessionMessages,
    SessionPage,
    SessionView,
    SignalPage,
    StepPage,
)
from penstock.contracts.archive_reports import UsageReport, UsageSummary
from penstock.contracts.envelope import MAX_INT64, BoundedTime
from penstock.contracts.facts import Record, StepKind
from penstock.contracts.ids import TOKEN_PATTERN
from penstock_gateway.archive.deletions import deletions
from penstock_gateway.archive.queries import (
    Cursor,
    Limit,
    RunQuery,
    SignalQuery,
    StepQuery,
    known_only,
    read_tag,
)
from penstock_gateway.archive.reports import reports
from penstock_gateway.context import GatewayParts, PathToken, Viewer

archives: Final = APIRouter()
archives.include_router(reports)
archives.include_router(deletions)


class MessageItems(Record):
    """A page of messages, oldest first."""

    items: tuple[MessageView, ...]
    next_cursor: str | None = None


@archives.get("/v1/runs", tags=["runs"], dependencies=[known_only(RunQuery)])
async def list_runs(
    gateway: GatewayParts, caller: Viewer, query: Annotated[RunQuery, Query()]
) -> RunPage:
    """List runs in order of time. The archive is a moment behind; single runs never are."""
    plain = query.model_dump(exclude={"tag", "min_cost", "max_cost", "parent", "root"})
    request = ListRuns(
        tenant=caller.tenant,
        **plain,
        tags=dict(read_tag(text) for text in query.tag),
        min_cost_usd=query.min_cost,
        max_cost_usd=query.max_cost,
        parent_run_id=query.parent,
        root_run_id=query.root,
    )
    return await gateway.archive.ask("list_runs", request, RunPage)


@archives.get("/v1/steps", tags=["runs"], dependencies=[known_only(StepQuery)])
async def list_steps(
    gateway: GatewayParts, caller: Viewer, query: Annotated[StepQuery, Query()]
) -> StepPage:
    """List step executions of all runs, the latest first."""
    request = ListSteps(tenant=caller.tenant, **query.model_dump())
    return await gateway.archive.ask("list_steps", request, StepPage)


@archives.get("/v1/runs/{run_id}/steps", tags=["runs"], dependencies=[known_only(StepQuery)])
async def list_steps_of_run(
    gateway: GatewayParts,
    caller: Viewer,
    run_id: PathToken,
    query: Annotated[StepQuery, Query()],
) -> StepPage:
    """List the step executions of one run, the latest first."""
    await gateway.runs.require(caller.tenant, run_id)
    wanted = query.model_copy(update={"run_id": run_id})
    request = ListSteps(tenant=caller.tenant, **wanted.model_dump())
    return await gateway.archive.ask("list_steps", request, StepPage)


@archives.get("/v1/workflows/tasks", tags=["older paths"], dependencies=[known_only(StepQuery)])
async def list_tasks(
    gateway: GatewayParts, caller: Viewer, query: Annotated[StepQuery, Query()]
) -> StepPage:
    """List steps of agents and child runs, the latest first."""
    kinds = query.kind or [StepKind.AGENT, StepKind.RUN]
    request = ListSteps(
        tenant=caller.tenant, **query.model_dump(exclude={"kind"}), kind=tuple(kinds)
    )
    return await gateway.archive.ask("list_steps", request, StepPage)


@archives.get(
    "/v1/workflows/messages", tags=["older paths"], dependencies=[known_only(SignalQuery)]
)
async def list_run_messages(
    gateway: GatewayParts, caller: Viewer, query: Annotated[SignalQuery, Query()]
) -> SignalPage:
    """List messages between runs, the latest first."""
    request = ListSignals(tenant=caller.tenant, kind=("message",), **query.model_dump())
    return await gateway.archive.ask("list_signals", request, SignalPage)


@archives.get("/v1/sessions", tags=["sessions"])
@archives.get("/v1/conversations", tags=["older paths"])
async def list_sessions(
    gateway: GatewayParts,
    caller: Viewer,
    name: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> SessionPage:
    """List sessions, the one with the latest run first."""
    request = ListSessions(tenant=caller.tenant, name=name, limit=limit, cursor=cursor)
    return await gateway.archive.ask("list_sessions", request, SessionPage)


@archives.get("/v1/sessions/{session_id}", tags=["sessions"])
@archives.get("/v1/conversations/{session_id}", tags=["older paths"])
async def get_session(gateway: GatewayParts, caller: Viewer, session_id: PathToken) -> SessionView:
    """Return one session."""
    request = GetSession(tenant=caller.tenant, session_id=session_id)
    return await gateway.archive.ask("get_session", request, SessionView)


@archives.get("/v1/sessions/{session_id}/messages", tags=["sessions"])
async def list_messages(
    gateway: GatewayParts,
    caller: Viewer,
    session_id: PathToken,
    limit: Limit = 200,
    cursor: Annotated[int, Query(ge=0, le=MAX_INT64)] = 0,
) -> MessageItems:
    """List the messages of a session, oldest first."""
    request = SessionMessages(
        tenant=caller.tenant, session_id=session_id, after=cursor, limit=limit
    )
    page = await gateway.archive.ask("session_messages", request, MessagePage)
    following = None if page.next_after is None else str(page.next_after)
    return MessageItems(items=page.items, next_cursor=following)


@archives.get("/v1/usage", tags=["usage"])
async def usage(
    gateway: GatewayParts,
    caller: Viewer,
    since: BoundedTime | None = None,
    until: BoundedTime | None = None,
    name: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
) -> UsageReport:
    """Return what model calls cost, the dearest model first."""
    request = UsageSummary(tenant=caller.tenant, since=since, until=until, name=name)
    return await gateway.archive.ask("usage_summary", request, UsageReport)
