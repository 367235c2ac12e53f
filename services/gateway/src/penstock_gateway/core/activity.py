"""What runners do about the scheduled steps of a run, from the runners' heartbeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from penstock.contracts.facts import StepKind
from penstock.contracts.runners import RunnerRecord, StepInWork
from penstock.runs.views import RunView, StepView


class _Work(NamedTuple):
    runner: RunnerRecord
    step: StepInWork


def served_pools(runners: Iterable[RunnerRecord]) -> frozenset[str]:
    """Return the pools ``{kind}.{queue}`` of which a runner takes steps."""
    return frozenset(runner.pool for runner in runners if not runner.draining)


def unserved_steps(view: RunView) -> Counter[str]:
    """Return the number of steps of a view by pool, for pools that no runner serves."""
    return Counter(f"{one.kind}.{one.queue}" for one in view.steps if one.activity == "unserved")


def with_activity(view: RunView, runners: Iterable[RunnerRecord]) -> RunView:
    """Return a view whose scheduled steps show what runners do about them.

    Args:
        view: A run as it is now.
        runners: All live runners.
    """
    if view.status.final or not any(map(_needs_runner, view.steps)):
        return view
    runners = tuple(runners)
    served = served_pools(runners)
    work = {
        (step.step_id, step.attempt): _Work(runner, step)
        for runner in runners
        for step in runner.steps
        if step.run_id == view.run_id and step.tenant == view.tenant
    }
    steps = tuple(
        _step(step, work.get((step.step_id, step.attempt)), served) if _needs_runner(step) else step
        for step in view.steps
    )
    return view.model_copy(update={"steps": steps})


def _needs_runner(step: StepView) -> bool:
    return step.status == "scheduled" and step.kind is not StepKind.RUN


def _step(step: StepView, work: _Work | None, served: frozenset[str]) -> StepView:
    if work is None:
        queued = f"{step.kind}.{step.queue}" in served
        return step.model_copy(update={"activity": "queued" if queued else "unserved"})
    changes = {
        "activity": "working",
        "runner_id": work.runner.runner_id,
        "started_at": work.step.started_at,
        "progress": work.step.progress or None,
    }
    return step.model_copy(update=changes)
