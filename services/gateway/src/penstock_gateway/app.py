"""The application: routes, errors and documentation, put together in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from penstock.contracts.errors import ErrorFamily, PenstockError
from penstock.contracts.rpc import DocumentKind
from penstock.contracts.views import RunView
from penstock.telemetry.logs import EventLog
from penstock_gateway.answers import error_answer, problem_answer
from penstock_gateway.api.archives import archives
from penstock_gateway.api.definitions import agent_deletion, application, definition_routes
from penstock_gateway.api.health import health_routes
from penstock_gateway.api.hooks import DeliveryAccepted, Hooks
from penstock_gateway.api.hot import HotRoute, header, json_body
from penstock_gateway.api.older import InternallyInvoked, Invoked, Older
from penstock_gateway.api.participants import participants
from penstock_gateway.api.reading import Reading
from penstock_gateway.api.starting import Starting
from penstock_gateway.core.problems import (
    CODE_OF_STATUS,
    MEDIA_TYPE,
    Problem,
    findings_of,
    problem,
)
from penstock_gateway.core.requests import (
    CancelRun,
    ExecuteDefinition,
    GenericWebhook,
    InternalInvoke,
    Invoke,
    StartRun,
)
from penstock_gateway.entrance import BodyTooLargeError, Entrance, too_large
from penstock_gateway.gateway import Gateway
from penstock_gateway.settings import GatewaySettings

journal: Final = EventLog("penstock.gateway")

_EVENT_STREAM: Final[dict[str, Any]] = {
    "text/event-stream": {"schema": {"type": "string"}},
}
_START_HEADERS: Final = [
    header("Idempotency-Key", "The same key gives the same run; with another body 422."),
    header("Prefer", "`wait=N` answers with the finished run if it ends within N seconds."),
]

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def create_app(settings: GatewaySettings) -> FastAPI:
    """Compose the gateway; it connects to the bus when its lifespan begins."""
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await gateway.open()
        try:
            yield
        finally:
            gateway.drain()
            await gateway.close()

    app = FastAPI(
        title="Penstock",
        version=version("penstock-gateway"),
        summary="Durable agent orchestration on NATS JetStream",
        lifespan=lifespan,
        redoc_url=None,
        # Our own spans go on with the trace in the log; FastAPI's would be a second set of them.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        responses={
            "default": {
                "description": "A problem document (RFC 9457)",
                "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
            }
        },
    )
    app.state.gateway = gateway
    app.router.redirect_slashes = False
    _add_run_routes(app, gateway)
    # Before the definitions: `register` is no agent's name here.
    for router in (participants, agent_deletion, archives, application, health_routes):
        app.include_router(router)
    for kind in DocumentKind:
        app.include_router(definition_routes(kind))
    _add_errors(app)
    shortcuts = {
        (method, route.path): route.endpoint
        for route in app.routes
        if isinstance(route, HotRoute) and not route.param_convertors
        for method in route.methods or ()
    }
    app.add_middleware(
        Entrance, max_body_bytes=settings.max_body_bytes, shortcuts=shortcuts, failed=_failed
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "Idempotent-Replayed", "Preference-Applied"],
        )
    return app


def _add_run_routes(app: FastAPI, gateway: Gateway) -> None:
    starting, reading = Starting(gateway), Reading(gateway)

    def add(method: str, path: str, endpoint: Endpoint, **documentation: Any) -> None:
        app.router.routes.append(
            HotRoute(path, endpoint, methods=[method], response_model=None, **documentation)
        )

    def add_start(path: str, endpoint: Endpoint, body: dict[str, Any], tag: str) -> None:
        add(
            "POST",
            path,
            endpoint,
            status_code=202,
            tags=[tag],
            responses={
                200: {
                    "model": RunView,
                    "description": "The run has ended, or its events as a stream",
                    "content": _EVENT_STREAM,
                },
                202: {"model": RunView, "description": "The run is in the log"},
            },
            openapi_extra={"requestBody": body, "parameters": _START_HEADERS},
        )

    add_start("/v1/runs", starting.start_run, json_body(StartRun), "runs")
    execution = json_body(ExecuteDefinition)
    add_start("/v1/agents/{name}/execute", starting.execute_agent, execution, "agents")
    add_start("/v1/workflows/{name}/execute", starting.execute_workflow, execution, "workflows")
    older, hooks = Older(gateway, starting), Hooks(gateway)
    add(
        "POST",
        "/invoke",
        older.invoke,
        status_code=202,
        tags=["older paths"],
        responses={202: {"model": Invoked}},
        openapi_extra={"requestBody": json_body(Invoke)},
    )
    add(
        "POST",
        "/internal/invoke",
        older.internal_invoke,
        status_code=202,
        tags=["older paths"],
        responses={202: {"model": InternallyInvoked}},
        openapi_extra={"requestBody": json_body(InternalInvoke)},
    )
    accepted = {202: {"model": DeliveryAccepted}}
    add(
        "POST",
        "/hooks/{tenant}/{name}",
        hooks.deliver,
        status_code=202,
        tags=["webhooks"],
        responses=accepted,
    )
    add(
        "POST",
        "/webhooks/generic",
        hooks.deliver_generic,
        status_code=202,
        tags=["webhooks"],
        responses=accepted,
        openapi_extra={"requestBody": json_body(GenericWebhook)},
    )
    run = {200: {"model": RunView, "description": "The run"}}
    add("GET", "/v1/runs/{run_id}", reading.get_run, tags=["runs"], responses=run)
    add("GET", "/v1/runs/{run_id}/events", reading.get_events, tags=["runs"])
    add("GET", "/runs/{run_id}/events", reading.get_events, tags=["older paths"])
    add(
        "POST",
        "/v1/runs/{run_id}/cancel",
        reading.cancel_run,
        status_code=202,
        tags=["runs"],
        responses={**run, 202: {"model": RunView, "description": "It was asked to stop"}},
        openapi_extra={"requestBody": json_body(CancelRun, required=False)},
    )


def _failed(error: PenstockError) -> Response:
    """Answer with one of our own errors; what should not happen is logged as well."""
    if error.family is ErrorFamily.INVARIANT:
        journal.error("request.failed", error, code=error.code)
    return error_answer(error)


def _add_errors(app: FastAPI) -> None:
    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, PenstockError)  # noqa: S101 - registered for nothing else
        return _failed(error)

    async def http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
        if isinstance(error, BodyTooLargeError):
            return error_answer(too_large(error.limit))
        status = error.status_code
        code = CODE_OF_STATUS.get(status, "http_error")
        answer = problem_answer(problem(code, str(error.detail), status=status))
        for name, value in (error.headers or {}).items():
            answer.raw_headers.append((name.lower().encode(), value.encode()))
        return answer

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
        found = findings_of(error.errors())
        malformed = any(one["type"] == "json_invalid" for one in error.errors())
        code = "malformed_json" if malformed else "invalid_request"
        return problem_answer(problem(code, "the request is not valid", errors=found))

    async def unexpected(_request: Request, error: Exception) -> Response:
        journal.error("request.crashed", error)
        return problem_answer(problem("internal_error", "", family=ErrorFamily.INVARIANT))

    app.add_exception_handler(PenstockError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
