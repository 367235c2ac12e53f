"""Reckoning: which ticks are to be fired now, which are left out, and when to look again.

Pure. What it gives is recorded by compare-and-set before anything is fired.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from penstock.contracts.schedules import (
    ScheduleControl,
    ScheduleProgress,
    ScheduleRecord,
    due_at,
    latest_ticks,
    ticks_after,
    timing_digest,
)

_AT_ONCE: Final = 1000
"""Ticks computed at a time; further ones follow at once."""


@dataclass(frozen=True, slots=True)
class Reckoning:
    """Progress to record, and the time of the next computation."""

    progress: ScheduleProgress
    wake_at: datetime | None
    """``None``: never, unless something is changed."""


def begun(record: ScheduleRecord, now: datetime) -> ScheduleProgress:
    """Return the progress of a new schedule: ticks begin now."""
    return ScheduleProgress(timing=timing_digest(record), handled_until=now)


def is_paused(record: ScheduleRecord, control: ScheduleControl | None) -> bool:
    """Return whether ticks pass by unused."""
    return record.paused or (control is not None and control.paused)


def reckon(
    tenant: str,
    record: ScheduleRecord,
    control: ScheduleControl | None,
    progress: ScheduleProgress,
    now: datetime,
) -> Reckoning:
    """Count the ticks that have come due.

    Args:
        tenant: Whose schedule it is.
        record: The schedule.
        control: State set by an operator.
        progress: How far it has come; nothing of it is pending.
        now: The time.
    """
    timing = timing_digest(record)
    if progress.timing != timing:
        # Other times: those that the old ones did not have are not missed.
        handled = max(progress.handled_until, now)
        progress = progress.model_copy(update={"timing": timing, "handled_until": handled})
    handled = progress.handled_until
    if control is not None:
        handled = max(handled, control.changed_at)
    missed, left_out, handled = _missed(record, handled, now)
    pending = list(missed)
    waiting = None
    for tick in ticks_after(record, handled):
        due = due_at(tenant, record, tick)
        if due > now or len(pending) >= _AT_ONCE:
            waiting = due
            break
        pending.append(tick)
        handled = tick
    if handled == progress.handled_until or (not pending and not left_out):
        return Reckoning(progress, waiting)
    if is_paused(record, control):
        pending, left_out = [], 0
    update = {
        "handled_until": handled,
        "pending": tuple(pending),
        "left_out": progress.left_out + left_out,
    }
    return Reckoning(progress.model_copy(update=update), waiting)


def _missed(
    record: ScheduleRecord, handled: datetime, now: datetime
) -> tuple[list[datetime], int, datetime]:
    """Return the missed ticks to be made up for, how many are left out, and up to where.

    Those left out are counted up to a thousand.
    """
    until = now - timedelta(seconds=record.grace_seconds + record.jitter_seconds)
    if until <= handled:
        return [], 0, handled
    missed = latest_ticks(record, handled, until, _AT_ONCE)
    if not missed:
        return [], 0, handled
    if record.missed == "skip":
        wanted = 0
    elif record.missed == "once":
        wanted = 1
    else:
        wanted = record.missed_limit
    chosen = missed[-wanted:] if wanted else []
    return chosen, len(missed) - len(chosen), until
