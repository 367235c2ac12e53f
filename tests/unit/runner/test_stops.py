"""The book of stopped runs."""

from __future__ import annotations

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
