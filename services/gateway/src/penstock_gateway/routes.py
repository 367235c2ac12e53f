"""The hot routes: which endpoint answers where, and how each is documented."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import JsonValue

from penstock.runs.events import EventPage
from penstock.runs.views import RunView
from penstock_gateway.core.preferences import KEY_PATTERN
from penstock_gateway.core.requests import (
    CancelRun,
    ExecuteDefinition,
    GenericWebhook,
    InternalInvoke,
    Invoke,
    StartRun,
)
from penstock_gateway.gateway import Gateway
from penstock_gateway.openapi import (
    IF_NONE_MATCH,
    NOT_MODIFIED,
    OLDER,
    OpenApi,
    json_body,
    parameter,
)
from penstock_gateway.raw import RawRoute
from penstock_gateway.runs.older import InternallyInvoked, Invoked, Older
from penstock_gateway.runs.routes import ReadRoutes, StartRoutes
from penstock_gateway.webhooks.deliveries import DeliveryAccepted, Hooks

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]

_EVENT_STREAM: Final[OpenApi] = {"text/event-stream": {"schema": {"type": "string"}}}
_START: Final[JsonValue] = {"name": "greeter", "input": {"text": "Hello"}, "session_id": "ada"}
_START_HEADERS: Final = [
    parameter(
        "header",
        "Idempotency-Key",
        "The same key gives the same run; with another body 422.",
        pattern=KEY_PATTERN,
    ),
    parameter(
        "header",
        "Prefer",
        "`wait=N` answers with the finished run if it ends within N seconds; with "
        "`return=representation` as well it has its steps.",
    ),
]
_EVENT_PARAMETERS: Final = [
    parameter("header", "Last-Event-ID", "Id of the last event seen; later events are sent."),
    parameter("query", "after", "The same as a parameter, or the `next_cursor` of a page."),
    parameter("query", "types", "Types of events that are wanted, separated by commas."),
    parameter("query", "limit", "Events of a page of JSON.", "integer", minimum=1, maximum=1000),
]
_RUN_PARAMETERS: Final = [
    parameter(
        "query", "at_seq", "The run as it was at this sequence of the log.", "integer", minimum=1
    ),
    parameter(
        "query",
        "steps_limit",
        "Steps of the reply; 250 if absent.",
        "integer",
        minimum=1,
        maximum=1000,
    ),
    parameter("query", "steps_cursor", "The `next_steps_cursor` of the reply before."),
    parameter("query", "node_records", "All that the engine decided as well.", "boolean"),
    IF_NONE_MATCH,
    parameter(
        "header", "Prefer", "`wait=N`: answer when it has ended, or waits for its caller's tools."
    ),
]
_DELIVERY: Final[OpenApi] = {
    "description": "Whatever the sender sends.",
    "content": {
        "application/json": {"schema": {}},
        "application/x-www-form-urlencoded": {"schema": {"type": "object"}},
    },
}
_RUN: Final[OpenApi] = {"model": RunView, "description": "The run"}


def add_raw_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes to ``app``, before all others."""

    def add(
        method: str,
        path: str,
        endpoint: Endpoint,
        *,
        tag: str,
        responses: dict[int | str, OpenApi] | None = None,
        body: OpenApi | None = None,
        parameters: list[OpenApi] | None = None,
        media: type[Response] = JSONResponse,
    ) -> None:
        route = RawRoute(
            path,
            endpoint,
            methods=[method],
            response_model=None,
            tags=[tag],
            status_code=next((int(status) for status in responses or ()), 200),
            responses=responses,
            response_class=media,
        )
        of_path = [parameter("path", name, f"The {name}") for name in route.param_convertors]
        route.openapi_extra = {"parameters": [*of_path, *(parameters or ())]}
        if body is not None:
            route.openapi_extra["requestBody"] = body
        app.router.routes.append(route)

    starting, reading = StartRoutes(gateway), ReadRoutes(gateway)
    older, hooks = Older(gateway, starting), Hooks(gateway)

    begun: dict[int | str, OpenApi] = {
        202: {"model": RunView, "description": "The run is in the log"},
        200: {
            "model": RunView,
            "description": "The run has ended, or its events as a stream",
            "content": _EVENT_STREAM,
        },
    }
    execution = json_body(ExecuteDefinition, example={"input": {"text": "Hello"}}, required=False)
    start = json_body(StartRun, example=_START)
    for path, endpoint, body, tag in (
        ("/v1/runs", starting.start_run, start, "runs"),
        ("/v1/agents/{name}/execute", starting.execute_agent, execution, "agents"),
        ("/v1/workflows/{name}/execute", starting.execute_workflow, execution, "workflows"),
        ("/v1/networks/{name}/execute", starting.execute_network, execution, "networks"),
        ("/v1/workflows/workflows/execute", starting.start_run, start, OLDER),
    ):
        add(
            "POST",
            path,
            endpoint,
            tag=tag,
            responses=begun,
            body=body,
            parameters=_START_HEADERS,
        )

    events: dict[int | str, OpenApi] = {
        200: {"model": EventPage, "description": "A page, or a stream", "content": _EVENT_STREAM},
        204: {"description": "The run has ended, and `Last-Event-ID` is its last event"},
    }
    cancelled: dict[int | str, OpenApi] = {
        202: {"model": RunView, "description": "It was asked to stop"},
        200: _RUN,
    }
    for run, tag in (("/v1/runs/{run_id}", "runs"), ("/v1/workflows/executions/{run_id}", OLDER)):
        add(
            "GET",
            run,
            reading.get_run,
            tag=tag,
            responses={200: _RUN, 304: NOT_MODIFIED},
            parameters=_RUN_PARAMETERS,
        )
        add(
            "POST",
            f"{run}/cancel",
            reading.cancel_run,
            tag=tag,
            responses=cancelled,
            body=json_body(CancelRun, example={"reason": "no longer needed"}, required=False),
        )
    for path, tag in (("/v1/runs/{run_id}/events", "runs"), ("/runs/{run_id}/events", OLDER)):
        add(
            "GET",
            path,
            reading.get_events,
            tag=tag,
            responses=events,
            parameters=_EVENT_PARAMETERS,
        )

    add(
        "POST",
        "/invoke",
        older.invoke,
        tag=OLDER,
        responses={202: {"model": Invoked}},
        body=json_body(Invoke),
    )
    add(
        "POST",
        "/internal/invoke",
        older.internal_invoke,
        tag=OLDER,
        responses={202: {"model": InternallyInvoked}},
        body=json_body(InternalInvoke),
    )
    accepted: dict[int | str, OpenApi] = {202: {"model": DeliveryAccepted}}
    challenge: dict[int | str, OpenApi] = {
        200: {
            "description": "The challenge",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }
    add(
        "POST",
        "/hooks/{tenant}/{name}",
        hooks.deliver,
        tag="webhooks",
        responses=accepted,
        body=_DELIVERY,
    )
    add(
        "GET",
        "/hooks/{tenant}/{name}",
        hooks.verify,
        tag="webhooks",
        responses=challenge,
        media=PlainTextResponse,
    )
    add(
        "POST",
        "/webhooks/generic",
        hooks.deliver_generic,
        tag="webhooks",
        responses=accepted,
        body=json_body(GenericWebhook),
    )
