"""What is due, what was missed, what passes by: of one schedule at one time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.contracts.schedules import ScheduleControl, ScheduleProgress, ScheduleRecord, due_at
from penstock_orchestrator.schedules.reckoning import begun, reckon

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def every_minute(**fields: Any) -> ScheduleRecord:
    return ScheduleRecord(name="often", target="report", every_seconds=60, **fields)


def minutes(*numbers: int) -> tuple[datetime, ...]:
    return tuple(NOON + number * MINUTE for number in numbers)


def reckoned(
    record: ScheduleRecord,
    now: datetime,
    control: ScheduleControl | None = None,
    progress: ScheduleProgress | None = None,
) -> ScheduleProgress:
    return reckon("acme", record, control, progress or begun(record, NOON), now).progress


def test_reckoning_before_the_next_tick_changes_nothing_and_says_when() -> None:
    record = every_minute()
    progress = begun(record, NOON)
    found = reckon("acme", record, None, progress, NOON + MINUTE / 2)
    assert found.progress == progress
    assert found.wake_at == NOON + MINUTE


def test_tick_that_has_come_is_pending_and_counted() -> None:
    progress = reckoned(every_minute(), NOON + MINUTE)
    assert progress.pending == minutes(1)
    assert progress.handled_until == NOON + MINUTE
    assert reckoned(every_minute(), NOON + MINUTE, progress=progress.model_copy()) == progress


def test_ticks_within_grace_are_all_fired_whatever_the_policy() -> None:
    progress = reckoned(every_minute(grace_seconds=300, missed="skip"), NOON + 4 * MINUTE)
    assert progress.pending == minutes(1, 2, 3, 4)


def test_missed_ticks_are_skipped_and_counted() -> None:
    progress = reckoned(every_minute(missed="skip"), NOON + 10.6 * MINUTE)
    assert (progress.pending, progress.left_out) == ((), 10)


def test_missed_ticks_are_made_up_for_by_the_latest() -> None:
    progress = reckoned(every_minute(missed="once"), NOON + 10.6 * MINUTE)
    assert (progress.pending, progress.left_out) == (minutes(10), 9)


def test_missed_ticks_are_all_fired_in_order_up_to_the_bound() -> None:
    progress = reckoned(every_minute(missed="all", missed_limit=3), NOON + 10 * MINUTE)
    assert (progress.pending, progress.left_out) == (minutes(7, 8, 9, 10), 6)


def test_long_absence_of_a_dense_schedule_is_reckoned_in_bounded_work() -> None:
    record = every_minute(missed="all", missed_limit=1000).model_copy(
        update={"every_seconds": 0.25, "grace_seconds": 3600.0}
    )
    progress = begun(record, NOON)
    rounds, fired = 0, 0
    now = NOON + timedelta(days=365)
    while (found := reckon("acme", record, None, progress, now)).progress != progress:
        rounds += 1
        fired += len(found.progress.pending)
        progress = found.progress.model_copy(update={"pending": ()})
    assert fired == 1000 + 4 * 3600
    assert rounds <= 17


def test_ticks_of_a_paused_schedule_pass_by_and_are_not_missed_later() -> None:
    record = every_minute(missed="all")
    paused = ScheduleControl(paused=True, changed_at=NOON)
    progress = reckoned(record, NOON + 5 * MINUTE, paused)
    assert (progress.pending, progress.left_out) == ((), 0)
    resumed = ScheduleControl(paused=False, changed_at=NOON + 9.5 * MINUTE)
    progress = reckoned(record, NOON + 10 * MINUTE, resumed, progress)
    assert progress.pending == minutes(10)


def test_resumed_schedule_does_not_make_up_for_a_pause_that_no_engine_saw() -> None:
    resumed = ScheduleControl(paused=False, changed_at=NOON + 9.5 * MINUTE)
    progress = reckoned(every_minute(missed="all"), NOON + 10 * MINUTE, resumed)
    assert progress.pending == minutes(10)


def test_pause_in_the_document_counts_as_well() -> None:
    assert reckoned(every_minute(paused=True), NOON + 5 * MINUTE).pending == ()


def test_changed_times_have_no_ticks_in_the_past() -> None:
    hourly = ScheduleRecord(name="often", target="report", cron="@hourly")
    found = reckon(
        "acme", every_minute(missed="all"), None, begun(hourly, NOON), NOON + 60 * MINUTE
    )
    assert found.progress.pending == ()
    assert found.wake_at == NOON + 61 * MINUTE


def test_schedule_that_has_ended_never_wakes() -> None:
    record = every_minute(ends_at=NOON + MINUTE * 2)
    found = reckon("acme", record, None, begun(record, NOON), NOON + MINUTE)
    assert found.progress.pending == minutes(1)
    assert found.wake_at is None


def test_tick_with_jitter_waits_for_its_own_delay_and_keeps_its_name() -> None:
    record = every_minute(jitter_seconds=30)
    due = due_at("acme", record, NOON + MINUTE)
    found = reckon("acme", record, None, begun(record, NOON), due - timedelta(milliseconds=1))
    assert (found.progress.pending, found.wake_at) == ((), due)
    assert reckoned(record, due).pending == minutes(1)


def test_clock_that_goes_back_fires_nothing_twice() -> None:
    progress = reckoned(every_minute(), NOON + 3.2 * MINUTE)
    fired = progress.model_copy(update={"pending": ()})
    assert reckoned(every_minute(), NOON + MINUTE, progress=fired) == fired
