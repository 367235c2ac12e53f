"""Older ways of starting runs, in the shapes that their clients know."""

from __future__ import annotations

from typing import Final

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from penstock.contracts.facts import DefinitionKind, Record
from penstock.runs.start import StartParams
from penstock.telemetry import tracing
from penstock_gateway.core.preferences import wants_events
from penstock_gateway.core.requests import INTERNAL_INVOKE, INVOKE
from penstock_gateway.gateway import Gateway
from penstock_gateway.raw import Answer, read
from penstock_gateway.runs.routes import StartRoutes, identity, run_limits


class Invoked(Record):
    """A run was started; its trace can be looked up by ``trace_id``."""

    run_id: str
    trace_id: str


class InternallyInvoked(Record):
    """A run was started in a session."""

    run_id: str
    session_id: str
    agent_id: str


_INVOKED: Final[TypeAdapter[Invoked]] = TypeAdapter(Invoked)
_INTERNALLY: Final[TypeAdapter[InternallyInvoked]] = TypeAdapter(InternallyInvoked)


class Older:
    """The endpoints of older clients."""

    def __init__(self, gateway: Gateway, starting: StartRoutes) -> None:
        """Use the newer endpoints' ways."""
        self._gateway = gateway
        self._starting = starting

    async def invoke(self, request: Request) -> Response:
        """Start a run; answers its id and that of its trace."""
        headers, caller, body = await self._starting.enter(request)
        given = read(INVOKE, body)
        name, _, selector = given.name.partition("@")
        parent = headers.get(b"traceparent")
        run_id, digest = identity(headers, caller.tenant, body)
        with tracing.span(
            "start run",
            kind="server",
            traceparent=None if parent is None else parent.decode("latin-1"),
        ) as span:
            params = StartParams(
                tenant=caller.tenant,
                run_id=run_id,
                name=name,
                selector=selector or None,
                input=given.input,
                session_id=given.session_id,
                limits=run_limits(given.run_config),
                request_digest=digest,
                requested_by=caller.key_id,
                traceparent=span.traceparent,
            )
            started = await self._gateway.starter.start(params)
            answer = Invoked(run_id=started.run_id, trace_id=span.trace_id)
        return Answer(_INVOKED.dump_json(answer), 202, _location(started.run_id))

    async def internal_invoke(self, request: Request) -> Response:
        """Start a run of an agent in a session; the message is its input."""
        headers, caller, body = await self._starting.enter(request)
        given = read(INTERNAL_INVOKE, body)
        run_id, digest = identity(headers, caller.tenant, body)
        params = StartParams(
            tenant=caller.tenant,
            run_id=run_id,
            name=given.agent_id,
            kind=DefinitionKind.AGENT,
            input=given.input_message.content,
            session_id=given.session_id,
            request_digest=digest,
            requested_by=caller.key_id,
            path="agent_id",
        )
        if wants_events(headers.get(b"accept")):
            return await self._starting.reply(headers, params)
        started = await self._gateway.starter.start(params)
        answer = InternallyInvoked(
            run_id=started.run_id, session_id=given.session_id, agent_id=given.agent_id
        )
        return Answer(_INTERNALLY.dump_json(answer), 202, _location(started.run_id))


def _location(run_id: str) -> list[tuple[bytes, bytes]]:
    return [(b"location", b"/v1/runs/" + run_id.encode())]
