"""``python -m penstock_tool_runner``."""

from __future__ import annotations

from penstock_tool_runner.main import run
from penstock_tool_runner.settings import ToolRunnerSettings


def main() -> None:
    """Read the settings and run until a signal stops the process."""
    run(ToolRunnerSettings())


if __name__ == "__main__":
    main()
