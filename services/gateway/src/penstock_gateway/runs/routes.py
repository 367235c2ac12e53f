"""Routes of runs: start, read, follow, cancel. They are raw routes: their cost matters."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from penstock.contracts import subjects
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.ids import run_id_from_key
from penstock.contracts.usage import RunLimits
from penstock.runs.events import CLIENT_EVENT, EventType, events_of
from penstock.runs.start import StartParams
from penstock.runs.state import Entry
from penstock.runs.views import RUN_VIEW, RunView, summary_view
from penstock.telemetry import tracing
from penstock_gateway.core.access import Caller
from penstock_gateway.core.preferences import (
    event_place,
    event_types,
    flag,
    idempotency_key,
    page_size,
    refuse_unknown,
    sequence,
    step_window,
    wait_seconds,
    wants_events,
    wants_representation,
)
from penstock_gateway.core.requests import (
    CANCEL_RUN,
    EXECUTE_DEFINITION,
    START_RUN,
    ExecuteDefinition,
    Limits,
    named,
)
from penstock_gateway.gateway import Gateway
from penstock_gateway.middleware.entry import Headers, read_body
from penstock_gateway.raw import Answer, RawHeaders, conditional, read, require_type
from penstock_gateway.runs.start import Started, new_run_id
from penstock_gateway.runs.stream import EventStreamAnswer

_REPLAYED: Final = (b"idempotent-replayed", b"true")
_RUN_QUERY: Final = frozenset({"at_seq", "node_records", "steps_cursor", "steps_limit"})
_EVENT_QUERY: Final = frozenset({"after", "limit", "types"})
_NO_RUN_LIMITS: Final = RunLimits()
_OF_STEPS: Final = {
    *("steps", "step_counts", "next_steps_cursor", "node_records", "children", "budget")
}
"""Fields that the reply to a wait leaves out: the run's log must be read for them."""


class StartRoutes:
    """The endpoints that start runs."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the gateway's parts; they exist once it is open."""
        self._gateway = gateway
        self._max_body = gateway.settings.max_body_bytes
        self._max_wait = gateway.settings.max_wait_seconds

    async def start_run(self, request: Request) -> Response:
        """Start a run of a published agent or workflow.

        Answers 202 once the run is durably in the log. `Prefer: wait=N` answers 200 with the
        finished run if it ends within N seconds, and 202 at once when it waits for its caller to
        execute tools (`waiting_for`); the run has its steps with `return=representation` as well.
        `Accept: text/event-stream` streams its events. The same `Idempotency-Key` gives
        the same run, with another body 422.
        """
        headers, caller, body = await self.enter(request)
        requested = read(START_RUN, body)
        name, _, selector = requested.name.partition("@")
        params = replace(
            start_params(headers, caller, body, name, requested), selector=selector or None
        )
        return await self.reply(headers, params)

    async def execute_agent(self, request: Request) -> Response:
        """Start a run of a published agent; otherwise as `POST /v1/runs`."""
        return await self._execute(request, DefinitionKind.AGENT)

    async def execute_workflow(self, request: Request) -> Response:
        """Start a run of a published workflow; otherwise as `POST /v1/runs`."""
        return await self._execute(request, DefinitionKind.WORKFLOW)

    async def execute_network(self, request: Request) -> Response:
        """Start a run of a published network; otherwise as `POST /v1/runs`."""
        return await self._execute(request, DefinitionKind.NETWORK)

    async def _execute(self, request: Request, kind: DefinitionKind) -> Response:
        headers, caller, body = await self.enter(request)
        path: str = request.path_params["name"]
        requested = read(EXECUTE_DEFINITION, body)
        name, selector = named(path, path="name")
        params = start_params(headers, caller, body + b"\n" + path.encode(), name, requested)
        params = replace(params, selector=selector, kind=kind, path="path.name")
        return await self.reply(headers, params)

    async def enter(self, request: Request) -> tuple[Headers, Caller, bytes]:
        """Return headers, caller and body of a request that starts a run."""
        headers: Headers = dict(request.scope["headers"])
        caller = self._gateway.authenticator.caller(headers, "operator")
        body = await read_body(headers, request.receive, self._max_body)
        if body:
            require_type(headers.get(b"content-type"))
        return headers, caller, body

    async def reply(self, headers: Headers, params: StartParams) -> Response:
        """Start a run and reply in the form that the headers ask for."""
        traceparent = headers.get(b"traceparent")
        if traceparent is None and self._gateway.settings.otlp_endpoint is None:
            return await self._reply(headers, params)
        parent = None if traceparent is None else traceparent.decode("latin-1")
        with tracing.span("start run", kind="server", traceparent=parent) as span:
            return await self._reply(headers, replace(params, traceparent=span.traceparent))

    async def _reply(self, headers: Headers, params: StartParams) -> Response:
        accept = headers.get(b"accept")
        if accept is not None and wants_events(accept):
            return await self._stream(headers, params)
        seconds = wait_seconds(headers.get(b"prefer"), self._max_wait)
        if seconds is not None:
            return await self._wait(params, seconds, wants_representation(headers.get(b"prefer")))
        started = await self._gateway.starter.start(params)
        if started.replayed:
            view = await self._gateway.runs.view(params.tenant, started.run_id)
        else:
            view = summary_view(params.tenant, started.run_id, started.seq, started.invoked)
        return _run(view, started)

    async def _wait(self, params: StartParams, seconds: float, whole: bool) -> Response:
        gateway = self._gateway
        starter, waiter = gateway.starter, gateway.waiter
        version = await starter.executed_version(params)
        # Opened before the start: a run may end before its first fact is acknowledged.
        wait = waiter.open(params.tenant, params.run_id, seconds)
        try:
            await waiter.watch_calls(wait, version.plan_digest)
            started = await starter.start(params, version)
            end = None if started.replayed else await waiter.end(wait)
            if end is not None and not whole:
                seq, ended = end
                view = summary_view(params.tenant, params.run_id, seq, started.invoked, ended)
            elif end is not None:
                state = await gateway.runs.state(params.tenant, params.run_id, at_least_seq=end[0])
                view = await gateway.runs.view_of(state)
            else:
                view = await gateway.runs.view_of(await waiter.outcome(wait))
        finally:
            await wait.close()
        applied = b"wait=%d, return=representation" if whole else b"wait=%d"
        return _run(
            view,
            started,
            (b"preference-applied", applied % seconds),
            exclude=None if whole else _OF_STEPS,
        )

    async def _stream(self, headers: Headers, params: StartParams) -> Response:
        permit = self._gateway.authenticator.permit(headers)
        stream = await self._gateway.streams.open(params.tenant, params.run_id, permit)
        begun = False
        try:
            started = await self._gateway.starter.start(params)
            begun = True
        finally:
            if not begun:
                await stream.close()
        if not started.replayed and self._gateway.settings.streams_replicas == 1:
            # One server passes on everything that follows the subscription; in a cluster the
            # interest may still be on its way, so there the log is read.
            stream.begin_with(
                Entry(started.seq, subjects.parse_fact(started.subject), started.invoked)
            )
        return EventStreamAnswer(stream, _headers(started))


def start_params(
    headers: Headers, caller: Caller, form: bytes, name: str, requested: ExecuteDefinition
) -> StartParams:
    """Return the parameters of a run.

    Args:
        headers: Of the request.
        caller: Sent the request.
        form: Bytes that differ between different requests with one idempotency key.
        name: Of the definition to execute.
        requested: The body of the request.

    Raises:
        RejectedError: ``invalid_idempotency_key``.
    """
    run_id, digest = identity(headers, caller.tenant, form)
    return StartParams(
        tenant=caller.tenant,
        run_id=run_id,
        name=name,
        input=requested.input,
        session_id=requested.session_id,
        limits=run_limits(requested.limits),
        tags=requested.tags,
        priority=requested.priority,
        request_digest=digest,
        requested_by=caller.key_id,
    )


def identity(headers: Headers, tenant: str, form: bytes) -> tuple[str, str | None]:
    """Return the id of a run to start, and the digest of the request if its client names a key."""
    header = headers.get(b"idempotency-key")
    key = None if header is None else idempotency_key(header)
    if key is None:
        return new_run_id(), None
    return run_id_from_key(tenant, key), sha256(form).hexdigest()


def run_limits(limits: Limits) -> RunLimits:
    """Return limits in the form of the log."""
    if not limits.model_fields_set:
        return _NO_RUN_LIMITS
    return RunLimits(**limits.model_dump())


def _headers(started: Started, *more: tuple[bytes, bytes]) -> RawHeaders:
    headers: RawHeaders = [(b"location", b"/v1/runs/" + started.run_id.encode()), *more]
    if started.replayed:
        headers.append(_REPLAYED)
    return headers


def _run(
    view: RunView,
    started: Started,
    *more: tuple[bytes, bytes],
    exclude: set[str] | None = None,
) -> Response:
    status = 200 if view.status.final else 202
    body = RUN_VIEW.dump_json(view, exclude=exclude)
    return Answer(body, status, _headers(started, *more))


class ReadRoutes:
    """The endpoints about one run."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the gateway's parts; they exist once it is open."""
        self._gateway = gateway

    async def get_run(self, request: Request) -> Response:
        """Return a run, folded from its log: never stale.

        `?at_seq=N` shows it as it was at a sequence of the log, `?node_records=true` all that it
        decided. `Prefer: wait=N` waits until it has ended or its caller is to execute tools.
        `steps` holds the first 250 steps; the rest follows by `next_steps_cursor`, and
        `step_counts` counts all of them.
        """
        headers = dict(request.scope["headers"])
        caller = self._gateway.authenticator.caller(headers, "viewer")
        query, runs = request.query_params, self._gateway.runs
        run_id: str = request.path_params["run_id"]
        refuse_unknown(query, _RUN_QUERY)
        node_records = flag(query.get("node_records"), path="node_records")
        at_seq = sequence(query.get("at_seq"), path="at_seq")
        window = step_window(query.get("steps_limit"), query.get("steps_cursor"))
        seconds = wait_seconds(headers.get(b"prefer"), self._gateway.settings.max_wait_seconds)
        if seconds is None or at_seq is not None:
            state = await runs.state(caller.tenant, run_id, at_seq=at_seq)
            applied = []
        else:
            state = await self._gateway.waiter.wait_for(caller.tenant, run_id, seconds)
            applied = [(b"preference-applied", b"wait=%d" % seconds)]
        view = await runs.view_of(
            state, node_records=node_records, window=window, past=at_seq is not None
        )
        answer = Answer(RUN_VIEW.dump_json(view), 200, applied)
        return conditional(headers, answer) if view.status.final else answer

    async def get_events(self, request: Request) -> Response:
        """Return a run's events: a page of JSON, or a stream with `Accept: text/event-stream`.

        Events of the log have ids; give the last one as `Last-Event-ID` (or `?after=`) to resume
        on any replica. Deltas have none and are sent again from the beginning of a step that has
        not ended. Comments keep the connection alive.
        """
        headers = dict(request.scope["headers"])
        caller = self._gateway.authenticator.caller(headers, "viewer")
        query = request.query_params
        run_id: str = request.path_params["run_id"]
        refuse_unknown(query, _EVENT_QUERY)
        last = headers.get(b"last-event-id")
        # A stream begins with a whole fact.
        after, passed = event_place(last.decode("latin-1") if last else None, query.get("after"))
        types = event_types(query.get("types"))
        if not wants_events(headers.get(b"accept")):
            limit = page_size(query.get("limit"))
            return await self._page(caller.tenant, run_id, (after, passed), types, limit)
        # The run has to exist: a stream cannot say 404 any more.
        end = await self._gateway.runs.require(caller.tenant, run_id)
        if last and 0 < end <= after:
            # A browser that has all connects again and again, unless the answer is 204.
            return Response(status_code=204)
        permit = self._gateway.authenticator.permit(headers)
        stream = await self._gateway.streams.open(
            caller.tenant, run_id, permit, after=after, types=types
        )
        return EventStreamAnswer(stream)

    async def _page(
        self,
        tenant: str,
        run_id: str,
        place: tuple[int, int],
        types: frozenset[EventType] | None,
        limit: int,
    ) -> Response:
        items: list[bytes] = []
        last, passed = place
        following = b"null"
        async with aclosing(self._gateway.runs.entries_after(tenant, run_id, last)) as entries:
            async for entry in entries:
                wanted = [
                    (index, event)
                    for index, event in enumerate(events_of(entry))
                    if index >= passed and (types is None or event.type in types)
                ]
                room = limit - len(items)
                items += [CLIENT_EVENT.dump_json(e, exclude_none=True) for _, e in wanted[:room]]
                if len(wanted) > room:
                    index = wanted[room][0]
                    following = b'"%d.%d"' % (last, index) if index else b'"%d"' % last
                    break
                last, passed = entry.seq, 0
        body = b'{"items":[%b],"next_cursor":%b,"last_id":%d}' % (
            b",".join(items),
            following,
            last,
        )
        return Answer(body)

    async def cancel_run(self, request: Request) -> Response:
        """Ask a run to stop. Answers 202 with the run; 200 if it has ended already."""
        headers = dict(request.scope["headers"])
        caller = self._gateway.authenticator.caller(headers, "operator")
        body = await read_body(headers, request.receive, self._gateway.settings.max_body_bytes)
        if body:
            require_type(headers.get(b"content-type"))
        requested = read(CANCEL_RUN, body)
        runs = self._gateway.runs
        run_id: str = request.path_params["run_id"]
        view = await runs.view(caller.tenant, run_id)
        if view.status.final:
            return Answer(RUN_VIEW.dump_json(view))
        if await self._gateway.controls.cancel(caller, run_id, requested.reason) != "asked":
            # An earlier request has the same effect.
            view = await runs.view(caller.tenant, run_id)
        return Answer(RUN_VIEW.dump_json(view), 200 if view.status.final else 202)
