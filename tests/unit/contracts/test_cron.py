"""Cron: ticks on the clocks of zones that change them, and texts for wrong expressions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.contracts.cron import cron_fault, latest_ticks, ticks

MINUTE = timedelta(minutes=1)

CHANGES = {
    # The last instants before a zone puts its clock forward or back, some of them at midnight.
    "Europe/Berlin": ("2026-03-29T00:59Z", "2026-10-25T00:59Z"),
    "America/St_Johns": ("2010-03-14T03:30Z", "2010-11-07T02:30Z", "2011-03-13T03:30Z"),
    "America/Nuuk": ("2024-03-31T00:59Z", "2024-10-27T00:59Z", "2026-03-29T00:59Z"),
    "America/Scoresbysund": ("2024-03-31T00:59Z", "2023-10-29T00:59Z"),
    "Pacific/Apia": ("2011-12-30T09:59Z", "2011-09-24T13:59Z"),
    "Australia/Lord_Howe": ("2026-04-04T14:59Z", "2026-10-03T15:29Z"),
    "Africa/Cairo": ("2026-04-23T21:59Z", "2026-10-29T20:59Z"),
    "Asia/Beirut": ("2026-03-28T21:59Z",),
    "UTC": ("2026-01-01T00:00Z",),
}
PACED = ("* * * * *", "0 */2 * * *", "0 * * * SAT", "29 * * * */2", "1 * * * 0", "*/20 2,3 * * *")
TIMES = ("30 2 * * *", "0 0 * * *", "15,45 0-3 * * *", "0 3-3/2 * * *", "30 1 * * SUN")


def matches(expression: str, wall: datetime) -> bool:
    return next(iter(CronSim(expression, wall - timedelta(seconds=1))), None) == wall


def wall_of(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None)


@st.composite
def spans(draw: st.DrawFn) -> tuple[ZoneInfo, datetime, datetime]:
    """Return a zone and a span of time, mostly around a change of its clock."""
    name = draw(st.sampled_from(sorted(CHANGES)))
    change = datetime.fromisoformat(draw(st.sampled_from(CHANGES[name])))
    after = change - draw(st.integers(-60, 60 * 30)) * MINUTE
    return ZoneInfo(name), after, after + draw(st.integers(1, 60 * 50)) * MINUTE


@given(span=spans(), expression=st.sampled_from(PACED))
@settings(max_examples=60)
def test_paced_ticks_are_all_instants_at_which_the_clock_matches(
    span: tuple[ZoneInfo, datetime, datetime], expression: str
) -> None:
    zone, after, until = span
    instants = [after + step * MINUTE for step in range(1, (until - after) // MINUTE + 1)]
    expected = [one for one in instants if matches(expression, wall_of(one, zone))]

    found = list(takewhile(lambda tick: tick <= until, ticks(expression, zone, after)))

    assert found == expected
    assert latest_ticks(expression, zone, after, until, 7) == expected[-7:]


@given(span=spans(), expression=st.sampled_from(TIMES))
@settings(max_examples=60)
def test_times_of_day_come_once_each_and_not_before_their_time(
    span: tuple[ZoneInfo, datetime, datetime], expression: str
) -> None:
    zone, after, until = span
    plain = expression.replace("3-3/2", "3")
    begin = after - timedelta(days=2)
    shown: dict[datetime, datetime] = {}
    for step in range((until - begin) // MINUTE + 1):
        shown.setdefault(wall_of(begin + step * MINUTE, zone), begin + step * MINUTE)
    first, last = min(shown), max(shown)
    expected = set()
    for wall in takewhile(lambda one: one <= last, CronSim(plain, first)):
        later = [instant for clock, instant in shown.items() if clock >= wall]
        instant = shown.get(wall) or min(later, default=None)
        if instant is not None and after < instant <= until:
            expected.add(instant)

    found = list(takewhile(lambda tick: tick <= until, ticks(expression, zone, after)))

    assert found == sorted(expected)
    assert latest_ticks(expression, zone, after, until, 3) == found[-3:]


@pytest.mark.parametrize(
    ("expression", "zone", "after"),
    [
        ("1 * * * 0", "America/St_Johns", "2010-11-06T00:00:00+00:00"),
        ("0 * * * SAT", "America/Nuuk", "2024-03-30T00:00:00+00:00"),
        ("0 * * * SAT", "America/Scoresbysund", "2024-03-30T00:00:00+00:00"),
        ("*/30 * * * *", "Pacific/Apia", "2011-12-29T00:00:00+00:00"),
    ],
)
def test_search_at_a_gap_at_midnight_ends(expression: str, zone: str, after: str) -> None:
    begin = datetime.fromisoformat(after)
    forwards = list(islice(ticks(expression, ZoneInfo(zone), begin), 200))
    assert len(forwards) == 200
    assert latest_ticks(expression, ZoneInfo(zone), begin, forwards[-1], 1000) == forwards


def test_search_ends_at_the_last_year() -> None:
    assert list(ticks("0 0 1 1 *", UTC, datetime(9998, 6, 1, tzinfo=UTC))) == [
        datetime(9999, 1, 1, tzinfo=UTC)
    ]


@pytest.mark.parametrize(
    "cron", ["* * * * *", "0 0 1,15 * FRI", "@hourly", "@Daily", "0 0 L * *", "30 0 9 * * 1#2"]
)
def test_cron_that_has_ticks_has_no_fault(cron: str) -> None:
    assert cron_fault(cron) is None


@pytest.mark.parametrize(
    ("cron", "message", "allowed"),
    [
        ("", "it has 0 fields, not 5 or 6", "minute hour day month weekday"),
        ("* * * *", "it has 4 fields, not 5 or 6", "minute hour day month weekday"),
        ("60 * * * *", "minute: '60' is not valid", "0 to 59; *, lists, ranges, steps"),
        ("* * * * MOND", "weekday: 'MOND' is not valid", "0 to 7 or SUN to SAT"),
        ("* * * 13 *", "month: '13' is not valid", "1 to 12 or JAN to DEC"),
        ("0 0 30 2 *", "it never comes", "a day that its months have"),
        ("@fortnightly", "there is no '@fortnightly'", "@hourly, @daily"),
        ("@every 1h", "there is no '@every 1h'", "`every: 1h` instead of `cron`"),
        ("9" * 5000, "longer than 200 characters", "minute hour day month weekday"),
        ("0 0 0/0 * *", "day: '0/0' is not valid", "1 to 31"),
        ("0 0 ? * MON", "day: there is no '?'", "`*`"),
        ("0 22-2 * * *", "hour: the range '22-2' descends", "`22-23,0-2`"),
        ("0 23-2/2 * * *", "hour: the range '23-2/2' descends", "`23,0-2`"),
        ("0 0 * * SAT-MON", "weekday: the range 'SAT-MON' descends", "`SAT,SUN-MON`"),
        ("0 0 * NOV-FEB *", "month: the range 'NOV-FEB' descends", "`NOV-DEC,JAN-FEB`"),
        ("0 0 * * MON#9", "weekday: 'MON#9' is not valid", "MON#2 the second"),
    ],
)
def test_fault_names_the_field_and_what_is_allowed(cron: str, message: str, allowed: str) -> None:
    fault = cron_fault(cron)
    assert fault is not None
    assert fault.message == message
    assert fault.allowed.startswith(allowed) or allowed in fault.allowed
