"""What runners are told while a step is at work: stops of single steps; and what they tell."""

from __future__ import annotations

import asyncio
import json
import time

from penstock.contracts import subjects
from penstock.runner import Runner, StepContext
from tests.integration.runner.conftest import Bench
from tests.support.waiting import eventually


async def stop(bench: Bench, prefix: str, *steps: str) -> None:
    tenant, shard, run_id = prefix.split(".")[1:]
    body = json.dumps({"steps": steps}).encode() if steps else b""
    await bench.bus.nc.publish(subjects.stop(tenant, int(shard), run_id), body)


async def test_single_step_is_stopped_and_the_others_of_its_run_are_not(
    bench: Bench, queue: str
) -> None:
    runner = Runner(kind="tool", queue=queue)
    stopped: list[str] = []
    running: set[str] = set()
    go = asyncio.Event()

    @runner.tool("work")
    async def work(ctx: StepContext) -> str:
        running.add(ctx.step_id)
        try:
            await go.wait()
        except asyncio.CancelledError:
            stopped.append(ctx.step_id)
            raise
        return ctx.step_id

    await bench.start(runner)
    prefix = await bench.schedule(runner, "work", step_id="m-x0")
    run_id = prefix.rpartition(".")[2]
    await bench.schedule(runner, "work", step_id="m-x1", run_id=run_id, attempt=2)
    await eventually(lambda: len(running) == 2)
    await stop(bench, prefix, "m-x0", "m-x7")
    await eventually(lambda: stopped == ["m-x0"])

    await bench.schedule(runner, "work", step_id="m-x7", run_id=run_id, attempt=3)
    await bench.schedule(runner, "work", step_id="later", run_id=run_id, attempt=4)
    await eventually(lambda: "later" in running)
    go.set()
    assert (await bench.result(prefix, "m-x1", 2)).output == "m-x1"
    assert (await bench.result(prefix, "later", 4)).output == "later"
    await eventually(lambda: nothing_left(bench, runner))
    assert running == {"m-x0", "m-x1", "later"}


async def nothing_left(bench: Bench, runner: Runner) -> bool:
    return await bench.unacknowledged(runner) == 0


async def test_empty_stop_stops_all_steps_of_the_run(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)
    stopped: list[str] = []

    @runner.tool("work")
    async def work(ctx: StepContext) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(ctx.step_id)
            raise

    await bench.start(runner)
    prefix = await bench.schedule(runner, "work", step_id="a")
    await bench.schedule(runner, "work", step_id="b", run_id=prefix.rpartition(".")[2], attempt=2)
    await eventually(lambda: runner.in_flight == 2)
    await stop(bench, prefix)
    await eventually(lambda: sorted(stopped) == ["a", "b"])


async def test_step_that_goes_silent_fails_and_may_be_tried_again(
    bench: Bench, queue: str, forever: asyncio.Event
) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("work")
    async def work(ctx: StepContext) -> None:
        ctx.heartbeat({"done": 3})
        await forever.wait()

    await bench.start(runner)
    result = await bench.done(runner, "work", heartbeat_seconds=0.2)
    assert result.error is not None
    assert result.error.code == "heartbeat_timeout"
    assert "{'done': 3}" in result.error.message


async def test_plain_function_beats_from_its_thread(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("work")
    def work(ctx: StepContext) -> str:
        for _ in range(10):
            ctx.heartbeat()
            time.sleep(0.05)
        return "done"

    @runner.tool("sleep")
    def sleep(ctx: StepContext) -> None:
        while not ctx.cancelled.is_set():
            time.sleep(0.01)

    await bench.start(runner)
    assert (await bench.done(runner, "work", heartbeat_seconds=0.3)).output == "done"
    result = await bench.done(runner, "sleep", heartbeat_seconds=0.3)
    assert result.error is not None
    assert result.error.code == "heartbeat_timeout"


async def test_text_is_a_sign_of_progress(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("work")
    async def work(ctx: StepContext) -> str:
        for number in range(10):
            await ctx.emit_delta(f"{number} ")
            await asyncio.sleep(0.05)
        return "done"

    await bench.start(runner)
    assert (await bench.done(runner, "work", heartbeat_seconds=0.3)).output == "done"
