"""Composition of the agent-runner."""

from __future__ import annotations

import os

from penstock.runner import Runner
from penstock.runner.process import run as run_runners
from penstock_agent_runner.agents import Agents
from penstock_agent_runner.providers import ProviderModel
from penstock_agent_runner.remote import RemoteAgent
from penstock_agent_runner.scripted import ScriptedModel
from penstock_agent_runner.settings import AgentRunnerSettings


def run(settings: AgentRunnerSettings) -> None:
    """Serve the queue until SIGTERM or SIGINT.

    Raises:
        SystemExit: Always, at the end.
    """
    run_runners([build_runner(settings)], settings=settings, service="agent-runner")


def build_runner(settings: AgentRunnerSettings) -> Runner:
    """Return the runner of the configured queue."""
    agents = Agents(
        scripted=ScriptedModel(),
        # A copy: LiteLLM must not find the keys of providers in the environment.
        provider=ProviderModel(environment=dict(os.environ), allow=settings.http_allow),
        remote=RemoteAgent(allow=settings.http_allow),
    )
    runner = Runner(
        kind="agent", queue=settings.agent_queue, concurrency=settings.agent_concurrency
    )
    runner.step()(agents.turn)
    return runner
