"""Entry point: ``python -m penstock_orchestrator``."""

from __future__ import annotations

from penstock_orchestrator.main import run
from penstock_orchestrator.settings import OrchestratorSettings


def main() -> None:
    """Read the settings and run."""
    run(OrchestratorSettings())


if __name__ == "__main__":
    main()
