"""The runner on a real server: outcomes, refusals, deadlines, stops, redeliveries."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, JsonValue

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily, RejectedError, TransientError
from penstock.contracts.facts import CancelRequested, Decision, RunEnded, RunStatus, fact_bytes
from penstock.contracts.ids import shard_of
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import decode
from penstock.contracts.usage import Usage
from penstock.runner import Runner, StepContext
from penstock.telemetry.metrics import step_metrics
from tests.integration.runner.conftest import Bench
from tests.support.waiting import eventually

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_A_DAY = timedelta(days=1)


async def test_tool_with_typed_parameters_records_its_output(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("greet")
    async def greet(name: str, times: int = 1) -> dict[str, Any]:
        return {"text": f"hello {name}" * times}

    await bench.start(runner)
    result = await bench.done(runner, "greet", {"name": "Ada", "times": 2})
    assert result.status == "succeeded"
    assert result.output == {"text": "hello Adahello Ada"}
    assert result.runner_id == bench.settings.instance_id
    assert result.started_at <= result.occurred_at
    await eventually(lambda: _is_empty(bench, runner))


async def _is_empty(bench: Bench, runner: Runner) -> bool:
    return await bench.unacknowledged(runner) == 0


async def test_tool_with_wrong_arguments_is_rejected_with_paths(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)
    called = False

    @runner.tool("greet")
    async def greet(name: str, times: int = 1) -> str:
        nonlocal called
        called = True
        return name

    await bench.start(runner)
    result = await bench.done(runner, "greet", {"times": "many", "colour": "red"})
    assert result.error is not None
    assert (result.error.code, result.error.family) == ("invalid_arguments", ErrorFamily.REJECTED)
    assert {detail.path for detail in result.error.details} == {"name", "times", "colour"}
    assert not called


@pytest.mark.parametrize(
    ("raised", "code", "family", "after"),
    [
        (RejectedError("no_such_city", "no"), "no_such_city", ErrorFamily.REJECTED, None),
        (
            TransientError("busy", "later", retry_after_seconds=7),
            "busy",
            ErrorFamily.TRANSIENT,
            7.0,
        ),
        (KeyError("oops"), "handler_error", ErrorFamily.TRANSIENT, None),
    ],
)
async def test_handler_that_raises_records_a_failure_of_its_family(
    bench: Bench, queue: str, raised: Exception, code: str, family: ErrorFamily, after: float | None
) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("fail")
    async def fail() -> None:
        raise raised

    await bench.start(runner)
    result = await bench.done(runner, "fail")
    assert result.error is not None
    assert (result.error.code, result.error.family) == (code, family)
    assert result.error.retry_after_seconds == after
    assert "Traceback" not in result.error.message
    assert result.output is None


async def test_plain_function_runs_in_a_thread_and_leaves_the_loop_free(
    bench: Bench, queue: str
) -> None:
    runner = Runner(kind="tool", queue=queue)
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    @runner.tool("block")
    def block(ctx: StepContext) -> str:
        loop.call_soon_threadsafe(entered.set)
        while not ctx.cancelled.is_set():
            time.sleep(0.005)
        return "stopped"

    await bench.start(runner)
    result = await bench.done(runner, "block", seconds=0.4)
    assert entered.is_set()
    assert result.error is not None
    assert (result.error.code, result.error.family) == ("step_timeout", ErrorFamily.TRANSIENT)


async def test_step_past_its_deadline_is_not_started(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)
    called = False

    @runner.tool("late")
    async def late() -> None:
        nonlocal called
        called = True

    await bench.start(runner)
    result = await bench.done(runner, "late", seconds=-1)
    assert result.error is not None
    assert (result.error.code, result.error.family) == ("step_expired", ErrorFamily.TRANSIENT)
    assert not called


async def test_step_at_its_deadline_is_stopped(
    bench: Bench, queue: str, forever: asyncio.Event
) -> None:
    runner = Runner(kind="tool", queue=queue)
    cancelled = asyncio.Event()

    @runner.tool("slow")
    async def slow() -> None:
        try:
            await forever.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await bench.start(runner)
    result = await bench.done(runner, "slow", seconds=0.3)
    assert result.error is not None
    assert result.error.code == "step_timeout"
    assert cancelled.is_set()


async def test_step_of_a_stopped_run_is_cancelled_and_leaves_no_result(
    bench: Bench, queue: str, forever: asyncio.Event
) -> None:
    runner = Runner(kind="tool", queue=queue)
    started, cancelled = asyncio.Event(), asyncio.Event()

    @runner.tool("slow")
    async def slow() -> None:
        started.set()
        try:
            await forever.wait()
        finally:
            cancelled.set()

    await bench.start(runner)
    prefix = await bench.schedule(runner, "slow")
    await asyncio.wait_for(started.wait(), 30)
    tenant, shard, run_id = prefix.split(".")[1:]
    await bench.bus.publish(subjects.stop(tenant, int(shard), run_id), b"")
    await asyncio.wait_for(cancelled.wait(), 30)
    await eventually(lambda: _is_empty(bench, runner))
    assert await bench.harness.reader.read_fact(subjects.result(prefix, "a", 1)) is None


async def test_step_that_comes_after_its_run_was_stopped_is_not_started(
    bench: Bench, queue: str
) -> None:
    runner = Runner(kind="tool", queue=queue)
    called = False

    @runner.tool("never")
    async def never() -> None:
        nonlocal called
        called = True

    await bench.start(runner)
    run_id = "01J00000000000000000000STP"
    await bench.bus.publish(subjects.stop(bench.tenant, 0, run_id), b"")
    await eventually(lambda: bench.harness.stops.stopped(run_id, "a"))
    await bench.schedule(runner, "never", run_id=run_id)
    await eventually(lambda: _is_empty(bench, runner))
    assert not called


@pytest.mark.parametrize("what", ["cancel", "end", "result"])
async def test_old_step_of_a_run_that_is_over_is_not_started(
    bench: Bench, queue: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.runner.steps.STALE_AFTER", -_A_DAY)
    runner = Runner(kind="tool", queue=queue)
    called = 0

    @runner.tool("old")
    async def old() -> str:
        nonlocal called
        called += 1
        return "done"

    prefix = await bench.schedule(runner, "old")
    now = _now()
    if what == "cancel":
        await bench.harness.writer.append(
            subjects.cancel(prefix), fact_bytes(CancelRequested(occurred_at=now))
        )
    elif what == "end":
        ended = RunEnded(
            occurred_at=now, decision=Decision(cause_seq=1), status=RunStatus.CANCELLED
        )
        await bench.harness.writer.append(subjects.out(prefix, 2, "end"), fact_bytes(ended))
    else:
        await bench.harness.writer.append(subjects.result(prefix, "a", 1), b"{}")
    await bench.start(runner)
    await eventually(lambda: _is_empty(bench, runner))
    assert called == 0
    fresh = await bench.done(runner, "old")
    assert fresh.output == "done"


async def test_late_duplicate_is_dropped_counted_and_acknowledged(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)
    first = '{"stated": "by somebody else"}'

    @runner.tool("race")
    async def race(ctx: StepContext) -> str:
        prefix = subjects.run_prefix(ctx.tenant, _shard(bench, ctx.run_id), ctx.run_id)
        await bench.harness.writer.append(subjects.result(prefix, "a", 1), first.encode())
        return "too late"

    await bench.start(runner)
    prefix = await bench.schedule(runner, "race")
    await eventually(lambda: _is_empty(bench, runner))
    stored = await bench.harness.reader.read_message(subjects.RUNS, subjects.result(prefix, "a", 1))
    assert stored is not None
    assert stored.body.decode() == first
    assert step_metrics("tool", queue).late._value.get() == 1


async def test_context_tells_the_step_s_coordinates_and_passes_the_trace_on(
    bench: Bench, queue: str
) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.step()
    async def anything(ctx: StepContext, value: JsonValue) -> JsonValue:
        ctx.usage = Usage(input_tokens=3, model_calls=1)
        ctx.model = "none/such"
        return {
            "run": ctx.run_id,
            "step": ctx.step_id,
            "attempt": ctx.attempt,
            "key": ctx.idempotency_key,
            "config": ctx.config,
            "value": value,
            "soon": 0 < ctx.remaining_seconds < 31,
        }

    await bench.start(runner)
    prefix = await bench.schedule(
        runner, "whatever", [1, 2], attempt=3, config={"a": 1}, traceparent=TRACE
    )
    result = await bench.result(prefix, attempt=3)
    run_id = prefix.rsplit(".", 1)[1]
    assert result.output == {
        "run": run_id,
        "step": "a",
        "attempt": 3,
        "key": f"{run_id}:a",
        "config": {"a": 1},
        "value": [1, 2],
        "soon": True,
    }
    assert result.usage == Usage(input_tokens=3, model_calls=1)
    assert result.model == "none/such"
    entry = await bench.harness.reader.read_fact(subjects.result(prefix, "a", 3))
    assert entry is not None
    assert entry.traceparent is not None
    assert entry.traceparent.split("-")[1] == TRACE.split("-")[1]


async def test_name_without_handler_fails_and_says_what_there_is(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("known")
    async def known() -> None: ...

    await bench.start(runner)
    result = await bench.done(runner, "unknown")
    assert result.error is not None
    assert result.error.code == "no_handler"
    assert "known" in result.error.message


class City(BaseModel):
    name: str
    people: int


async def test_models_in_and_out_are_json_on_the_wire(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("grow")
    async def grow(city: City) -> City:
        return City(name=city.name, people=city.people + 1)

    @runner.tool("odd")
    async def odd() -> object:
        return {"set": {1}, "when": _now().date()}

    @runner.tool("impossible")
    async def impossible() -> object:
        return object()

    await bench.start(runner)
    result = await bench.done(runner, "grow", {"name": "Ulm", "people": 1})
    assert result.output == {"name": "Ulm", "people": 2}
    assert (await bench.done(runner, "odd")).output == {
        "set": [1],
        "when": _now().date().isoformat(),
    }
    refused = await bench.done(runner, "impossible")
    assert refused.error is not None
    assert refused.error.code == "invalid_output"


async def test_large_input_and_output_travel_as_claims(bench: Bench, queue: str) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("double")
    async def double(text: str) -> str:
        return text + text

    await bench.start(runner)
    result = await bench.done(runner, "double", {"text": "x" * 300_000})
    assert result.output == "x" * 600_000


async def test_deltas_are_complete_and_stored_before_the_result(bench: Bench, queue: str) -> None:
    runner = Runner(kind="agent", queue=queue)
    pieces = [f"piece {number} " for number in range(500)]

    @runner.agent("talk")
    async def talk(ctx: StepContext) -> str:
        for number, piece in enumerate(pieces):
            await ctx.emit_delta(piece)
            if number % 50 == 0:
                await asyncio.sleep(0.01)
        return "said"

    await bench.start(runner)
    prefix = await bench.schedule(runner, "talk")
    result = await bench.result(prefix)
    assert result.deltas == len(pieces)
    tenant, shard, run_id = prefix.split(".")[1:]
    found: list[DeltaBatch] = []
    async for messages in bench.harness.reader.pages(
        subjects.DELTAS, subjects.delta_filter(tenant, int(shard), run_id)
    ):
        found += [decode(DeltaBatch, message.body) for message in messages]
    assert [batch.first for batch in found] == [
        sum(len(before.texts) for before in found[:index]) for index in range(len(found))
    ]
    assert [text for batch in found for text in batch.texts] == pieces
    assert 1 < len(found) < 30


def _now() -> datetime:
    return datetime.now(UTC)


def _shard(bench: Bench, run_id: str) -> int:
    return shard_of(run_id, bench.settings.shards)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration()])
async def test_handler_that_ends_its_thread_fails_its_step_and_the_runner_goes_on(
    bench: Bench, queue: str, error: BaseException
) -> None:
    runner = Runner(kind="tool", queue=queue)

    @runner.tool("exit")
    def leave() -> None:
        raise error

    @runner.tool("exit_async")
    async def leave_async() -> None:
        raise error

    @runner.tool("add")
    async def add(a: int) -> int:
        return a + 1

    await bench.start(runner)
    for name in ("exit", "exit_async"):
        result = await bench.done(runner, name)
        assert result.error is not None
        assert (result.status, result.error.code) == ("failed", "handler_error")
        assert type(error).__name__ in result.error.message
    assert (await bench.done(runner, "add", {"a": 1})).output == 2
    await eventually(lambda: _is_empty(bench, runner))
