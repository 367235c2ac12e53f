"""Turns: who may begin, who waits, who makes room."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.contracts.plan import ConcurrencySpec
from penstock.contracts.turns import MAX_WAITING, Turn, TurnRecord, asked, left

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ONE = ConcurrencySpec()


def turn(number: int, priority: int = 0) -> Turn:
    since = NOON + timedelta(seconds=number)
    return Turn(run_id=f"r{number}", shard=0, since=since, priority=priority)


def after(*numbers: int, spec: ConcurrencySpec = ONE) -> TurnRecord:
    record = TurnRecord()
    for number in numbers:
        record, _ = asked(record, turn(number), spec)
    return record


def ids(turns: tuple[Turn, ...]) -> list[str]:
    return [one.run_id for one in turns]


def policy(
    name: Literal["queue", "reject", "cancel_oldest", "cancel_newest"], places: int = 1
) -> ConcurrencySpec:
    return ConcurrencySpec(max=places, policy=name)


def test_runs_beyond_the_limit_wait_in_their_order() -> None:
    record = after(1, 2, 3, spec=policy("queue", 2))
    assert (ids(record.holders), ids(record.queue)) == (["r1", "r2"], ["r3"])
    record = left(record, ["r1"], NOON)
    assert (ids(record.holders), ids(record.queue)) == (["r2", "r3"], [])


def test_asking_or_leaving_again_changes_nothing() -> None:
    record = after(1, 2)
    assert after(1, 2, 1, 2) == record
    gone = left(record, ["r1"], NOON)
    assert left(gone, ["r1"], NOON) == gone


def test_run_with_a_higher_priority_waits_before_others() -> None:
    record = after(1, 2, 3)
    record, _ = asked(record, turn(4, priority=5), ONE)
    record, _ = asked(record, turn(5, priority=5), ONE)
    assert ids(record.queue) == ["r4", "r5", "r2", "r3"]


def test_full_place_rejects_or_cancels_the_newest_and_keeps_nothing_of_it() -> None:
    for name in ("reject", "cancel_newest"):
        record, answer = asked(after(1), turn(2), policy(name))
        assert answer == ("rejected" if name == "reject" else "cancelled")
        assert record == after(1)


def test_newest_run_makes_the_oldest_go_and_begins_when_that_has_ended() -> None:
    spec = policy("cancel_oldest")
    record = after(1, 2, 3, spec=spec)
    assert [one.cancelled for one in (*record.holders, *record.queue)] == [True, True, False]
    record = left(record, ["r1"], NOON)
    assert ids(record.holders) == ["r3"], "r2 was told to stop and never begins"
    assert ids(left(record, ["r2"], NOON).queue) == []


def test_queue_that_is_full_takes_nobody() -> None:
    record = after(*range(MAX_WAITING + 1))
    record, answer = asked(record, turn(9999), ONE)
    assert answer == "queue_full"
    assert len(record.queue) == MAX_WAITING


def test_more_places_are_taken_at_once_and_fewer_as_runs_end() -> None:
    record, answer = asked(after(1, 2, 3), turn(4), policy("queue", 3))
    assert (ids(record.holders), ids(record.queue), answer) == (
        ["r1", "r2", "r3"],
        ["r4"],
        "queued",
    )
    record, _ = asked(record, turn(5), policy("queue", 1))
    assert ids(left(record, ["r1"], NOON).holders) == ["r2", "r3"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "leave"]), st.integers(0, 12), st.integers(-2, 2)),
        max_size=80,
    ),
    st.integers(1, 3),
    st.sampled_from(["queue", "cancel_oldest", "reject"]),
)
@settings(max_examples=300)
def test_places_are_never_more_than_allowed_nor_free_while_somebody_waits(
    moves: list[tuple[str, int, int]],
    places: int,
    name: Literal["queue", "cancel_oldest", "reject"],
) -> None:
    record = TurnRecord(max=places)
    for move, number, priority in moves:
        if move == "ask":
            record, answer = asked(record, turn(number, priority), policy(name, places))
            assert record.holds(f"r{number}") == (answer == "admitted")
        else:
            record = left(record, [f"r{number}"], NOON)
            assert not record.holds(f"r{number}")
        everybody = ids(record.holders) + ids(record.queue)
        assert len(set(everybody)) == len(everybody)
        assert len(record.holders) <= places
        waiting = [one for one in record.queue if not one.cancelled]
        assert not waiting or len(record.holders) == places
        assert [-one.priority for one in record.queue] == sorted(
            -one.priority for one in record.queue
        )
        if name == "cancel_oldest":
            staying = [one for one in (*record.holders, *record.queue) if not one.cancelled]
            assert len(staying) <= places
