"""Composition of the tool-runner: one runner per queue, in one process."""

from __future__ import annotations

import os

from penstock.runner import Runner
from penstock.runner.process import run as run_runners
from penstock_tool_runner.builtin import builtin_runner
from penstock_tool_runner.http import HttpTools
from penstock_tool_runner.settings import ToolRunnerSettings


def run(settings: ToolRunnerSettings) -> None:
    """Serve both queues until SIGTERM or SIGINT.

    Raises:
        SystemExit: Always, at the end.
    """
    run_runners(build_runners(settings), settings=settings, service="tool-runner")


def build_runners(settings: ToolRunnerSettings) -> list[Runner]:
    """Return the runners of the queues ``builtin`` and ``http``."""
    http = Runner(kind="tool", queue="http", concurrency=settings.http_concurrency)
    tools = HttpTools(allow=settings.http_allow, environment=os.environ)
    http.step()(tools.call)
    return [builtin_runner(settings.builtin_concurrency), http]
