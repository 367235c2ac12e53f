"""Starting runs over HTTP, with waiting and streaming: the hot path of the gateway."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from time import monotonic
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from penstock.bus.claims import is_claim
from penstock.bus.reader import decode_entry
from penstock.contracts import subjects
from penstock.contracts.facts import DefinitionKind, RunEnded, RunLimits
from penstock.contracts.ids import run_id_from_key
from penstock.runids import new_run_id
from penstock.runs.start import StartParams
from penstock.runs.state import Entry, RunState
from penstock.runs.views import RUN_VIEW, summary_view
from penstock.telemetry import tracing
from penstock_gateway.core.access import Caller
from penstock_gateway.core.preferences import idempotency_key, wait_seconds, wants_events
from penstock_gateway.core.requests import (
    EXECUTE_DEFINITION,
    START_RUN,
    ExecuteDefinition,
    Limits,
    named,
)
from penstock_gateway.gateway import Gateway
from penstock_gateway.hot import read
from penstock_gateway.middleware.entry import Headers, read_body
from penstock_gateway.raw import Answer, RawHeaders
from penstock_gateway.runs.attention import open_calls
from penstock_gateway.runs.ends import LiveFact
from penstock_gateway.runs.start import Started
from penstock_gateway.runs.stream import EventStreamAnswer

_REPLAYED: Final = (b"idempotent-replayed", b"true")
_NO_RUN_LIMITS: Final = RunLimits()


class Starting:
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
        execute tools (`waiting_for`); `Accept: text/event-stream` streams its events. The same
        `Idempotency-Key` gives the same run, with another body 422.
        """
        headers, caller, body = await self.enter(request)
        given = read(START_RUN, body)
        name, _, selector = given.name.partition("@")
        params = StartParams(
            tenant=caller.tenant,
            run_id=new_run_id(),
            name=name,
            selector=selector or None,
            input=given.input,
            session_id=given.session_id,
            limits=run_limits(given.limits),
            tags=given.tags,
            priority=given.priority,
            requested_by=caller.key_id,
        )
        return await self.answer(headers, params, body)

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
        named_so = request.path_params["name"]
        given = read(EXECUTE_DEFINITION, body)
        return await self.answer(
            headers, execution(caller, named_so, kind, given), body + b"\n" + named_so.encode()
        )

    async def enter(self, request: Request) -> tuple[Headers, Caller, bytes]:
        """Return headers, caller and body of a request that starts a run."""
        headers: Headers = dict(request.scope["headers"])
        caller = self._gateway.door.caller(headers)
        caller.require("operator")
        return headers, caller, await read_body(headers, request.receive, self._max_body)

    async def answer(self, headers: Headers, params: StartParams, request_form: bytes) -> Response:
        """Start what is asked for and answer as the headers want it.

        Args:
            headers: Of the request.
            params: Parameters of the run.
            request_form: The bytes that make it the same request as another.
        """
        params = self.keyed(headers, params, request_form)
        traceparent = headers.get(b"traceparent")
        if traceparent is not None or self._gateway.settings.otlp_endpoint is not None:
            return await self._traced(headers, params, traceparent)
        return await self._begin(headers, params)

    def keyed(self, headers: Headers, params: StartParams, request_form: bytes) -> StartParams:
        """Give the run the id that its ``Idempotency-Key`` stands for, where it has one."""
        key = idempotency_key(headers.get(b"idempotency-key"))
        if key is None:
            return params
        return replace(
            params,
            run_id=run_id_from_key(params.tenant, key),
            request_digest=sha256(request_form).hexdigest(),
        )

    async def _traced(
        self, headers: Headers, params: StartParams, traceparent: bytes | None
    ) -> Response:
        parent = None if traceparent is None else traceparent.decode("latin-1")
        with tracing.span("start run", kind="server", traceparent=parent) as span:
            return await self._begin(headers, replace(params, traceparent=span.traceparent))

    async def _begin(self, headers: Headers, params: StartParams) -> Response:
        if wants_events(headers.get(b"accept")):
            return await self._stream(params)
        seconds = wait_seconds(headers.get(b"prefer"), self._max_wait)
        if seconds is None:
            started = await self._gateway.starter.start(params)
            return await self._accepted(params.tenant, started, [])
        return await self._wait(params, seconds)

    async def _wait(self, params: StartParams, seconds: float) -> Response:
        applied = [(b"preference-applied", b"wait=%d" % seconds)]
        gateway, tenant, run_id = self._gateway, params.tenant, params.run_id
        version = await gateway.starter.executed_version(params)
        watch = await gateway.attention.watch(tenant, run_id, version.plan_digest)
        # Waited for before it is begun: a run may end before its beginning is acknowledged.
        begun_at = monotonic()
        waiting = gateway.ends.wait(tenant, run_id, seconds)
        if watch is not None:
            watch.wait = waiting
        try:
            started = await gateway.starter.start(params, version)
            if started.replayed:
                state = await gateway.runs.state(tenant, run_id)
                if state.ended is not None or open_calls(state):
                    return await self._settled(state, started, applied)
            live = await waiting.end()
            if live is not None and (ended := await self._read_end(live)) is not None:
                view = summary_view(tenant, run_id, live.seq, started.invoked, ended)
                return Answer(RUN_VIEW.dump_json(view), 200, _headers(started, applied))
            left = seconds - (monotonic() - begun_at)
            state = await gateway.attention.settled(tenant, run_id, left, watch)
        finally:
            waiting.close()
            if watch is not None:
                await watch.stop()
        return await self._settled(state, started, applied)

    async def _settled(self, state: RunState, started: Started, applied: RawHeaders) -> Response:
        view = await self._gateway.runs.view_of(state)
        status = 200 if view.status.final else 202
        return Answer(RUN_VIEW.dump_json(view), status, _headers(started, applied))

    async def _read_end(self, live: LiveFact) -> RunEnded | None:
        entry = (
            await self._gateway.reader.decode(live.subject, live.seq, live.body)
            if is_claim(live.body)
            else decode_entry(live.subject, live.seq, live.body)
        )
        return entry.fact if isinstance(entry.fact, RunEnded) else None

    async def _accepted(self, tenant: str, started: Started, extra: RawHeaders) -> Response:
        if started.replayed:
            view = await self._gateway.runs.view(tenant, started.run_id)
        else:
            view = summary_view(tenant, started.run_id, started.seq, started.invoked)
        status = 200 if view.status.final else 202
        return Answer(RUN_VIEW.dump_json(view), status, _headers(started, extra))

    async def _stream(self, params: StartParams) -> Response:
        stream = await self._gateway.streams.open(params.tenant, params.run_id)
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
        return EventStreamAnswer(stream, _headers(started, []))


def execution(
    caller: Caller, name: str, kind: DefinitionKind, given: ExecuteDefinition
) -> StartParams:
    """Return what a request to execute a named definition asks for.

    Raises:
        RejectedError: ``invalid_token``: the name is none.
    """
    name, selector = named(name, path="name")
    return StartParams(
        tenant=caller.tenant,
        run_id=new_run_id(),
        name=name,
        selector=selector,
        kind=kind,
        input=given.input,
        session_id=given.session_id,
        limits=run_limits(given.limits),
        tags=given.tags,
        priority=given.priority,
        requested_by=caller.key_id,
        path="path.name",
    )


def run_limits(limits: Limits) -> RunLimits:
    """Return limits as the log has them."""
    if not limits.model_fields_set:
        return _NO_RUN_LIMITS
    return RunLimits(**limits.model_dump())


def _headers(started: Started, extra: RawHeaders) -> RawHeaders:
    headers: RawHeaders = [(b"location", b"/v1/runs/" + started.run_id.encode()), *extra]
    if started.replayed:
        headers.append(_REPLAYED)
    return headers
