"""The life of a runner: registered while it lives, drained when told, and through restarts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.json import Json
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.runners import RunnerRecord
from penstock.contracts.structs import decode
from penstock.embedded import NatsServer
from penstock.runner import Runner, StepContext
from penstock.runner.heartbeat import Heartbeat
from penstock.runner.process import serve
from tests.integration.runner.conftest import Bench
from tests.support.waiting import eventually

OpenBench = Callable[..., Awaitable[Bench]]


async def registered(bench: Bench, runner: Runner) -> RunnerRecord | None:
    key = subjects.runner_key(runner.kind.value, runner.queue, bench.settings.instance_id)
    entry = await Bucket(bench.bus, subjects.RUNNERS).get(key)
    return None if entry is None else RunnerRecord.model_validate_json(entry.value)


def greeter(queue: str) -> Runner:
    runner = Runner(kind="tool", queue=queue, concurrency=7)

    @runner.tool("greet", description="Greets.")
    async def greet(name: str, times: int = 1) -> str:
        return name * times

    return runner


async def test_runner_is_registered_with_its_capabilities_until_it_ends(
    bench: Bench, queue: str
) -> None:
    runner = greeter(queue)
    ending = asyncio.Event()
    serving = asyncio.create_task(serve([runner], bench.settings, name="test", until=ending))
    record = await eventually(lambda: registered(bench, runner))
    assert record is not None
    assert (record.kind, record.queue, record.concurrency) == ("tool", queue, 7)
    capability = record.capabilities[0]
    assert (capability.name, capability.description) == ("greet", "Greets.")
    assert capability.parameters["required"] == ["name"]
    assert capability.parameters["additionalProperties"] is False
    assert (await bench.done(runner, "greet", {"name": "x"})).output == "x"
    ending.set()
    await asyncio.wait_for(serving, 30)
    assert await registered(bench, runner) is None


async def test_load_and_draining_stand_in_the_heartbeat(
    nats_server: NatsServer, open_bench: OpenBench, queue: str
) -> None:
    bench = await open_bench(nats_server, runner_ttl_seconds=1.5, drain_seconds=10)
    runner = Runner(kind="tool", queue=queue)
    release = asyncio.Event()

    @runner.tool("wait")
    async def wait() -> str:
        await release.wait()
        return "finished"

    ending = asyncio.Event()
    serving = asyncio.create_task(serve([runner], bench.settings, name="test", until=ending))
    await eventually(lambda: registered(bench, runner))
    prefix = await bench.schedule(runner, "wait")

    async def busy() -> bool:
        record = await registered(bench, runner)
        return record is not None and record.in_flight == 1 and not record.draining

    await eventually(busy)
    ending.set()

    async def draining() -> bool:
        record = await registered(bench, runner)
        return record is not None and record.in_flight == 1 and record.draining

    await eventually(draining)
    release.set()
    await asyncio.wait_for(serving, 30)
    assert (await bench.result(prefix)).output == "finished"
    assert await registered(bench, runner) is None


async def test_steps_in_work_are_shown_long_before_the_next_heartbeat_is_due(
    nats_server: NatsServer, open_bench: OpenBench, queue: str
) -> None:
    bench = await open_bench(nats_server, runner_ttl_seconds=3600)
    runner = Runner(kind="tool", queue=queue)
    reported: asyncio.Queue[Json] = asyncio.Queue()

    @runner.tool("work")
    async def work(ctx: StepContext) -> str:
        while (progress := await reported.get()) is not None:
            ctx.heartbeat(progress)
        return "done"

    ending = asyncio.Event()
    serving = asyncio.create_task(serve([runner], bench.settings, name="test", until=ending))
    await eventually(lambda: registered(bench, runner))
    prefix = await bench.schedule(runner, "work", step_id="s")

    async def shown(*expected: tuple[str, str, int, str]) -> bool:
        record = await registered(bench, runner)
        assert record is not None
        steps = [(one.tenant, one.step_id, one.attempt, one.progress) for one in record.steps]
        return steps == list(expected)

    reports: list[tuple[Json, str]] = [("", ""), ({"page": 7}, '{"page": 7}'), ("soon", "soon")]
    for progress, text in reports:
        reported.put_nowait(progress)
        await eventually(partial(shown, (bench.tenant, "s", 1, text)))
    reported.put_nowait(None)
    assert (await bench.result(prefix, "s")).output == "done"
    await eventually(shown)
    ending.set()
    await asyncio.wait_for(serving, 30)


async def test_heartbeat_goes_on_while_the_event_loop_is_blocked(
    nats_server: NatsServer, open_bench: OpenBench, queue: str
) -> None:
    bench = await open_bench(nats_server, runner_ttl_seconds=1.0)
    runner = greeter(queue)
    await bench.start(runner)
    heartbeat = Heartbeat(bench.settings, lambda: [runner.record()])
    await heartbeat.start()
    before = await registered(bench, runner)
    assert before is not None
    time.sleep(1.2)  # noqa: ASYNC251 - the point of the test: longer than the TTL
    after = await registered(bench, runner)
    assert after is not None
    assert after.beat_at > before.beat_at
    await heartbeat.stop()
    assert await registered(bench, runner) is None


async def test_heartbeat_ends_when_the_event_loop_is_frozen(
    nats_server: NatsServer, open_bench: OpenBench, queue: str
) -> None:
    bench = await open_bench(nats_server, runner_ttl_seconds=1.0, runner_heartbeat_seconds=0.2)
    runner = greeter(queue)
    await bench.start(runner)
    heartbeat = Heartbeat(bench.settings, lambda: [runner.record()])
    await heartbeat.start()
    heartbeat._answer = lambda: None  # type: ignore[method-assign]
    await eventually(lambda: _gone(bench, runner))
    del heartbeat._answer
    await eventually(lambda: registered(bench, runner))
    await heartbeat.stop()


async def _gone(bench: Bench, runner: Runner) -> bool:
    return await registered(bench, runner) is None


async def test_step_beyond_the_grace_is_handed_back_at_once(
    queue: str, open_bench: OpenBench, nats_server: NatsServer
) -> None:
    bench = await open_bench(nats_server, ack_wait_seconds=300)
    taken: list[str] = []
    started = asyncio.Event()

    def slow(name: str, *, hang: bool) -> Runner:
        runner = Runner(kind="tool", queue=queue)

        @runner.tool("slow")
        async def work() -> str:
            taken.append(name)
            started.set()
            if hang:
                await asyncio.Event().wait()
            return name

        return runner

    first = slow("first", hang=True)
    await first.start(bench.harness)
    prefix = await bench.schedule(first, "slow")
    await asyncio.wait_for(started.wait(), 30)
    second = slow("second", hang=False)
    other = await open_bench(nats_server, ack_wait_seconds=300)
    await other.start(second)
    await first.drain(0.1)
    assert (await bench.result(prefix)).output == "second"
    assert taken == ["first", "second"]


async def test_runner_and_its_deltas_survive_a_restart_of_the_server(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench, queue: str
) -> None:
    server = create_nats_server()
    bench = await open_bench(server, runner_ttl_seconds=3.0)
    runner = Runner(kind="agent", queue=queue)

    @runner.agent("talk")
    async def talk(ctx: StepContext) -> str:
        for number in range(20):
            await ctx.emit_delta(f"{number} ")
            await asyncio.sleep(0.05)
        return "said"

    ending = asyncio.Event()
    serving = asyncio.create_task(serve([runner], bench.settings, name="test", until=ending))
    await eventually(lambda: registered(bench, runner))
    assert (await bench.done(runner, "talk", {})).output == "said"
    prefix = await bench.schedule(runner, "talk", {})
    await asyncio.sleep(0.2)
    await asyncio.to_thread(server.restart)
    result = await bench.result(prefix)
    assert result.output == "said"
    assert result.deltas == 20
    assert (await bench.done(runner, "talk", {})).output == "said"
    await eventually(lambda: registered(bench, runner))
    ending.set()
    await asyncio.wait_for(serving, 30)


RUNNER = """
import asyncio
from penstock.runner import Runner, StepContext

runner = Runner(kind="tool", queue={queue!r})

@runner.tool("slow")
async def slow(ctx: StepContext, seconds: float) -> str:
    await ctx.emit_delta("working")
    await asyncio.sleep(seconds)
    return "finished"

if __name__ == "__main__":
    runner.run()
"""


async def test_process_finishes_its_step_on_sigterm_and_exits_with_0(
    bench: Bench, queue: str, tmp_path: Path
) -> None:
    script = tmp_path / "runner.py"
    script.write_text(RUNNER.format(queue=queue))
    instance = f"proc-{uuid.uuid4().hex[:8]}"
    process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
        [sys.executable, str(script)],
        env={
            **os.environ,
            "PENSTOCK_NATS_URL": bench.settings.nats_url,
            "PENSTOCK_INSTANCE_ID": instance,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        bucket = Bucket(bench.bus, subjects.RUNNERS)
        key = subjects.runner_key("tool", queue, instance)
        await eventually(lambda: bucket.get(key))
        description = Runner(kind="tool", queue=queue)
        prefix = await bench.schedule(description, "slow", {"seconds": 0.7})
        tenant, shard, run_id = prefix.split(".")[1:]
        wanted = subjects.delta_filter(tenant, int(shard), run_id)

        async def started() -> list[DeltaBatch]:
            return [
                decode(DeltaBatch, message.body)
                async for page in bench.harness.reader.pages(subjects.DELTAS, wanted)
                for message in page
            ]

        await eventually(started)
        process.send_signal(signal.SIGTERM)
        assert (await bench.result(prefix)).output == "finished"
        _, log = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 0, log
        assert "runner.drained" in log
        assert await bucket.get(key) is None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


STUBBORN = """
import time
from penstock.runner import Runner

runner = Runner(kind="tool", queue={queue!r})

@runner.tool("slow")
def slow() -> str:
    print("started", flush=True)
    time.sleep(300)
    return "too late"

if __name__ == "__main__":
    runner.run()
"""


async def test_process_with_a_function_that_cannot_be_stopped_hands_its_step_back_and_ends(
    nats_server: NatsServer, open_bench: OpenBench, queue: str, tmp_path: Path
) -> None:
    bench = await open_bench(nats_server, ack_wait_seconds=300)
    script = tmp_path / "runner.py"
    script.write_text(STUBBORN.format(queue=queue))
    process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
        [sys.executable, str(script)],
        env={
            **os.environ,
            "PENSTOCK_NATS_URL": bench.settings.nats_url,
            "PENSTOCK_DRAIN_SECONDS": "0.2",
            "PENSTOCK_ACK_WAIT_SECONDS": "300",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        second = Runner(kind="tool", queue=queue)

        @second.tool("slow")
        async def quick() -> str:
            return "second"

        prefix = await bench.schedule(second, "slow")
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "started\n"
        await bench.start(second)
        process.send_signal(signal.SIGTERM)
        assert (await bench.result(prefix)).output == "second"
        _, log = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 0, log
        assert "runner.threads_left" in log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def test_process_without_a_bus_says_so_and_exits_with_1(tmp_path: Path) -> None:
    script = tmp_path / "runner.py"
    script.write_text(
        RUNNER.format(queue="q").replace(
            "runner.run()",
            "import penstock.runner.process as p\n"
            "    from functools import partial\n"
            "    p.connect = partial(p.connect, patience_seconds=0.5)\n"
            "    runner.run()",
        )
    )
    found = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(script)],
        env={**os.environ, "PENSTOCK_NATS_URL": "nats://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert found.returncode == 1
    assert "bus_unreachable" in found.stderr
    (waiting,) = [line for line in found.stderr.splitlines() if "bus.unreachable" in line]
    assert json.loads(waiting)["address"] == "nats://127.0.0.1:1"


async def test_step_longer_than_the_ack_wait_is_done_once(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench, queue: str
) -> None:
    server = create_nats_server()
    bench = await open_bench(server, ack_wait_seconds=1.0)
    other = await open_bench(server, ack_wait_seconds=1.0)
    taken = 0

    def slow() -> Runner:
        runner = Runner(kind="tool", queue=queue)

        @runner.tool("slow")
        async def work() -> str:
            nonlocal taken
            taken += 1
            await asyncio.sleep(2.5)
            return "done"

        return runner

    first = await bench.start(slow())
    await other.start(slow())
    result = await bench.done(first, "slow")
    assert result.output == "done"
    assert taken == 1


async def test_process_outlives_handlers_that_exit(bench: Bench, queue: str) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
        [sys.executable, str(Path(__file__).with_name("exiting_runner.py"))],
        env={
            **os.environ,
            "PENSTOCK_NATS_URL": bench.settings.nats_url,
            "PENSTOCK_METRICS_PORT": "-1",
            "QUEUE": queue,
        },
        stderr=subprocess.DEVNULL,
    )
    runner = Runner(kind="tool", queue=queue)
    try:
        for name in ("here", "thread", "task"):
            result = await bench.done(runner, name)
            assert result.error is not None
            assert (result.error.code, result.error.message) == ("handler_error", "SystemExit: 3")
        assert (await bench.done(runner, "callback")).output == "alive"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
