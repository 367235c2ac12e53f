"""``python -m penstock_gateway``: settings from the environment, then serve."""

from __future__ import annotations

import sys

import uvloop
from pydantic import ValidationError

from penstock.telemetry import logs, tracing
from penstock_gateway.settings import GatewaySettings


def main() -> None:
    """Run the gateway until SIGTERM or SIGINT."""
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        sys.exit(f"penstock-gateway: {error}")
    logs.configure(
        service="gateway",
        instance_id=settings.instance_id,
        level=settings.log_level,
        style=settings.log_format,
    )
    tracing.configure(
        service="penstock-gateway",
        instance_id=settings.instance_id,
        otlp_endpoint=settings.otlp_endpoint,
    )
    from penstock_gateway.main import run  # noqa: PLC0415 - after a refusal nothing was imported

    try:
        uvloop.run(run(settings))
    finally:
        tracing.shutdown()


if __name__ == "__main__":
    main()
