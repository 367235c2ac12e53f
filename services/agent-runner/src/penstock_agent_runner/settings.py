"""Settings of the agent-runner."""

from __future__ import annotations

from pydantic import Field

from penstock.runner.settings import EgressSettings


class AgentRunnerSettings(EgressSettings):
    """For the agent-runner. Keys of providers are read from the variables that LiteLLM names."""

    agent_queue: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Queue that is served. `default`: where agents go that name no other.",
    )
    agent_concurrency: int = Field(
        default=128,
        ge=1,
        description="Turns at the same time. 128: a turn mostly waits for its model.",
    )
