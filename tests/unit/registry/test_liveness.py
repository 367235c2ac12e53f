from datetime import UTC, datetime

import pytest

from penstock.contracts.rpc import RunnerState
from penstock.contracts.runners import RunnerRecord, StepInWork
from penstock_registry.core.liveness import HTTP_AGENT, shown_to, state_of, visible_to

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def runner(*, kind: str = "tool", queue: str = "builtin", draining: bool = False) -> RunnerRecord:
    return RunnerRecord(
        runner_id="r1",
        kind=kind,
        queue=queue,
        draining=draining,
        started_at=NOW,
        beat_at=NOW,
        ttl_seconds=60,
    )


@pytest.mark.parametrize(
    ("silent_seconds", "draining", "lost", "state"),
    [
        (0, False, False, RunnerState.LIVE),
        (20, False, False, RunnerState.LIVE),
        (30, False, False, RunnerState.LIVE),
        (31, False, False, RunnerState.SUSPECT),
        (0, True, False, RunnerState.DRAINING),
        (31, True, False, RunnerState.SUSPECT),
        (0, False, True, RunnerState.LOST),
        (100, True, True, RunnerState.LOST),
    ],
)
def test_state_follows_from_silence(
    silent_seconds: float, draining: bool, lost: bool, state: RunnerState
) -> None:
    assert state_of(runner(draining=draining), silent_seconds, lost=lost) is state


def test_http_agent_is_visible_to_its_tenant_alone() -> None:
    agent = runner(kind=HTTP_AGENT, queue="acme")

    assert visible_to("acme", agent)
    assert not visible_to("other", agent)
    assert visible_to("other", runner())


def test_steps_of_other_tenants_are_not_shown() -> None:
    steps = tuple(
        StepInWork(tenant=tenant, run_id="r", step_id="s", attempt=1, started_at=NOW)
        for tenant in ("acme", "other")
    )
    busy = runner().model_copy(update={"steps": steps})

    assert shown_to("acme", busy).steps == steps[:1]
    assert shown_to("third", busy).steps == ()
