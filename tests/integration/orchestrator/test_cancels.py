"""A cancel that is in the log when a decision is made counts, however far behind the engine is."""

from __future__ import annotations

import asyncio
import signal

import pytest

from penstock.contracts.facts import RunStatus
from penstock_orchestrator.engine import cancels as cancels_module
from tests.integration.orchestrator.conftest import (
    CreateWorld,
    World,
    chain,
    engine_process,
    fan,
)


async def assert_nothing_began(world: World, run_ids: list[str]) -> None:
    """Assert that runs end as cancelled without a step."""
    for run_id in run_ids:
        assert (await world.ended(run_id)).status is RunStatus.CANCELLED
        events = [entry.subject.event for entry in await world.log(run_id)]
        assert "step" not in events, events


async def cancelled_runs(world: World, count: int) -> list[str]:
    run_ids = [await world.invoke(chain("a", "b")) for _ in range(count)]
    await asyncio.gather(*(world.cancel(run_id) for run_id in run_ids))
    return run_ids


@pytest.mark.parametrize("count", [9, 700])
async def test_engine_that_was_stopped_begins_nothing_of_cancelled_runs(
    create_world: CreateWorld, count: int
) -> None:
    world = await create_world()
    async with engine_process(world, "engine-1") as process:
        begun = await world.invoke(chain("a", "b"))
        await world.scheduled(begun, "a")
        process.send_signal(signal.SIGSTOP)
        await world.report(begun, "a")
        await world.cancel(begun)
        run_ids = await cancelled_runs(world, count)

        process.send_signal(signal.SIGCONT)

        await assert_nothing_began(world, run_ids)
        assert (await world.ended(begun)).status is RunStatus.CANCELLED
        assert "b" not in (await world.state(begun)).steps


async def test_engine_that_starts_begins_nothing_of_cancelled_runs(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    run_ids = await cancelled_runs(world, 9)

    await world.start_engine()

    await assert_nothing_began(world, run_ids)


async def test_cancel_reaches_a_run_before_the_inputs_that_are_ahead_of_it(world: World) -> None:
    """The consumer is full of inputs that take long; the cancel behind them is handled first."""
    run_id = await world.invoke(chain("a"))
    await world.scheduled(run_id, "a")
    released = asyncio.Event()

    async def held(*_: object, **__: object) -> None:
        await released.wait()

    for consumers in world.engines[0]._consumers.values():
        consumers[0]._handler = held

    await world.cancel(run_id)

    assert (await world.ended(run_id, within=10)).status is RunStatus.CANCELLED
    released.set()


async def test_run_that_was_at_hand_is_read_again_after_the_connection_was_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel without a live copy and before its delivery is found by the next input."""
    run_id = await world.invoke(fan(2))
    await world.until(run_id, lambda state: state.open_steps == 2)
    monkeypatch.setattr(cancels_module.Cancels, "_on_copy", lambda *_: None)
    engine = world.engines[0].engine
    real = engine.on_input

    async def without_cancels(delivery: object) -> None:
        if not getattr(delivery, "subject", "").endswith(".in.cancel"):
            await real(delivery)  # type: ignore[arg-type]

    for consumers in world.engines[0]._consumers.values():
        consumers[0]._handler = without_cancels
    await world.cancel(run_id)

    for callback in list(world.buses[0].on_reconnect):
        callback()
    await world.report(run_id, "n0")

    assert (await world.ended(run_id)).status is RunStatus.CANCELLED
