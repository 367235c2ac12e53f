"""Settings of the tool-runner."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from penstock.runner.settings import RunnerSettings


class ToolRunnerSettings(RunnerSettings):
    """For the tool-runner."""

    http_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts (`api.internal`, `*.corp.example`) and networks (`10.1.0.0/16`) that "
        "HTTP tools may reach although they are not public, separated by commas. Empty: a tool's "
        "URL may come from a model, and must not lead into your network.",
    )
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

    @field_validator("http_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(item.strip() for item in value.split(",") if item.strip())
        return value
