"""Steps that must not be repeated, over a runner that dies at every point of their life."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import RejectedError, TransientError
from penstock.embedded import NatsServer
from penstock.runner import Runner, StepContext
from tests.integration.runner.conftest import Bench
from tests.support.waiting import eventually

SCRIPT = Path(__file__).with_name("frail_runner.py")
Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
async def quick(nats_server: NatsServer, open_bench: Callable[..., Awaitable[Bench]]) -> Bench:
    return await open_bench(nats_server, ack_wait_seconds=1.0)


@pytest.fixture
def start(quick: Bench, queue: str, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(crash_at: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                env={
                    **os.environ,
                    "PENSTOCK_NATS_URL": quick.settings.nats_url,
                    "PENSTOCK_ACK_WAIT_SECONDS": "1",
                    "PENSTOCK_METRICS_PORT": "-1",
                    "QUEUE": queue,
                    "CRASH_AT": crash_at,
                    "EFFECTS": str(tmp_path / "effects"),
                },
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


@pytest.mark.parametrize(
    ("crash_at", "status", "effects"),
    [
        ("before it is noted", "succeeded", 1),
        ("before the effect", "unknown", 0),
        ("after the effect", "unknown", 1),
        ("after the outcome is recorded", "succeeded", 1),
    ],
)
async def test_step_of_a_runner_that_dies_has_its_effect_once_at_most(
    quick: Bench,
    queue: str,
    start: Start,
    tmp_path: Path,
    crash_at: str,
    status: str,
    effects: int,
) -> None:
    asked = Runner(kind="tool", queue=queue)
    dying = start(crash_at)
    prefix = await quick.schedule(asked, "pay", at_most_once=True)
    await eventually(lambda: dying.poll() is not None)
    start("")
    result = await quick.result(prefix)

    assert result.status == status
    if status == "unknown":
        assert result.error is not None
        assert result.error.code == "outcome_unknown"
    await eventually(lambda: settled(quick, asked))
    done = tmp_path / "effects"
    assert (done.read_text().count("\n") if done.exists() else 0) == effects


@pytest.mark.parametrize(
    ("crash_at", "status", "code"),
    [
        ("before it is noted", "failed", "step_expired"),
        ("after the effect", "unknown", "outcome_unknown"),
    ],
)
async def test_step_that_comes_again_past_its_deadline_is_unknown_if_it_had_begun(
    quick: Bench, queue: str, start: Start, crash_at: str, status: str, code: str
) -> None:
    asked = Runner(kind="tool", queue=queue)
    dying = start(crash_at)
    await eventually(lambda: listed(quick, asked))
    ends_at = time.monotonic() + 3
    prefix = await quick.schedule(asked, "pay", seconds=3, at_most_once=True)
    await eventually(lambda: dying.poll() is not None)
    await eventually(lambda: time.monotonic() > ends_at)
    start("")
    result = await quick.result(prefix)

    assert result.error is not None
    assert (result.status, result.error.code) == (status, code)


async def listed(bench: Bench, runner: Runner) -> bool:
    keys = await Bucket(bench.bus, subjects.RUNNERS).keys(f"tool.{runner.queue}.*")
    return bool(keys)


async def settled(bench: Bench, runner: Runner) -> bool:
    return await bench.unacknowledged(runner) == 0


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (TransientError("busy", "not now"), "failed", "busy"),
        (RejectedError("refused", "no"), "failed", "refused"),
        (TransientError("outcome_unknown", "the line is cut"), "unknown", "outcome_unknown"),
        (KeyError("oops"), "unknown", "outcome_unknown"),
    ],
)
async def test_handler_that_raises_says_whether_the_outcome_is_known(
    bench: Bench, queue: str, raised: Exception, status: str, code: str
) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("pay")
    async def pay() -> None:
        raise raised

    await bench.start(runner)
    result = await bench.done(runner, "pay", at_most_once=True)
    assert result.error is not None
    assert (result.status, result.error.code) == (status, code)


async def test_step_at_its_deadline_has_an_unknown_outcome(
    bench: Bench, queue: str, forever: asyncio.Event
) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("pay")
    async def pay() -> None:
        await forever.wait()

    await bench.start(runner)
    result = await bench.done(runner, "pay", seconds=0.3, at_most_once=True)
    assert result.status == "unknown"
    assert result.error is not None
    assert result.error.message.startswith("step_timeout")


async def test_step_that_never_began_and_has_expired_has_failed(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("pay")
    async def pay() -> None:
        """Pay."""

    await bench.start(runner)
    result = await bench.done(runner, "pay", seconds=-1, at_most_once=True)
    assert result.error is not None
    assert (result.status, result.error.code) == ("failed", "step_expired")


async def test_attempt_that_was_noted_by_another_runner_is_not_begun(
    bench: Bench, queue: str
) -> None:
    runner = Runner(kind="tool", queue=queue)
    begun: list[str] = []

    @runner.tool("pay")
    async def pay(ctx: StepContext) -> None:
        begun.append(ctx.run_id)

    run_id = "0" * 26
    note = subjects.once_key(run_id, "a", 1)
    await Bucket(bench.bus, subjects.LIMITS).create(note, b"another", ttl_seconds=60)
    await bench.start(runner)
    result = await bench.done(runner, "pay", run_id=run_id, at_most_once=True)
    assert result.status == "unknown"
    assert begun == []
    prefix = await bench.schedule(runner, "pay", run_id=run_id, attempt=2, at_most_once=True)
    again = await bench.result(prefix, attempt=2)
    assert (again.status, begun) == ("succeeded", [run_id])
