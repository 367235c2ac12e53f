"""Health of the gateway, for load balancers and people."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Response

from penstock.contracts.facts import Record
from penstock_gateway.context import GatewayParts, Viewer

health_routes: Final = APIRouter(tags=["health"])


class Health(Record):
    """Whether the gateway can serve requests."""

    status: Literal["ok", "unavailable"]
    bus: Literal["connected", "disconnected"]
    metrics: str = "/metrics"


@health_routes.get(
    "/health", responses={503: {"model": Health, "description": "The bus is not reached"}}
)
async def health(gateway: GatewayParts, response: Response) -> Health:
    """Return whether the gateway reaches the bus. Needs no key."""
    if gateway.bus.nc.is_connected:
        return Health(status="ok", bus="connected")
    response.status_code = 503
    return Health(status="unavailable", bus="disconnected")


@health_routes.get("/metrics", include_in_schema=False)
async def metrics(_caller: Viewer) -> Response:
    """Return this process's metrics for Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest  # noqa: PLC0415

    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
