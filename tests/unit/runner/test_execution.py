"""The outcome of a handler, whatever it returns: always one result that every reader takes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.contracts.errors import PenstockError, RejectedError, TransientError
from penstock.contracts.usage import Usage
from penstock.runner import Runner, StepContext
from penstock.testing import LocalRunner


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (nested(101), "nested more than 100"),
        (nested(900), "depth"),
        pytest.param(10**5000, "digits", id="huge"),
        (float("nan"), "finite"),
        ({"a": [float("inf")]}, "output.a[0]"),
        ("\ud800", "surrogate"),
        (object(), "serialize"),
    ],
)
async def test_output_that_cannot_be_recorded_is_a_failed_result(value: Any, reason: str) -> None:
    runner = Runner(queue="q")

    @runner.tool("give")
    async def give() -> Any:
        return value

    outcome = await LocalRunner(runner).call("give")

    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.code == "invalid_output"
    assert reason in outcome.error.message


async def test_deepest_output_is_recorded() -> None:
    runner = Runner(queue="q")

    @runner.tool("give")
    async def give() -> Any:
        return nested(100)

    assert (await LocalRunner(runner).call("give")).output == nested(100)


@pytest.mark.parametrize(
    "usage",
    [
        Usage(cost_usd=float("nan")),
        Usage(cost_usd=-1.0),
        Usage(input_tokens=-1),
        {"input_tokens": -1},
    ],
)
@pytest.mark.parametrize("fails", [False, True])
async def test_usage_that_no_call_can_have_is_a_failed_result(usage: Any, fails: bool) -> None:
    runner = Runner(queue="q")

    @runner.tool("spend")
    async def spend(ctx: StepContext) -> str:
        ctx.usage, ctx.model = usage, "a/b"
        if fails:
            raise RuntimeError("spent")
        return "done"

    outcome = await LocalRunner(runner).call("spend")

    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.code == ("handler_error" if fails else "invalid_output")


# -- exceptions ----------------------------------------------------------------------------------


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class UnendingError(Exception):
    def __str__(self) -> str:
        raise SystemExit


class ForeignError(BaseException):
    pass


def recurse() -> None:
    recurse()


def failing(error: BaseException) -> Runner:
    """Return a runner whose tools raise an error: in a coroutine, in a thread, in a generator."""
    runner = Runner(queue="q")

    @runner.tool("coroutine")
    async def in_coroutine() -> None:
        raise error

    @runner.tool("thread")
    def in_thread() -> None:
        raise error

    @runner.tool("generator")
    def in_generator() -> Iterator[int]:
        yield 1
        raise error

    return runner


@pytest.mark.parametrize("tool", ["coroutine", "thread", "generator"])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("half \ud800"), r"half \ud800"),
        (UnprintableError(), "its text raised ValueError"),
        (UnendingError(), "its text raised SystemExit"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (StopIteration("end"), "StopIteration: end"),
        (StopAsyncIteration(), "StopAsyncIteration"),
        (asyncio.CancelledError("mine"), "CancelledError"),
        (ForeignError("own"), "ForeignError: own"),
        (ExceptionGroup("both", [ValueError("a")]), "ExceptionGroup"),
        (MemoryError(), "MemoryError"),
        (GeneratorExit("mine"), "GeneratorExit: mine"),
    ],
)
async def test_whatever_a_handler_raises_is_one_failed_result(
    tool: str, error: BaseException, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Reports of tests cannot carry half a surrogate pair, and they hold the log.
    caplog.set_level(logging.CRITICAL, logger="penstock.runner.attempt")

    outcome = await LocalRunner(failing(error)).call(tool)

    assert outcome.status == "failed"
    assert outcome.error is not None
    if (tool, type(error)) != ("generator", ValueError):  # a value that has no JSON form as well
        assert outcome.error.code == "handler_error"
        assert type(error).__name__ in outcome.error.message
    assert text in outcome.error.message


@pytest.mark.parametrize(
    "error",
    [
        RejectedError("odd", "half \ud800"),
        RejectedError("half_\ud800", "text"),
        RejectedError(5, "text"),  # type: ignore[arg-type]
        RejectedError("odd", 5),  # type: ignore[arg-type]
        RejectedError("odd", "text", details=("none",)),  # type: ignore[arg-type]
        TransientError("odd", "text", retry_after_seconds=float("nan")),
    ],
)
async def test_error_of_a_handler_that_no_fact_can_hold_is_recorded_all_the_same(
    error: PenstockError,
) -> None:
    outcome = await LocalRunner(failing(error)).call("coroutine")

    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.code in ("odd", "handler_error")
    assert outcome.error.family == error.family


async def test_endless_recursion_is_a_failed_result_and_the_next_step_succeeds() -> None:
    runner = Runner(queue="q")

    @runner.tool("recurse")
    async def run() -> None:
        recurse()

    @runner.tool("circle")
    async def circle() -> Any:
        found: list[Any] = []
        found.append(found)
        return found

    @runner.tool("set")
    async def unordered() -> Any:
        return {1}

    local = LocalRunner(runner)
    first, second = await local.call("recurse"), await local.call("circle")

    assert first.error is not None
    assert second.error is not None
    assert "RecursionError" in first.error.message
    assert second.error.code == "invalid_output"
    assert (await local.call("set")).output == [1]


async def test_text_that_is_no_unicode_is_emitted_as_far_as_it_is() -> None:
    runner = Runner(queue="q")

    @runner.tool("speak")
    async def speak(ctx: StepContext) -> None:
        await ctx.emit_delta("before \ud800 after")

    outcome = await LocalRunner(runner).call("speak")

    assert (outcome.status, outcome.text) == ("succeeded", "before ? after")


async def test_heartbeat_whose_details_have_no_text_ends_as_any_other() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise SystemExit

    runner = Runner(queue="q")

    @runner.tool("work")
    async def work(ctx: StepContext) -> None:
        ctx.heartbeat(Silent())  # type: ignore[arg-type]
        await asyncio.Event().wait()

    call = LocalRunner(runner).start("work", heartbeat_seconds=60.0)
    outcome = await call.miss_heartbeat()

    assert outcome.error is not None
    assert outcome.error.code == "heartbeat_timeout"


async def test_cancellation_from_outside_passes_through() -> None:
    runner = Runner(queue="q")
    begun = asyncio.Event()

    @runner.tool("work")
    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    call = LocalRunner(runner).start("work")
    await begun.wait()
    call._task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
