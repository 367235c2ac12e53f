"""When a run and the steps that the engine does itself end at the latest."""

from __future__ import annotations

from datetime import datetime, timedelta

from penstock.contracts.plan import CalledNode, Plan
from penstock.runs.state import RunState


def run_deadline(plan: Plan, state: RunState) -> datetime:
    """Return when an invoked run ends at the latest."""
    invoked = state.request
    limit = invoked.limits.timeout_seconds or plan.timeout_seconds
    return invoked.occurred_at + timedelta(seconds=min(limit, plan.timeout_seconds))


def step_deadline(node: CalledNode, plan: Plan, state: RunState, now: datetime) -> datetime:
    """Return when a step that the engine does itself ends at the latest."""
    deadline = run_deadline(plan, state)
    if node.timeout_seconds is None:
        return deadline
    return min(deadline, now + timedelta(seconds=node.timeout_seconds))
