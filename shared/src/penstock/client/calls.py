"""The requests of the HTTP API as values: path, body and type of the reply, declared once.

``Client`` and ``AsyncClient`` make a method of each function here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import IO, Final, Generic, Literal, TypedDict, TypeVar, Unpack, cast

import httpx
from msgspec import UNSET, UnsetType
from pydantic import TypeAdapter

from penstock.client.errors import UnsendableError
from penstock.contracts.facts import Record
from penstock.contracts.json import Json
from penstock.runs.replies import ApprovalView, Calls, SentSignal, SentSignals
from penstock.runs.views import RunView

REQUEST_SECONDS: Final = 30.0
"""Longest silence of the gateway within one request."""
PAGE_SIZE: Final = 100

_SEGMENT: Final = re.compile(r"[\w~@:-][\w.~@:-]*", re.ASCII)

QueryValue = str | int | float | datetime | Sequence[str] | None

ReplyT_co = TypeVar("ReplyT_co", covariant=True)
ItemT = TypeVar("ItemT")


class Items(Record, Generic[ItemT]):
    """One page of any list; ``next_cursor`` is absent on the last one."""

    items: tuple[ItemT, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[ReplyT_co]):
    """One request. Endpoints without a method of the client are called with ``client.send``.

    Attributes:
        reply: Type of the JSON reply; an empty reply is read as ``{}``.
        method: HTTP method.
        path: Such as ``/v1/archive``.
        body: JSON body; none if unset.
        params: Query; ``None`` and empty values are left out.
        headers: Further headers; ``None`` values are left out.
        timeout_seconds: Longest silence of the gateway.
        content: A body that is not JSON, instead of ``body``.
        limit: Number of items over all pages of a list; ``None``: all.
    """

    reply: type[ReplyT_co]
    method: str
    path: str
    body: Json | UnsetType = UNSET
    params: Mapping[str, QueryValue] = field(default_factory=dict)
    headers: Mapping[str, str | None] = field(default_factory=dict)
    timeout_seconds: float = REQUEST_SECONDS
    content: IO[bytes] | bytes | None = None
    limit: int | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the request that ``http`` has to send."""
        params = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in self.params.items()
            if value is not None and value not in ("", [], ())
        }
        return http.build_request(
            self.method,
            self.path,
            params=params,
            headers={name: value for name, value in self.headers.items() if value is not None},
            timeout=self.timeout_seconds,
            content=self.content,
            json=None if self.body is UNSET else self.body,
        )

    def read(self, content: bytes) -> ReplyT_co:
        """Return the reply.

        Raises:
            ValueError: It does not have the expected form.
        """
        reply: ReplyT_co = TypeAdapter(self.reply).validate_json(content or b"{}")
        return reply

    def following(self, cursor: str | None, seen: int) -> Call[ReplyT_co] | None:
        """Return the call for the page at ``cursor``, or ``None`` if the limit is reached."""
        size = PAGE_SIZE if self.limit is None else min(self.limit - seen, PAGE_SIZE)
        if size <= 0:
            return None
        return replace(self, params={**self.params, "limit": size, "cursor": cursor}, limit=size)


class RunFilter(TypedDict, total=False):
    """Filters of a list of runs; all that are given must match. Times are aware or RFC 3339."""

    status: Sequence[str]
    id_prefix: str | None
    """The first characters of the run's id."""
    name: str | None
    kind: str | None
    session_id: str | None
    tag: Sequence[str]
    """Each ``NAME=VALUE``."""
    trigger: Sequence[str]
    created_from: datetime | str | None
    created_before: datetime | str | None
    ended_from: datetime | str | None
    ended_before: datetime | str | None
    min_cost: float | None
    """In USD, as ``max_cost``; both bounds are included."""
    max_cost: float | None
    parent: str | None
    root: str | None
    forked_from: str | None
    error: str | None
    """Part of the error's code."""
    sort: Literal["created", "ended"]
    order: Literal["desc", "asc"]


class Changes(TypedDict, total=False):
    """Differences of a run from the one that it continues; absent or ``None``: no difference."""

    input: Json
    """``fork`` only; ``None`` is an input, too."""
    overrides: dict[str, Json] | None
    """Outputs by step id, instead of the recorded ones."""
    limits: dict[str, Json] | None
    """As of ``start``; not for ``replay``."""
    tags: dict[str, str] | None
    idempotency_key: str | None


def _given(**fields: Json) -> dict[str, Json]:
    return {name: value for name, value in fields.items() if value is not None}


def path_of(template: str, *ids: str) -> str:
    """Return a path with ids in the places of ``{}``.

    Raises:
        UnsendableError: An id is not one segment of a path, so the path would name something else.
    """
    for one in ids:
        if not _SEGMENT.fullmatch(one):
            raise UnsendableError(f"{one[:80]!r} is not an id")
    return template.format(*ids)


def _key(idempotency_key: str | None) -> dict[str, str | None]:
    return {"Idempotency-Key": idempotency_key}


def _prefer(wait_seconds: int | None, more: str = "") -> dict[str, str | None]:
    return {"Prefer": f"wait={wait_seconds}{more}" if wait_seconds else None}


def start(
    name: str,
    input: Json = None,  # noqa: A002 - the API's word
    *,
    session_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    limits: Mapping[str, Json] | None = None,
    priority: int | None = None,
    idempotency_key: str | None = None,
    wait_seconds: int | None = None,
) -> Call[RunView]:
    """Start a run; it is in the log when the method returns.

    Args:
        name: Agent, workflow or network: ``NAME``, ``NAME@VERSION`` or ``NAME@ALIAS``.
        input: Any JSON value.
        session_id: Runs of one session share a conversation.
        tags: Names and values for lists.
        limits: Such as ``{"max_tokens": 1000}``.
        priority: -100 to 100; higher runs first.
        idempotency_key: Repeated calls with the same key start one run.
        wait_seconds: Return the ended run if it ends within this time.

    Raises:
        ProblemError: The gateway refused it.
        UnreachableError: No reply; repeat the call with the same ``idempotency_key``.
    """
    body = _given(
        session_id=session_id,
        tags=dict(tags) if tags else None,
        limits=dict(limits) if limits else None,
        priority=priority,
    )
    return Call(
        RunView,
        "POST",
        "/v1/runs",
        {"name": name, "input": input, **body},
        headers=_key(idempotency_key) | _prefer(wait_seconds, ", return=representation"),
        timeout_seconds=REQUEST_SECONDS + (wait_seconds or 0),
    )


def get(
    run_id: str,
    *,
    at_seq: int | None = None,
    node_records: bool = False,
    wait_seconds: int | None = None,
    steps_cursor: str | None = None,
    steps_limit: int | None = None,
) -> Call[RunView]:
    """Return a run, folded from its log; of a large run one page of its steps.

    Args:
        run_id: The run.
        at_seq: As of this sequence of the log.
        node_records: Include all node records.
        wait_seconds: Reply when the run has ended or waits for client tools, at most this late.
        steps_cursor: ``next_steps_cursor`` of the page before.
        steps_limit: Most steps of the page, up to 1,000.

    Raises:
        ProblemError: Such as ``run_not_found``.
        UnreachableError: No reply.
    """
    return Call(
        RunView,
        "GET",
        path_of("/v1/runs/{}", run_id),
        params={
            "at_seq": at_seq,
            "node_records": "true" if node_records else None,
            "steps_cursor": steps_cursor,
            "steps_limit": steps_limit,
        },
        headers=_prefer(wait_seconds),
        timeout_seconds=REQUEST_SECONDS + (wait_seconds or 0),
    )


def _control(path: str, *ids: str, reason: str) -> Call[RunView]:
    return Call(RunView, "POST", path_of(path, *ids), {"reason": reason})


def cancel(run_id: str, *, reason: str = "") -> Call[RunView]:
    """Request that a run stops; ``reason`` is stored with it."""
    return _control("/v1/runs/{}/cancel", run_id, reason=reason)


def cancel_step(run_id: str, step_id: str, *, reason: str = "") -> Call[RunView]:
    """Cancel one step: its attempt, or its child run with all descendants."""
    return _control("/v1/runs/{}/steps/{}/cancel", run_id, step_id, reason=reason)


def pause(run_id: str, *, reason: str = "") -> Call[RunView]:
    """Pause a run: running steps finish, no new step starts."""
    return _control("/v1/runs/{}/pause", run_id, reason=reason)


def resume(run_id: str, *, reason: str = "") -> Call[RunView]:
    """Resume a paused run."""
    return _control("/v1/runs/{}/resume", run_id, reason=reason)


def signal(
    run_id: str, name: str, payload: Json = None, *, idempotency_key: str | None = None
) -> Call[SentSignal]:
    """Send an event to one run; it is in the log when the method returns."""
    body: Json = {"name": name, "payload": payload}
    path = path_of("/v1/runs/{}/signals", run_id)
    return Call(SentSignal, "POST", path, body, headers=_key(idempotency_key))


def signal_waiting(
    correlation: str, name: str, payload: Json = None, *, idempotency_key: str | None = None
) -> Call[SentSignals]:
    """Send an event to all runs that wait for a correlation key."""
    body: Json = {"name": name, "payload": payload, "correlation": correlation}
    return Call(SentSignals, "POST", "/v1/signals", body, headers=_key(idempotency_key))


def approval(run_id: str, record_id: str) -> Call[ApprovalView]:
    """Return one approval, from the log of its run."""
    return Call(ApprovalView, "GET", path_of("/v1/approvals/{}/{}", run_id, record_id))


def approvals(
    *,
    status: str = "open",
    role: str | None = None,
    run_id: str | None = None,
    limit: int | None = None,
) -> Call[Items[ApprovalView]]:
    """Yield approvals, the oldest first, at most ``limit``; other than open ones of one run."""
    params = {"status": status, "role": role, "run_id": run_id}
    return Call(Items[ApprovalView], "GET", "/v1/approvals", params=params, limit=limit)


def runs(*, limit: int | None = None, **filters: Unpack[RunFilter]) -> Call[Items[RunView]]:
    """Yield runs from the archive, newest first, at most ``limit``; without steps."""
    params = cast("dict[str, QueryValue]", filters)
    return Call(Items[RunView], "GET", "/v1/runs", params=params, limit=limit)


def _answer(
    run_id: str, record_id: str, act: str, digest: str | None, reason: str
) -> Call[ApprovalView]:
    body = {"reason": reason, **_given(digest=digest)}
    path = path_of("/v1/approvals/{}/{}/{}", run_id, record_id, act)
    return Call(ApprovalView, "POST", path, body)


def approve(
    run_id: str, record_id: str, *, digest: str | None = None, reason: str = ""
) -> Call[ApprovalView]:
    """Approve a pending request.

    Args:
        run_id: The run.
        record_id: Id of the pending request.
        digest: Digest of the approved request; another request is refused.
        reason: Stored with the answer.

    Raises:
        ProblemError: Such as ``already_decided``.
        UnreachableError: No reply; the call may be repeated.
    """
    return _answer(run_id, record_id, "approve", digest, reason)


def reject(
    run_id: str, record_id: str, *, digest: str | None = None, reason: str = ""
) -> Call[ApprovalView]:
    """Reject a pending request; otherwise as ``approve``."""
    return _answer(run_id, record_id, "reject", digest, reason)


def tool_calls(run_id: str) -> Call[Calls]:
    """Return the pending client tool calls of a run."""
    return Call(Calls, "GET", path_of("/v1/runs/{}/tool_calls", run_id))


def tool_result(
    run_id: str,
    step_id: str,
    output: Json = None,
    *,
    error: str | None = None,
    wait_seconds: int | None = None,
) -> Call[RunView]:
    """Submit the result of a client tool call.

    Args:
        run_id: The run.
        step_id: Id of the call.
        output: Its result.
        error: Message of a failure, instead of ``output``.
        wait_seconds: Reply when the run has ended or has further calls, at most this late.

    Raises:
        ProblemError: Such as ``already_decided``.
        UnreachableError: No reply; the call may be repeated.
    """
    result: dict[str, Json] = {"step_id": step_id}
    result |= (
        {"output": output} if error is None else {"status": "failed", "error": {"message": error}}
    )
    return Call(
        RunView,
        "POST",
        path_of("/v1/runs/{}/tool_results", run_id),
        {"results": [result]},
        headers=_prefer(wait_seconds),
        timeout_seconds=REQUEST_SECONDS + (wait_seconds or 0),
    )


def fork(
    run_id: str,
    *,
    at_seq: int | None = None,
    version: int | str | None = None,
    **changes: Unpack[Changes],
) -> Call[RunView]:
    """Start a run that continues from any point of another one.

    Args:
        run_id: The other run.
        at_seq: Continue after this sequence of the log; default: the latest.
        version: Another version, or an alias.
        changes: Differences of the new run, see ``Changes``.

    Raises:
        ProblemError: The gateway refused it.
        UnreachableError: No reply; repeat the call with the same ``idempotency_key``.
    """
    return _continue(run_id, "fork", _given(at_seq=at_seq, version=version), changes)


def retry(run_id: str, **changes: Unpack[Changes]) -> Call[RunView]:
    """Start a failed or cancelled run again at its failed steps; otherwise as ``fork``."""
    return _continue(run_id, "retry", {}, changes)


def replay(
    run_id: str, *, from_seq: int | None = None, **changes: Unpack[Changes]
) -> Call[RunView]:
    """Repeat an ended run with its recorded outcomes; otherwise as ``fork``.

    ``from_seq``: repeat only the decisions after this sequence.
    """
    return _continue(run_id, "replay", {} if from_seq is None else {"from": from_seq}, changes)


def _continue(run_id: str, act: str, body: dict[str, Json], changes: Changes) -> Call[RunView]:
    key = _key(changes.pop("idempotency_key", None))
    fields = cast("dict[str, Json]", changes)
    body |= {name: value for name, value in fields.items() if value is not None or name == "input"}
    return Call(RunView, "POST", path_of("/v1/runs/{}/{}", run_id, act), body, headers=key)
