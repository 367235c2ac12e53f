"""Liveness: the state of a runner by the time since its last heartbeat."""

from __future__ import annotations

from typing import Final

from penstock.contracts.rpc import RunnerState
from penstock.contracts.runners import RunnerRecord

SUSPECT_SHARE: Final = 0.5
"""Share of its TTL after which a silent runner is suspect. It beats every third of it, so one
heartbeat has been missed by then, and two more may follow before it is lost."""

HTTP_AGENT: Final = "http-agent"
"""Kind of the runners that are agents asked by HTTP; their queue is their tenant."""


def state_of(runner: RunnerRecord, silent_seconds: float, *, lost: bool) -> RunnerState:
    """Return the state of a runner that was last heard of ``silent_seconds`` ago."""
    if lost:
        return RunnerState.LOST
    if silent_seconds > runner.ttl_seconds * SUSPECT_SHARE:
        return RunnerState.SUSPECT
    return RunnerState.DRAINING if runner.draining else RunnerState.LIVE


def shown_to(tenant: str, runner: RunnerRecord) -> RunnerRecord:
    """Return a runner without the steps of other tenants."""
    steps = tuple(step for step in runner.steps if step.tenant == tenant)
    return runner if steps == runner.steps else runner.model_copy(update={"steps": steps})


def visible_to(tenant: str, runner: RunnerRecord) -> bool:
    """Return whether a tenant's work may reach a runner: HTTP agents belong to one tenant."""
    return runner.kind != HTTP_AGENT or runner.queue == tenant
