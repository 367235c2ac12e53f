"""Ticks: calendars with time zones, what is missed, what a tick is called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.contracts.ids import is_run_id
from penstock.contracts.schedules import (
    ScheduleRecord,
    due_at,
    latest_ticks,
    next_tick,
    schedule_run_id,
    schedule_scope,
    tick_text,
    ticks_after,
    timezone_fault,
    timing_digest,
)

FORWARD = datetime(2026, 3, 29, tzinfo=UTC)
"""The day on which Berlin's clocks go from 2 to 3."""
BACK = datetime(2026, 10, 25, tzinfo=UTC)
"""The day on which Berlin's clocks go from 3 to 2."""


def schedule(cron: str | None = None, **fields: Any) -> ScheduleRecord:
    return ScheduleRecord(name="nightly", target="report", cron=cron, **fields)


def berlin(cron: str, **fields: Any) -> ScheduleRecord:
    return schedule(cron, timezone="Europe/Berlin", **fields)


def texts(record: ScheduleRecord, after: datetime, count: int) -> list[str]:
    return [f"{tick:%d %H:%M}" for tick in islice(ticks_after(record, after), count)]


def test_cron_in_a_zone_follows_its_clock_through_the_year() -> None:
    record = berlin("0 9 * * MON-FRI")
    winter = next_tick(record, datetime(2026, 1, 1, 12, tzinfo=UTC))
    summer = next_tick(record, datetime(2026, 7, 1, 12, tzinfo=UTC))
    assert winter == datetime(2026, 1, 2, 8, tzinfo=UTC)
    assert summer == datetime(2026, 7, 2, 7, tzinfo=UTC)


def test_time_of_day_in_the_skipped_hour_comes_when_the_hour_is_over() -> None:
    assert texts(berlin("30 2 * * *"), FORWARD, 2) == ["29 01:00", "30 00:30"]
    assert texts(berlin("0,30 2 * * *"), FORWARD, 3) == ["29 01:00", "30 00:00", "30 00:30"]
    assert texts(berlin("15 30 2 * * *"), FORWARD, 2) == ["29 01:00", "30 00:30"]


def test_time_of_day_in_the_doubled_hour_comes_once() -> None:
    assert texts(berlin("30 2 * * *"), BACK, 2) == ["25 00:30", "26 01:30"]
    assert texts(berlin("0 30 2 * * *"), BACK, 2) == ["25 00:30", "26 01:30"]


@pytest.mark.parametrize("minutes", range(0, 300, 7))
def test_ticks_of_a_changing_day_do_not_depend_on_where_one_starts_to_count(minutes: int) -> None:
    for day in (FORWARD, BACK):
        for cron in ("30 2 * * *", "0,30 1-3 * * *", "*/20 * * * *", "10 * * * *"):
            record = berlin(cron)
            day_before = day - timedelta(hours=3)
            after = day_before + timedelta(minutes=minutes)
            all_of_them = list(islice(ticks_after(record, day_before), 40))
            assert next_tick(record, after) == next(t for t in all_of_them if t > after)


def test_pace_follows_elapsed_time_through_both_changes() -> None:
    every_half_hour = berlin("*/30 * * * *")
    for day in (FORWARD, BACK):
        ticks = list(islice(ticks_after(every_half_hour, day), 12))
        assert {b - a for a, b in pairwise(ticks)} == {timedelta(minutes=30)}


def test_day_that_a_zone_skipped_fires_at_its_end() -> None:
    # Samoa went from 29 to 31 December 2011.
    record = schedule("0 12 * * *", timezone="Pacific/Apia")
    after = datetime(2011, 12, 29, 23, tzinfo=UTC)
    assert texts(record, after, 2) == ["30 10:00", "30 22:00"]


def test_every_is_anchored_at_its_start_and_stops_at_its_end() -> None:
    start = datetime(2026, 5, 1, 0, 7, tzinfo=UTC)
    record = schedule(every_seconds=900, starts_at=start, ends_at=start + timedelta(minutes=45))
    assert texts(record, start - timedelta(days=9), 9) == ["01 00:07", "01 00:22", "01 00:37"]
    assert texts(record, start, 9) == ["01 00:22", "01 00:37"]


def test_every_without_a_start_is_anchored_at_the_epoch() -> None:
    record = schedule(every_seconds=900)
    assert texts(record, datetime(2026, 5, 1, 0, 7, tzinfo=UTC), 2) == ["01 00:15", "01 00:30"]


def test_start_itself_may_be_a_tick() -> None:
    start = datetime(2026, 5, 1, 9, tzinfo=UTC)
    assert next_tick(schedule("0 9 * * *", starts_at=start), start - timedelta(days=3)) == start


def test_latest_ticks_of_a_long_absence_are_found_without_counting_all() -> None:
    until = datetime(2026, 5, 1, tzinfo=UTC)
    long_ago = until - timedelta(days=3650)
    found = latest_ticks(schedule(every_seconds=1), long_ago, until, 3)
    assert found == [until - timedelta(seconds=seconds) for seconds in (2, 1, 0)]
    assert latest_ticks(schedule("* * * * * *"), long_ago, until, 3) == found


CRONS = st.sampled_from(
    ["30 2 * * *", "0,30 1-3 * * *", "*/20 * * * *", "10 * * * *", "0 0 * * MON", "0 15 2 * * *"]
)
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]
)


@given(
    cron=CRONS,
    zone=ZONES,
    minute=st.integers(0, 400 * 1440),
    second=st.floats(0, 59.9),
    hours=st.integers(1, 60),
)
@settings(max_examples=150)
def test_ticks_counted_backwards_are_those_counted_forwards(
    cron: str, zone: str, minute: int, second: float, hours: int
) -> None:
    record = schedule(cron, timezone=zone)
    after = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute, seconds=second)
    until = after + timedelta(hours=hours)
    forwards = list(takewhile(lambda tick: tick <= until, ticks_after(record, after)))
    assert latest_ticks(record, after, until, 10_000) == forwards
    assert forwards == sorted(set(forwards))


def test_unknown_zone_is_answered_by_what_may_be_meant() -> None:
    assert timezone_fault("Europe/Berlin") is None
    assert "Europe/Berlin" in (timezone_fault("europe/berln") or "")
    assert timezone_fault("../../etc/passwd") == "an IANA name such as Europe/Berlin"


def test_jitter_is_the_ticks_own_and_bounded() -> None:
    record = schedule(every_seconds=60, jitter_seconds=10)
    ticks = list(islice(ticks_after(record, BACK), 200))
    delays = [(due_at("acme", record, tick) - tick).total_seconds() for tick in ticks]
    assert delays == [(due_at("acme", record, tick) - tick).total_seconds() for tick in ticks]
    assert 0 <= min(delays) < 1
    assert 9 < max(delays) <= 10
    assert due_at("acme", schedule(every_seconds=60), ticks[0]) == ticks[0]


def test_run_of_a_tick_has_one_name() -> None:
    tick = datetime(2026, 5, 1, 9, tzinfo=UTC)
    named = schedule_run_id("acme", "nightly", tick)
    assert is_run_id(named)
    assert named == schedule_run_id("acme", "nightly", tick.astimezone())
    assert named != schedule_run_id("acme", "nightly", tick + timedelta(milliseconds=500))
    assert tick_text(tick) == "2026-05-01T09:00:00Z"


def test_scope_shows_the_tick_on_both_clocks() -> None:
    tick = datetime(2026, 5, 1, 7, tzinfo=UTC)
    assert schedule_scope(berlin("0 9 * * *"), tick)["schedule"] == {
        "name": "nightly",
        "tick": "2026-05-01T07:00:00Z",
        "scheduled_at": "2026-05-01T09:00:00+02:00",
    }


def test_timing_is_another_only_where_the_ticks_are() -> None:
    assert timing_digest(berlin("0 9 * * *")) == timing_digest(berlin("0 9 * * *", paused=True))
    assert timing_digest(berlin("0 9 * * *")) != timing_digest(schedule("0 9 * * *"))
