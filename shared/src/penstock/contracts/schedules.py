"""Schedules: what starts runs at certain times, and which times those are.

Pure: the same record gives the same ticks everywhere, whatever the clock or the zone of the
process that asks. A tick is an instant in UTC; it names the run that it starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AwareDatetime, Field, TypeAdapter
from pydantic_core import to_json

from penstock.contracts import cron
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import Record
from penstock.contracts.ids import Token, run_id_from_key
from penstock.contracts.json import Json
from penstock.contracts.usage import RunLimits

SCHEDULE_TAG: Final = "schedule"
"""The tag by which the runs of a schedule are found."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MissedPolicy = Literal["skip", "once", "all"]


class ScheduleRecord(Record):
    """Value of bucket ``schedules``: a run to start, by ``cron`` or by ``every_seconds``."""

    name: Token
    target: Token
    """Name of the agent, network or workflow to start."""
    selector: str | None = None
    """A version or an alias of it; ``None``: the version in force at the tick."""
    cron: str | None = None
    every_seconds: float | None = Field(default=None, gt=0)
    """Ticks at ``starts_at`` (or the Unix epoch) and so many seconds apart."""
    timezone: str = "UTC"
    """IANA name of the zone whose clock ``cron`` is read on."""
    input: Json = None
    """Template of the run's input over ``schedule.name``, ``.tick`` and ``.scheduled_at``."""
    missed: MissedPolicy = "skip"
    missed_limit: int = Field(default=100, ge=1, le=1000)
    """How many missed ticks ``all`` makes up for; the latest ones."""
    grace_seconds: float = Field(default=30.0, gt=0)
    """A tick that no engine came to for so long is missed."""
    starts_at: AwareDatetime | None = None
    """The first instant that may be a tick."""
    ends_at: AwareDatetime | None = None
    """Ticks come before this instant."""
    jitter_seconds: float = Field(default=0.0, ge=0)
    """Runs start up to so long after their tick, each schedule and tick by its own delay."""
    paused: bool = False
    tags: dict[str, str] = {}
    limits: RunLimits = RunLimits()
    priority: int = Field(default=0, ge=-100, le=100)


class ScheduleControl(Record):
    """State of a schedule set by an operator, beside its document."""

    paused: bool
    changed_at: AwareDatetime
    """Ticks up to here are not missed, they were not wanted."""
    changed_by: str | None = None
    reason: str = ""


class ScheduleFailure(Record):
    """Why the latest tick that started nothing started nothing."""

    tick: AwareDatetime
    error: ErrorInfo


class ScheduleProgress(Record):
    """How far the engines have come with a schedule; changed by compare-and-set only.

    Which ticks are to be fired is recorded before they are, so that all engines agree, and a
    tick that was recorded is fired although the engine that did so dies.
    """

    timing: str
    """Digest of the times that it was counted with."""
    handled_until: AwareDatetime
    """All ticks up to this instant are fired, pending or left out."""
    pending: tuple[AwareDatetime, ...] = ()
    """Ticks that are to be fired, oldest first."""
    last_tick: AwareDatetime | None = None
    """The latest tick that was fired."""
    last_run_id: str | None = None
    fired: int = 0
    left_out: int = 0
    """Ticks that the policy for missed ones left out."""
    failure: ScheduleFailure | None = None


SCHEDULE_RECORD: Final[TypeAdapter[ScheduleRecord]] = TypeAdapter(ScheduleRecord)
SCHEDULE_CONTROL: Final[TypeAdapter[ScheduleControl]] = TypeAdapter(ScheduleControl)
SCHEDULE_PROGRESS: Final[TypeAdapter[ScheduleProgress]] = TypeAdapter(ScheduleProgress)


# -- checks ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def timezones() -> frozenset[str]:
    """Return the names of all time zones."""
    return frozenset(available_timezones() - {"localtime", "Factory"})


def timezone_fault(name: str) -> str | None:
    """Return what would be allowed instead of a time zone, ``None`` if there is such a zone."""
    known = timezones()
    if name in known:
        return None
    by_lower = {zone.lower(): zone for zone in known}
    near = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    meant = ", ".join(by_lower[zone] for zone in near)
    return meant or "an IANA name such as Europe/Berlin"


# -- times ----------------------------------------------------------------------------------------


def ticks_after(record: ScheduleRecord, after: datetime) -> Iterator[datetime]:
    """Yield the ticks later than an instant, in order; those of cron end after a hundred years.

    Args:
        record: The schedule; its cron expression and its zone have been checked.
        after: Any instant.
    """
    if record.starts_at is not None:
        after = max(after, record.starts_at - timedelta(microseconds=1))
    if record.cron is not None:
        found = cron.ticks(record.cron, _zone(record.timezone), after)
    else:
        found = _every(record, after, 1)
    for tick in found:
        if record.ends_at is not None and tick >= record.ends_at:
            return
        yield tick


def next_tick(record: ScheduleRecord, after: datetime) -> datetime | None:
    """Return the first tick later than an instant."""
    return next(ticks_after(record, after), None)


def latest_ticks(
    record: ScheduleRecord, after: datetime, until: datetime, limit: int
) -> list[datetime]:
    """Return the latest ticks of a span of time, oldest first.

    The time that this takes grows with the number of ticks returned, not with the span.

    Args:
        record: The schedule.
        after: The span begins after this instant.
        until: Its last instant.
        limit: How many to return at most.
    """
    if record.starts_at is not None:
        after = max(after, record.starts_at - timedelta(microseconds=1))
    if record.ends_at is not None:
        until = min(until, record.ends_at - timedelta(microseconds=1))
    if record.cron is not None:
        zone = _zone(record.timezone)
        return cron.latest_ticks(record.cron, zone, after, until, limit) if after < until else []
    found: list[datetime] = []
    for tick in islice(_every(record, until, -1), limit):
        if tick <= after:
            break
        found.append(tick)
    return found[::-1]


def due_at(tenant: str, record: ScheduleRecord, tick: datetime) -> datetime:
    """Return when the run of a tick starts: at once, or after the delay that is the tick's own."""
    if record.jitter_seconds == 0:
        return tick
    digest = hashlib.sha256(f"{tenant}\x00{record.name}\x00{tick.timestamp()}".encode()).digest()
    share = int.from_bytes(digest[:6], "big") / 2**48
    return tick + timedelta(seconds=record.jitter_seconds * share)


def timing_digest(record: ScheduleRecord) -> str:
    """Return the digest that identifies a set of ticks."""
    fields = [record.cron, record.every_seconds, record.timezone, record.starts_at]
    return hashlib.sha256(to_json(fields)).hexdigest()[:16]


# -- runs -----------------------------------------------------------------------------------------


def tick_text(tick: datetime) -> str:
    """Write an instant in UTC, as ids and templates show it."""
    text = tick.astimezone(UTC).isoformat(timespec="microseconds" if tick.microsecond else "auto")
    return text.replace("+00:00", "Z")


def schedule_run_id(tenant: str, name: str, tick: datetime) -> str:
    """Derive the id of the run that a tick starts, the same in every engine."""
    return run_id_from_key(tenant, f"schedule\x00{name}\x00{tick_text(tick)}")


def schedule_scope(record: ScheduleRecord, tick: datetime) -> dict[str, Json]:
    """Return what the template of the input sees.

    ``tick`` is in UTC, ``scheduled_at`` the same instant on the schedule's own clock.
    """
    local = tick.astimezone(_zone(record.timezone))
    return {
        "schedule": {
            "name": record.name,
            "tick": tick_text(tick),
            "scheduled_at": local.isoformat(),
        }
    }


# -- calendars ------------------------------------------------------------------------------------


def _every(record: ScheduleRecord, start: datetime, direction: int) -> Iterator[datetime]:
    """Yield instants a fixed time apart: later than ``start``, or up to it and back."""
    anchor = record.starts_at or _EPOCH
    interval = timedelta(seconds=record.every_seconds or 1.0)
    number = (start - anchor) // interval + (direction > 0)
    while True:
        yield anchor + number * interval
        number += direction


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)
