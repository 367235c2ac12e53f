"""The table of runs finds what is due, idle or to be evicted without a look at all runs."""

from __future__ import annotations

import pytest

from penstock_orchestrator.engine import runs as runs_module
from penstock_orchestrator.engine.runs import RunTable, Slot


def create_table(names: str) -> tuple[RunTable, list[Slot]]:
    table = RunTable()
    slots = [table.slot("t", 0, name) for name in names]
    for number, slot in enumerate(slots):
        table.touch(slot, 100.0 + number)
    return table, slots


def test_idle_runs_come_with_the_longest_untouched_first() -> None:
    table, (a, b, c) = create_table("abc")
    table.touch(a, 200.0)

    assert table.idle(150.0, 10) == [b, c]
    assert table.idle(150.0, 1) == [b]
    assert table.idle(101.0, 10) == []
    assert table.idle(300.0, 10) == [b, c, a]


def test_run_is_due_at_each_tick_until_it_gets_another_time() -> None:
    table, (a, b) = create_table("ab")
    a.wake_at, b.wake_at = 5.0, 7.0

    assert table.due(4.0) == []
    assert table.due(5.0) == [a]
    assert table.due(6.0) == [a]
    a.wake_at = 9.0
    table.touch(a, 300.0)
    assert table.due(8.0) == [b]
    assert set(map(id, table.due(9.0))) == {id(a), id(b)}


def test_run_without_a_time_is_never_due() -> None:
    table, (a,) = create_table("a")
    table.reschedule(a)

    assert table.due(1e12) == []


def test_forgotten_run_is_neither_due_nor_idle_and_a_late_touch_does_not_bring_it_back() -> None:
    table, (a, b) = create_table("ab")
    a.wake_at = b.wake_at = 5.0
    assert table.due(1.0) == []
    table.end(a)
    table.touch(a, 400.0)
    table.reschedule(a)

    assert len(table) == 1
    assert table.idle(1000.0, 10) == [b]
    assert table.due(6.0) == [b]
    assert table.forget_shard(0) == [b]
    assert table.due(6.0) == []


@pytest.mark.sources
def test_stale_times_are_dropped_when_they_outnumber_the_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs_module, "_STALE_ENTRIES", 10)
    table, (a,) = create_table("a")
    for number in range(100):
        a.wake_at = 1000.0 + number
        table.touch(a, 200.0 + number)
        assert table.due(500.0) == []

    assert len(table._timetable) <= 13
    assert table.due(1098.0) == []
    assert table.due(1099.0) == [a]
