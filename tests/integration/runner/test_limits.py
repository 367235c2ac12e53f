"""Rate limits that all runners share: in a bucket, in Redis, and what providers ask for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.contracts.errors import ErrorFamily, TransientError
from penstock.contracts.facts import StepKind
from penstock.contracts.usage import Usage
from penstock.embedded import NatsServer
from penstock.runner import Runner, StepContext
from penstock.runner.limit_stores import BucketStore, RedisStore
from penstock.runner.limits import Limits, LimitStore
from penstock.runner.rates import read_rules
from tests.integration.runner.conftest import Bench
from tests.support.waiting import eventually

OpenBench = Callable[..., Awaitable[Bench]]
OpenLimits = Callable[..., Awaitable[Limits]]
SERVER = Path(sys.executable).with_name("redis-server")
MODEL = {"model": "openai/gpt-5-mini"}


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server on a socket of its own."""
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "s"
    process = subprocess.Popen(
        [str(SERVER), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
    yield f"unix://{path}"
    process.terminate()
    process.wait()


@pytest.fixture(params=["bucket", "redis"])
async def open_limits(
    request: pytest.FixtureRequest, bench: Bench, queue: str
) -> AsyncIterator[OpenLimits]:
    """Open the limits of another process, on the same store."""
    opened: list[Limits] = []

    async def open_limits(*entries: str) -> Limits:
        # Names of the test's own, since the servers are shared.
        rules = read_rules([entry.replace("Q", queue) for entry in entries])
        store: LimitStore = BucketStore(bench.bus)
        if request.param == "redis":
            store = RedisStore(request.getfixturevalue("redis_url"))
        limits = Limits(bench.bus, rules, store)
        await limits.open()
        opened.append(limits)
        return limits

    yield open_limits
    for limits in opened:
        await limits.close()


async def passes(limits: Limits, queue: str, holder: str, config: Any = None) -> float:
    """Ask for leave; return 0, or for how long one is sent away."""
    kind = StepKind.TOOL if config is None else StepKind.AGENT
    away = 0.0
    try:
        await limits.enter(kind, queue, config, holder)
    except TransientError as error:
        if error.code != "rate_limited":
            raise
        away = error.retry_after_seconds or 0.0
    return away


async def test_processes_share_a_rate(open_limits: OpenLimits, queue: str) -> None:
    both = [await open_limits("tool.Q=20/h") for _ in range(2)]
    away = await asyncio.gather(
        *(passes(both[index % 2], queue, f"s{index}") for index in range(60))
    )

    assert sum(seconds == 0 for seconds in away) == 20
    assert all(seconds > 100 for seconds in away if seconds)


async def test_rate_fills_again(open_limits: OpenLimits, queue: str) -> None:
    limits = await open_limits("tool.Q=20/s:1")
    assert await passes(limits, queue, "a") == 0
    away = await passes(limits, queue, "b")
    assert 0 < away <= 0.051

    async def again() -> bool:
        return await passes(limits, queue, "b") == 0

    await eventually(again)


async def test_processes_share_places_and_give_them_back(
    open_limits: OpenLimits, queue: str
) -> None:
    one, two = [await open_limits("tool.Q=2") for _ in range(2)]
    first = await one.enter(StepKind.TOOL, queue, None, "a")
    assert first is not None
    assert await passes(two, queue, "b") == 0
    assert await passes(one, queue, "c") >= 1
    assert await passes(two, queue, "b") == 0
    await first.leave()
    assert await passes(two, queue, "c") == 0


async def test_place_that_was_taken_before_a_rate_turned_away_is_given_back(
    open_limits: OpenLimits, queue: str
) -> None:
    limits = await open_limits("agent.Q=1", "Q=1/h")
    config: Any = {"model": f"{queue}/m"}
    permit = await limits.enter(StepKind.AGENT, queue, config, "a")
    assert permit is not None
    await permit.leave()
    assert await passes(limits, queue, "b", config) > 100
    free = await limits.enter(StepKind.AGENT, queue, {"model": "other/m"}, "c")
    assert free is not None


async def test_tokens_of_a_call_keep_the_next_away(open_limits: OpenLimits, queue: str) -> None:
    limits = await open_limits("Q=100t/m")
    config: Any = {"model": f"{queue}/m"}
    permit = await limits.enter(StepKind.AGENT, "x", config, "a")
    assert permit is not None
    await permit.leave(tokens=200)
    assert 50 < await passes(limits, "x", "b", config) < 70


async def test_step_that_is_turned_away_fails_as_rate_limited_and_runs_nothing(
    nats_server: NatsServer, open_bench: OpenBench, queue: str
) -> None:
    bench = await open_bench(nats_server, rate_limits=f"tool.{queue}=2/h")
    runner = Runner(kind="tool", queue=queue)
    ran: list[str] = []

    @runner.tool("work")
    async def work(ctx: StepContext) -> None:
        ran.append(ctx.run_id)

    await bench.start(runner)
    results = [await bench.done(runner, "work") for _ in range(4)]

    assert [result.status for result in results] == ["succeeded"] * 2 + ["failed"] * 2
    error = results[-1].error
    assert error is not None
    assert (error.code, error.family) == ("rate_limited", ErrorFamily.TRANSIENT)
    assert error.retry_after_seconds is not None
    assert len(ran) == 2


async def test_provider_that_asks_to_be_left_alone_is_asked_by_nobody(
    nats_server: NatsServer, open_bench: OpenBench, queue: str
) -> None:
    benches = [await open_bench(nats_server) for _ in range(2)]
    config = {"model": f"{queue}/large"}
    asked: list[str] = []
    runners = []
    for number, bench in enumerate(benches):
        runner = Runner(kind="agent", queue=f"{queue}-{number}")

        @runner.step()
        async def turn(ctx: StepContext) -> None:
            asked.append(ctx.run_id)
            raise TransientError("rate_limited", "429", retry_after_seconds=60)

        runners.append(await bench.start(runner))

    first = await benches[0].done(runners[0], "a", config=config)
    assert first.error is not None
    assert first.error.retry_after_seconds == 60

    async def refused() -> bool:
        found = await benches[1].done(runners[1], "a", config=config)
        return found.error is not None and "left alone" in found.error.message

    await eventually(refused)
    before = len(asked)
    again = await benches[0].done(runners[0], "a", config=config)
    assert again.error is not None
    assert again.error.code == "rate_limited"
    assert 50 < (again.error.retry_after_seconds or 0) < 61
    assert len(asked) == before
    other = await benches[0].done(runners[0], "a", config={"model": f"{queue}x/m"})
    assert other.error is not None
    assert len(asked) == before + 1


async def test_tokens_that_a_handler_reports_count(
    nats_server: NatsServer, open_bench: OpenBench, queue: str
) -> None:
    bench = await open_bench(nats_server, rate_limits=f"{queue}=100t/h")
    runner = Runner(kind="agent", queue=queue)

    @runner.step()
    async def turn(ctx: StepContext) -> None:
        ctx.usage = Usage(input_tokens=90, output_tokens=20, model_calls=1)

    await bench.start(runner)
    config = {"model": f"{queue}/m"}
    first, second = [await bench.done(runner, "a", config=config) for _ in range(2)]
    assert first.status == "succeeded"
    assert second.error is not None
    assert second.error.code == "rate_limited"


async def test_redis_that_is_away_sends_steps_away_until_it_is_back(
    nats_server: NatsServer, open_bench: OpenBench, queue: str, tmp_path: Path
) -> None:
    bench = await open_bench(
        nats_server, rate_limits=f"tool.{queue}=100/s", redis_url=f"unix://{tmp_path}/none"
    )
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("work")
    async def work() -> None:
        """Work."""

    await bench.start(runner)
    result = await bench.done(runner, "work")
    assert result.error is not None
    assert (result.error.code, result.error.retry_after_seconds) == ("rate_limited", 5.0)
