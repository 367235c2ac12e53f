"""The verdict itself: what it excuses, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.verdict import Havoc, Ledger, Span, explain, read_ledger

ACK_WAIT = 4.0


@pytest.fixture
def twice(tmp_path: Path) -> Ledger:
    """The effect of one attempt, had by process 1 at 11 and by process 2, which began at 15."""
    lines = [
        {"what": "begin", "key": "r:s", "attempt": 1, "pid": 1, "at": 10.0},
        {"what": "effect", "key": "r:s", "attempt": 1, "pid": 1, "at": 11.0},
        {"what": "begin", "key": "r:s", "attempt": 1, "pid": 2, "at": 15.0},
        {"what": "effect", "key": "r:s", "attempt": 1, "pid": 2, "at": 16.0},
    ]
    path = tmp_path / "ledger"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_ledger(path)


def test_repetition_without_a_reason_is_unexplained(twice: Ledger) -> None:
    found = explain(twice, Havoc(), set(), ACK_WAIT)
    assert (found.total, len(found.unexplained)) == (1, 1)


def test_repetition_after_the_first_ones_death_is_explained(twice: Ledger) -> None:
    havoc = Havoc()
    havoc.killed(1, at=12.0)
    found = explain(twice, havoc, set(), ACK_WAIT)
    assert (found.by_blow, found.unexplained) == (1, [])


@pytest.mark.parametrize(
    ("pid", "at"),
    [(2, 12.0), (1, 15.1)],
    ids=["the other one's death", "its death after the second beginning"],
)
def test_repetition_is_not_explained_by(twice: Ledger, pid: int, at: float) -> None:
    havoc = Havoc()
    havoc.killed(pid, at)
    assert len(explain(twice, havoc, set(), ACK_WAIT).unexplained) == 1


@pytest.mark.parametrize(
    ("stopped", "explained"),
    [
        (Span(3.0, 14.0), 1),
        (Span(3.0, 6.0), 1),
        (Span(3.0, 5.9), 0),
        (Span(10.1, 14.0), 0),
    ],
)
def test_repetition_by_who_was_sent_it_first_and_was_stopped_then_is_explained(
    twice: Ledger, stopped: Span, explained: int
) -> None:
    havoc = Havoc()
    havoc.runners[2].append(stopped)
    found = explain(twice, havoc, set(), ACK_WAIT)
    assert (found.by_blow, len(found.unexplained)) == (explained, 1 - explained)


@pytest.mark.parametrize(("stopped", "explained"), [(Span(3.0, 9.0), 1), (Span(3.0, 6.3), 0)])
def test_repetition_by_who_was_stopped_until_shortly_before_it_began_is_explained(
    tmp_path: Path, stopped: Span, explained: int
) -> None:
    path = tmp_path / "ledger"
    lines = [
        {"what": what, "key": "r:s", "attempt": 1, "pid": pid, "at": at}
        for what, pid, at in (
            ("begin", 1, 10.0),
            ("begin", 2, 10.4),
            ("effect", 1, 10.5),
            ("effect", 2, 10.9),
        )
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    havoc = Havoc()
    havoc.runners[1].append(stopped)
    found = explain(read_ledger(path), havoc, set(), ACK_WAIT)
    assert (found.by_blow, len(found.unexplained)) == (explained, 1 - explained)


@pytest.mark.parametrize(
    ("span", "explained"),
    [
        (Span(9.0, 10.0), 1),
        (Span(15.0, 20.0), 1),
        (Span(8.0, 9.9), 0),
        (Span(15.1, 20.0), 0),
    ],
)
def test_repetition_is_explained_by_a_blow_to_the_bus_between_both_beginnings_alone(
    twice: Ledger, span: Span, explained: int
) -> None:
    found = explain(twice, Havoc(bus=[span]), set(), ACK_WAIT)
    assert (found.by_bus, len(found.unexplained)) == (explained, 1 - explained)


@pytest.mark.parametrize(("until", "explained"), [(12.9, 0), (13.0, 1)])
def test_repetition_is_explained_by_a_standstill_of_half_ack_wait(
    twice: Ledger, until: float, explained: int
) -> None:
    twice.stalls[1].append(Span(11.0, until))
    found = explain(twice, Havoc(), set(), ACK_WAIT)
    assert (found.by_stall, len(found.unexplained)) == (explained, 1 - explained)


@pytest.mark.parametrize(("failed", "explained"), [(set(), 0), ({("r:s", 1)}, 1)])
def test_second_attempt_is_explained_by_the_record_of_the_firsts_failure_alone(
    tmp_path: Path, failed: set[tuple[str, int]], explained: int
) -> None:
    path = tmp_path / "ledger"
    lines = [
        {"what": what, "key": "r:s", "attempt": attempt, "pid": 1, "at": 10.0 * attempt}
        for attempt in (1, 2)
        for what in ("begin", "effect")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = explain(read_ledger(path), Havoc(), failed, ACK_WAIT)
    assert (found.by_failure, len(found.unexplained)) == (explained, 1 - explained)


def test_beginning_without_effect_is_kept_as_such(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text('{"what": "begin", "key": "r:s", "attempt": 1, "pid": 1, "at": 1.0}\n')
    ledger = read_ledger(path)
    assert ledger.effects == []
    assert [begun.at for begun in ledger.begins] == [float("inf")]
