"""Settings of a process that runs steps."""

from __future__ import annotations

from pydantic import Field

from penstock.settings import CoreSettings


class RunnerSettings(CoreSettings):
    """For a process built on the runner SDK."""

    drain_seconds: float = Field(
        default=25.0,
        ge=0,
        description="Time for steps in work to end after SIGTERM; what is left is handed back. "
        "25: below the 30 seconds after which Kubernetes kills.",
    )
