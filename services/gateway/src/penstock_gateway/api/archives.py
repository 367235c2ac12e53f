"""Lists that the archive answers: runs, sessions and their messages, usage."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from pydantic import AwareDatetime, Field

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.archive import (
    DeleteSession,
    GetSession,
    ListRuns,
    ListSessions,
    MessagePage,
    MessageView,
    RunPage,
    SessionDeleted,
    SessionMessages,
    SessionPage,
    SessionView,
    UsageReport,
    UsageSummary,
)
from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import DefinitionKind, Record, RunStatus
from penstock.contracts.ids import TOKEN_PATTERN, Token
from penstock_gateway.api.context import GatewayParts, Operator, Viewer
from penstock_gateway.core.requests import Input

SessionId = Annotated[str, Path(pattern=TOKEN_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(description="The `next_cursor` of the page before.")]

archives: Final = APIRouter()


class RunQuery(Input):
    """Which runs are wanted; all filters that are given must match."""

    status: list[RunStatus] = []
    name: Token | None = None
    kind: DefinitionKind | None = None
    session_id: Token | None = None
    created_from: AwareDatetime | None = None
    created_before: AwareDatetime | None = None
    tag: list[str] = Field(default=[], description="`name:value`; the run has all of them")
    limit: int = Field(default=50, ge=1, le=1000)
    cursor: str | None = Field(default=None, description="The `next_cursor` of the page before")


class MessageItems(Record):
    """A page of messages, oldest first."""

    items: tuple[MessageView, ...]
    next_cursor: str | None = None


@archives.get("/v1/runs", tags=["runs"])
async def list_runs(
    gateway: GatewayParts, caller: Viewer, query: Annotated[RunQuery, Query()]
) -> RunPage:
    """List runs, the latest first. The archive is a moment behind; single runs never are."""
    request = ListRuns(
        tenant=caller.tenant,
        **query.model_dump(exclude={"tag"}),
        tags=dict(_tag(text) for text in query.tag),
    )
    return await gateway.archive.ask("list_runs", request, RunPage)


def _tag(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise RejectedError(
            "invalid_request",
            "a tag is given as name:value",
            details=(ErrorDetail(path="tag", message=f"got {text[:80]!r}", allowed="name:value"),),
        )
    return name, value


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
async def get_session(gateway: GatewayParts, caller: Viewer, session_id: SessionId) -> SessionView:
    """Return one session."""
    request = GetSession(tenant=caller.tenant, session_id=session_id)
    return await gateway.archive.ask("get_session", request, SessionView)


@archives.get("/v1/sessions/{session_id}/messages", tags=["sessions"])
async def list_messages(
    gateway: GatewayParts,
    caller: Viewer,
    session_id: SessionId,
    limit: Limit = 200,
    cursor: Annotated[int, Query(ge=0)] = 0,
) -> MessageItems:
    """List what was said in a session, oldest first."""
    request = SessionMessages(
        tenant=caller.tenant, session_id=session_id, after=cursor, limit=limit
    )
    page = await gateway.archive.ask("session_messages", request, MessagePage)
    following = None if page.next_after is None else str(page.next_after)
    return MessageItems(items=page.items, next_cursor=following)


@archives.delete("/v1/sessions/{session_id}", status_code=204, tags=["sessions"])
@archives.delete("/v1/conversations/{session_id}", status_code=204, tags=["older paths"])
async def delete_session(gateway: GatewayParts, caller: Operator, session_id: SessionId) -> None:
    """Forget a session; a later run in it begins anew. Its runs stay."""
    request = DeleteSession(tenant=caller.tenant, session_id=session_id)
    await gateway.archive.ask("delete_session", request, SessionDeleted)
    pointers = Bucket(gateway.bus, subjects.SESSIONS)
    await pointers.delete(subjects.session_key(caller.tenant, session_id))


@archives.get("/v1/usage", tags=["usage"])
async def usage(
    gateway: GatewayParts,
    caller: Viewer,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
    name: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
) -> UsageReport:
    """Return what model calls cost, the dearest model first."""
    request = UsageSummary(tenant=caller.tenant, since=since, until=until, name=name)
    return await gateway.archive.ask("usage_summary", request, UsageReport)
