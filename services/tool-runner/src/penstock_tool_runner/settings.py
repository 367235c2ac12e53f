"""Settings of the tool-runner."""

from __future__ import annotations

from pydantic import Field

from penstock.runner.settings import EgressSettings


class ToolRunnerSettings(EgressSettings):
    """For the tool-runner."""

    builtin_concurrency: int = Field(
        default=256,
        ge=1,
        description="Built-in tools at the same time. 256: they only compute, and more steps in "
        "work share the cost of talking to the bus.",
    )
    http_concurrency: int = Field(
        default=64,
        ge=1,
        description="HTTP requests at the same time. 64: bounds sockets and memory (64 responses "
        "of 1 MiB each).",
    )
