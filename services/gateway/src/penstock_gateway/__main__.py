"""``python -m penstock_gateway``: settings from the environment, then serve."""

from __future__ import annotations

import sys

import uvloop
from pydantic import ValidationError

from penstock.telemetry.process import observed
from penstock_gateway.settings import GatewaySettings


def main() -> None:
    """Run the gateway until SIGTERM or SIGINT."""
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        sys.exit(f"penstock-gateway: {error}")
    with observed(settings, "gateway"):
        from penstock_gateway.main import run  # noqa: PLC0415 - not imported after a refusal

        uvloop.run(run(settings))


if __name__ == "__main__":
    main()
