"""What a run's view shows of its runners."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.contracts.facts import RunStatus, StepKind
from penstock.contracts.runners import RunnerRecord, StepInWork
from penstock.runs.views import RunView, StepView
from penstock_gateway.core.activity import unserved_steps, with_activity

AT = datetime(2026, 1, 1, tzinfo=UTC)
RUN = "0" * 26


def step(step_id: str, *, kind: StepKind = StepKind.TOOL, **changes: Any) -> StepView:
    fields = {"node_id": step_id, "queue": "text", "name": "n", "status": "scheduled", "attempt": 1}
    return StepView(step_id=step_id, kind=kind, **{**fields, **changes})


def view(*steps: StepView, **changes: Any) -> RunView:
    fields: dict[str, Any] = {
        "run_id": RUN, "tenant": "t", "name": "flow", "kind": "workflow", "version": 1,
        "plan_digest": "d", "status": "running", "trigger": "http", "created_at": AT,
        "updated_at": AT, "last_seq": 1, "steps": steps,
    }  # fmt: skip
    return RunView(**{**fields, **changes})


def runner(queue: str = "text", *steps: StepInWork, **changes: Any) -> RunnerRecord:
    fields: dict[str, Any] = {
        "runner_id": "r1", "kind": "tool", "queue": queue, "steps": steps, "started_at": AT,
        "beat_at": AT, "ttl_seconds": 60,
    }  # fmt: skip
    return RunnerRecord(**{**fields, **changes})


def work(step_id: str = "a", **changes: Any) -> StepInWork:
    fields: dict[str, Any] = {"tenant": "t", "run_id": RUN, "attempt": 1, "started_at": AT}
    return StepInWork(step_id=step_id, **{**fields, **changes})


def activities(run: RunView, *runners: RunnerRecord) -> list[str | None]:
    return [one.activity for one in with_activity(run, runners).steps]


@pytest.mark.parametrize(
    ("runners", "shown"),
    [
        ([], "unserved"),
        ([runner("other")], "unserved"),
        ([runner(kind="agent")], "unserved"),
        ([runner(draining=True)], "unserved"),
        ([runner()], "queued"),
        ([runner("text", work("a"))], "working"),
        ([runner("text", work("a"), draining=True)], "working"),
        ([runner("text", work("a", attempt=2))], "queued"),
        ([runner("text", work("a", run_id="1" * 26))], "queued"),
        ([runner("text", work("a", tenant="other"))], "queued"),
    ],
)
def test_scheduled_step_shows_what_runners_do_about_it(
    runners: list[RunnerRecord], shown: str
) -> None:
    assert activities(view(step("a")), *runners) == [shown]


def test_step_in_work_shows_runner_start_and_progress() -> None:
    found = with_activity(view(step("a")), [runner("text", work("a", progress="page 7"))]).steps[0]

    assert (found.runner_id, found.started_at, found.progress) == ("r1", AT, "page 7")


def test_other_steps_show_nothing() -> None:
    others = [step("a", kind=StepKind.RUN), step("b", status="succeeded"), step("c")]

    assert activities(view(*others)) == [None, None, "unserved"]
    assert activities(view(*others, status=RunStatus.FAILED)) == [None] * 3


def test_unserved_steps_are_counted_by_pool() -> None:
    steps = step("a"), step("b"), step("c", queue="other"), step("d", kind=StepKind.AGENT)

    found = unserved_steps(with_activity(view(*steps), [runner("other")]))

    assert found == {"tool.text": 2, "agent.text": 1}
