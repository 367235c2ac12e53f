"""The application: routes, errors and documentation, put together in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from penstock.contracts.rpc import DocumentKind
from penstock_gateway.archive.routes import archives
from penstock_gateway.context import checked_request
from penstock_gateway.dead_letters.routes import dead_letters
from penstock_gateway.definitions.apply import application
from penstock_gateway.definitions.networks import network_routes
from penstock_gateway.definitions.participants import participants
from penstock_gateway.definitions.routes import agent_deletion, definition_routes
from penstock_gateway.documentation import documentation
from penstock_gateway.gateway import Gateway
from penstock_gateway.health import health_routes
from penstock_gateway.middleware.entry import EntryMiddleware
from penstock_gateway.middleware.errors import add_error_handlers, failed
from penstock_gateway.openapi import Api
from penstock_gateway.raw import RawRoute
from penstock_gateway.routes import add_raw_routes
from penstock_gateway.runs.approvals import approvals
from penstock_gateway.runs.bundle import bundle_routes
from penstock_gateway.runs.control_routes import controlling
from penstock_gateway.runs.fork_routes import forks
from penstock_gateway.runs.signal_routes import signalling
from penstock_gateway.runs.tool_calls import tool_calls
from penstock_gateway.schedules.routes import schedules
from penstock_gateway.settings import GatewaySettings


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

    app = Api(
        title="Penstock",
        version=version("penstock-gateway"),
        summary="Durable agent orchestration on NATS JetStream",
        lifespan=lifespan,
        dependencies=[Depends(checked_request)],
        redirect_slashes=False,
        redoc_url=None,
        docs_url=None,
        strict_content_type=False,
        # Spans of the gateway continue the trace of the log; FastAPI's would duplicate them.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # Else FastAPI describes its own form of errors; the document has problems instead.
        responses={"default": {"description": "A problem document"}},
    )
    app.state.gateway = gateway
    _add_routes(app, gateway)
    add_error_handlers(app)
    shortcuts = {
        (method, route.path): route.endpoint
        for route in app.routes
        if isinstance(route, RawRoute) and not route.param_convertors
        for method in route.methods or ()
    }
    app.add_middleware(
        EntryMiddleware,
        max_body_bytes=settings.max_body_bytes,
        shortcuts=shortcuts,
        failed=failed,
        others_add_headers=bool(settings.cors_origins),
        larger={"/v1/runs/import": settings.max_bundle_bytes},
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                "ETag",
                "Idempotent-Replayed",
                "Location",
                "Preference-Applied",
                "Retry-After",
            ],
        )
    return app


def _add_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add all routes; the first that fits answers, so the more exact paths come first."""
    add_raw_routes(app, gateway)
    of_runs = (controlling, signalling, approvals, tool_calls, forks, dead_letters, bundle_routes)
    for router in (
        *of_runs,
        participants,
        agent_deletion,
        archives,
        schedules,
        application,
        health_routes,
        documentation,
    ):
        app.include_router(router)
    older = (
        definition_routes(DocumentKind.WORKFLOW, prefix="/v1/workflows/workflows"),
        definition_routes(DocumentKind.AGENT, prefix="/agents"),
        definition_routes(DocumentKind.AGENT, prefix="/config/agents"),
        definition_routes(DocumentKind.TOOL, prefix="/config/tools"),
        definition_routes(DocumentKind.NETWORK, prefix="/config/networks"),
        network_routes,
    )
    for router in (*older, *(definition_routes(kind) for kind in DocumentKind)):
        app.include_router(router)
