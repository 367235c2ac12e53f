"""``python -m penstock_agent_runner``."""

from __future__ import annotations

from penstock_agent_runner.main import run
from penstock_agent_runner.settings import AgentRunnerSettings


def main() -> None:
    """Read the settings and run until a signal stops the process."""
    run(AgentRunnerSettings())


if __name__ == "__main__":
    main()
