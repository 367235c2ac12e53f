"""Settings of a process that runs steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from penstock.settings import CoreSettings


class RunnerSettings(CoreSettings):
    """For a process built on the runner SDK."""

    drain_seconds: float = Field(
        default=25.0,
        ge=0,
        description="Time for steps in work to end after SIGTERM; what is left is handed back. "
        "25: below the 30 seconds after which Kubernetes kills.",
    )


class EgressSettings(RunnerSettings):
    """For a runner that speaks HTTP to where definitions tell it to."""

    http_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts (`api.internal`, `*.corp.example`) and networks (`10.1.0.0/16`) that "
        "tools and agents over HTTP may reach although they are not public, separated by commas. "
        "Empty: a URL may come from a model, and must not lead into your network.",
    )

    @field_validator("http_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(item.strip() for item in value.split(",") if item.strip())
        return value
