"""How an attempt ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.contracts.errors import ErrorFamily, InvariantError, RejectedError
from penstock.masks import Mask
from penstock.runner.attempt import MESSAGE_CHARACTERS, PROGRESS_CHARACTERS, Attempt, failure_of


async def forever() -> None:
    await asyncio.Event().wait()


async def test_attempt_in_time_has_no_failure() -> None:
    with Attempt(5) as attempt:
        await asyncio.sleep(0)
    assert (attempt.failure, attempt.halt) == (None, None)


async def test_attempt_at_its_deadline_is_stopped_and_the_task_goes_on() -> None:
    with Attempt(0.01) as attempt:
        await forever()
    assert attempt.halt == "deadline"
    assert attempt.failure is not None
    assert attempt.failure.family is ErrorFamily.TRANSIENT
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_stopped_attempt_sets_its_event_and_the_task_goes_on() -> None:
    attempt = Attempt(5)
    asyncio.get_running_loop().call_soon(attempt.stop, "stopped")
    with attempt:
        cancelled = attempt.cancelled
        await forever()
    assert attempt.halt == "stopped"
    assert cancelled.is_set()
    await asyncio.sleep(0)


async def test_event_asked_for_after_the_stop_is_set() -> None:
    attempt = Attempt(5)
    attempt.stop("stopped")
    assert attempt.cancelled.is_set()


async def test_cancellation_from_outside_passes_through() -> None:
    attempt = Attempt(5)

    async def work() -> None:
        with attempt:
            await forever()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempt.failure is None


async def test_cancellation_from_outside_together_with_a_stop_passes_through() -> None:
    attempt = Attempt(5)

    async def work() -> None:
        with attempt:
            await forever()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    attempt.stop("stopped")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_handler_that_swallows_its_cancellation_has_still_run_out_of_time() -> None:
    with Attempt(0.01) as attempt:
        try:
            await forever()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
    assert attempt.halt == "deadline"
    assert attempt.failure is not None
    assert attempt.failure.code == "step_timeout"


async def test_error_of_ours_keeps_code_and_family() -> None:
    with Attempt(5) as attempt:
        raise InvariantError("impossible", "no")
    assert attempt.failure is not None
    assert (attempt.failure.code, attempt.failure.family) == ("impossible", ErrorFamily.INVARIANT)


async def test_stranger_s_error_is_told_without_its_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Attempt(5) as attempt:
        raise LookupError("x" * 5000)
    assert attempt.failure is not None
    assert attempt.failure.code == "handler_error"
    assert attempt.failure.message.startswith("LookupError: xxx")
    assert len(attempt.failure.message) < MESSAGE_CHARACTERS + 20
    assert "Traceback" in caplog.text


async def test_attempt_that_shows_no_progress_is_stopped() -> None:
    with Attempt(5, heartbeat_seconds=0.02) as attempt:
        attempt.watch()
        await forever()
    assert attempt.halt == "silent"
    assert attempt.failure is not None
    assert (attempt.failure.code, attempt.failure.family) == (
        "heartbeat_timeout",
        ErrorFamily.TRANSIENT,
    )


async def test_attempt_that_goes_silent_tells_what_it_said_last() -> None:
    with Attempt(5, heartbeat_seconds=0.02) as attempt:
        attempt.watch()
        attempt.beat({"page": 7})
        attempt.beat()
        await forever()
    assert attempt.failure is not None
    assert "{'page': 7}" in attempt.failure.message


async def test_attempt_that_beats_goes_on_until_it_stops_beating() -> None:
    loop = asyncio.get_running_loop()
    checks: set[asyncio.TimerHandle | None] = set()

    def beat() -> None:
        attempt.beat()
        checks.add(attempt._pulse)
        if len(checks) < 4:
            loop.call_soon(beat)

    with Attempt(60, heartbeat_seconds=0.01) as attempt:
        attempt.watch()
        beat()
        await forever()
    assert attempt.halt == "silent"
    assert len(checks) == 4


async def test_attempt_that_ends_is_watched_no_more() -> None:
    with Attempt(5, heartbeat_seconds=0.01) as attempt:
        attempt.watch()
    await asyncio.sleep(0.03)
    assert (attempt.halt, attempt.failure) == (None, None)


async def test_attempt_without_a_limit_is_not_watched() -> None:
    with Attempt(5) as attempt:
        attempt.watch()
        assert not attempt.watched
        await asyncio.sleep(0.01)
    assert attempt.failure is None


@pytest.mark.parametrize(
    ("details", "shown"),
    [
        (None, ""),
        ("page 7", "page 7"),
        ({"seite": "ü"}, '{"seite": "ü"}'),
        ("x" * 1000, "x" * PROGRESS_CHARACTERS),
        ("\ud800", "\\ud800"),
        (object, "<its text raised TypeError>"),
    ],
)
def test_progress_is_the_text_of_the_last_details(details: Any, shown: str) -> None:
    attempt = Attempt(5)
    attempt.beat("first")
    attempt.beat(None)
    assert attempt.progress == "first"

    attempt.beat(details)

    assert attempt.progress == (shown or "first")


def test_progress_holds_no_secrets() -> None:
    attempt = Attempt(5)
    attempt.mask = Mask(["hunter22222"])
    attempt.beat({"at": "hunter22222"})

    assert "hunter" not in attempt.progress


def test_error_that_no_fact_can_hold_is_masked_before_it_is_cut() -> None:
    secret = "hunter22222"
    error = RejectedError(5, "x" * (MESSAGE_CHARACTERS - 25) + secret)  # type: ignore[arg-type]

    info = failure_of(error, Mask([secret]))

    assert info.code == "handler_error"
    assert "hunter" not in info.message
