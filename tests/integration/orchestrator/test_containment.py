"""An error that one run causes ends that run, quickly, and costs the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from penstock.contracts import subjects
from penstock.contracts.facts import RunEnded, RunStatus
from penstock.contracts.plan import Plan
from penstock.runs.state import RunState
from penstock_orchestrator.engine import effects as effects_module
from penstock_orchestrator.engine import engine as engine_module
from penstock_orchestrator.engine import runs as runs_module
from tests.integration.orchestrator.conftest import World, chain
from tests.integration.orchestrator.test_effects import calling, plan_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.sources


class PoisonError(Exception):
    """What no module of Penstock raises or expects."""


def poison(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, poisoned: Callable[..., bool]
) -> None:
    """Make a function of the engine raise for the calls that a condition names."""
    real = getattr(module, name)

    def raising(*arguments: Any, **options: Any) -> Any:
        if poisoned(*arguments):
            raise PoisonError(f"{name}: traceback-canary")
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, raising)


async def assert_contained(world: World, ended: RunEnded, caplog: pytest.LogCaptureFixture) -> None:
    """Assert how a poisoned run ends, and that another run and the dead letters do not notice."""
    assert ended.status is RunStatus.FAILED
    assert ended.error is not None
    assert ended.error.code == "internal_error"
    assert "traceback-canary" not in ended.error.message
    error_id = ended.error.message.rsplit(" ", 1)[1]
    logged = [record for record in caplog.records if record.getMessage() == "engine.run_failed"]
    assert [vars(record)["penstock_fields"]["error_id"] for record in logged] == [error_id]
    assert logged[0].exc_info is not None

    other = await world.invoke(chain("a"))
    await world.scheduled(other, "a")
    await world.report(other, "a", output="fine")
    assert (await world.ended(other)).output == "fine"
    dead = await world.reader.get_many(subjects.DEAD, {"multi_last": ["dead.>"]})
    assert dead.messages == []


def result_seen(plan: Plan, state: RunState, *_: Any) -> bool:
    """Whether the first run has its result; the plan of the other run has one step."""
    return "b" in plan.positions and "a" in state.steps and state.steps["a"].status == "succeeded"


@pytest.mark.parametrize(
    ("module", "name", "poisoned"),
    [
        (engine_module, "decide", result_seen),
        (
            engine_module,
            "evolve",
            lambda state, entry: (
                entry.subject.event == "result"
                and state.request.plan_digest == chain("a", "b").digest()
            ),
        ),
        (runs_module, "wake_at", lambda plan, _state: "b" in plan.positions),
    ],
    ids=["decide", "evolve", "wake_at"],
)
async def test_error_of_one_run_ends_it_with_an_id_that_the_log_has(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: Any,
    name: str,
    poisoned: Callable[..., bool],
) -> None:
    poison(monkeypatch, module, name, poisoned)
    run_id = await world.invoke(chain("a", "b"))
    await world.scheduled(run_id, "a")

    await world.report(run_id, "a")

    ended = await world.ended(run_id, within=10)
    await assert_contained(world, ended, caplog)


async def test_decision_that_cannot_be_read_ends_the_run(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = await world.invoke(chain("a", "b"))
    await world.scheduled(run_id, "a")
    await world.writer.append(subjects.out(world.prefix(run_id), 2, "state"), b"{}")

    await world.report(run_id, "a")

    subject = subjects.out(world.prefix(run_id), 3, "end")
    async with asyncio.timeout(10):
        while (stored := await world.reader.read_fact(subject)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert isinstance(stored.fact, RunEnded)
    await assert_contained(world, stored.fact, caplog)


async def test_poisoned_child_fails_its_step_in_the_parent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = chain("a")
    poison(monkeypatch, engine_module, "decide", lambda plan, *_: "a" in plan.positions)
    await world.put_plan(child)

    parent_id = await world.invoke(plan_of(calling(child)))

    ended = await world.ended(parent_id, within=10)
    assert ended.error is not None
    assert ended.error.code == "internal_error"


async def test_end_whose_effects_raise_is_not_repeated_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison(monkeypatch, effects_module, "unneeded_children", lambda *_: True)
    run_id = await world.invoke(chain("a"))

    await world.cancel(run_id)

    assert (await world.ended(run_id, within=10)).status is RunStatus.CANCELLED
    await eventually(lambda: "engine.finish_failed" in caplog.messages, within=30)
    assert not world.engines[0].engine.runs.known(run_id)
    dead = await world.reader.get_many(subjects.DEAD, {"multi_last": ["dead.>"]})
    assert dead.messages == []
