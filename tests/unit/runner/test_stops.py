"""The book of stopped runs."""

from __future__ import annotations

import pytest
from nats.aio.msg import Msg

from penstock.contracts import subjects
from penstock.runner.attempt import Attempt
from penstock.runner.stops import StopBook


def test_all_attempts_of_a_stopped_run_are_stopped_and_no_others() -> None:
    book = StopBook()
    first, second, other = Attempt(1), Attempt(1), Attempt(1)
    book.enter("a", "s", first)
    book.enter("a", "s", second)
    book.enter("b", "s", other)
    book.stop("a")
    assert (first.halt, second.halt, other.halt) == ("stopped", "stopped", None)
    assert book.stopped("a", "s")
    assert not book.stopped("b", "s")


def test_attempt_that_has_left_is_not_stopped() -> None:
    book = StopBook()
    first, second = Attempt(1), Attempt(1)
    book.enter("a", "s", first)
    book.enter("a", "s", second)
    book.leave("a", first)
    book.stop("a")
    assert (first.halt, second.halt) == (None, "stopped")
    book.leave("a", second)


def test_only_so_many_runs_are_remembered_the_oldest_is_forgotten_first() -> None:
    book = StopBook(remembered=2)
    for run_id in ("a", "b", "a", "c"):
        book.stop(run_id)
    assert [book.stopped(run_id, "s") for run_id in "abc"] == [True, False, True]


def test_single_steps_are_stopped_and_the_others_of_the_run_go_on() -> None:
    book = StopBook()
    first, second, other = Attempt(1), Attempt(1), Attempt(1)
    book.enter("a", "m-x0", first)
    book.enter("a", "m-x1", second)
    book.enter("b", "m-x0", other)
    book.stop_steps("a", ("m-x0", "m-x7"))

    assert (first.halt, second.halt, other.halt) == ("stopped", None, None)
    assert book.stopped("a", "m-x0")
    assert book.stopped("a", "m-x7")
    assert not book.stopped("a", "later")
    assert not book.stopped("b", "m-x0")


def test_stop_of_an_attempt_does_not_stop_the_next_one() -> None:
    book = StopBook()
    first = Attempt(1)
    book.enter("a", "s", first)
    book.stop_steps("a", ("s",), attempt=2)
    assert first.halt == "stopped"
    assert [book.stopped("a", "s", attempt) for attempt in (1, 2, 3)] == [True, True, False]


def test_stop_of_a_thousand_steps_does_not_forget_stopped_runs() -> None:
    book = StopBook(remembered=10)
    book.stop("b")
    book.stop_steps("a", tuple(f"m-x{index}" for index in range(1000)))

    assert book.stopped("b", "s")
    assert [book.stopped("a", f"m-x{index}") for index in (0, 989, 990, 999)] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("body", "stopped"),
    [
        (b"", ["a", "b"]),
        (b"{}", ["a", "b"]),
        (b'{"steps": []}', ["a", "b"]),
        (b'{"steps": ["a"], "later": 1}', ["a"]),
        (b"gibberish", []),
        (b'{"steps": "a"}', []),
    ],
)
async def test_message_stops_what_it_names(body: bytes, stopped: list[str]) -> None:
    book = StopBook()
    attempts = {"a": Attempt(1), "b": Attempt(1)}
    for step_id, attempt in attempts.items():
        book.enter("R", step_id, attempt)
    message = Msg(_client=None, subject=subjects.stop("acme", 3, "R"), data=body)  # type: ignore[arg-type]

    await book.on_message(message)

    assert [step_id for step_id, attempt in attempts.items() if attempt.halt] == stopped
