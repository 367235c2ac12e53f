"""Schedules as documents: targets, times, and what can be wrong with that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, StringConstraints

from penstock.contracts.cron import MAX_LENGTH, cron_fault
from penstock.contracts.envelope import BoundedTime
from penstock.contracts.errors import ErrorDetail, finding
from penstock.contracts.schedules import ScheduleRecord, timezone_fault
from penstock_registry.core.expression_scope import ExpressionScope, template_faults
from penstock_registry.core.faults import choice_faults, known_faults
from penstock_registry.core.parts import ChildLimitsSpec, Duration, Part
from penstock_registry.core.places import at

MAX_JITTER_SECONDS: Final = 3600.0
MIN_EVERY_SECONDS: Final = 1.0
YEARS: Final = range(1971, 2200)
"""In which a schedule may start and end."""
_INPUT: Final = ExpressionScope.of("schedule", schedule=("name", "tick", "scheduled_at"))

Target = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}(@[A-Za-z0-9_-]{1,64})?$")]
"""``name``, or ``name@version`` or ``name@alias``."""


class ScheduleSpec(Part):
    """A schedule: a target and its times. Exactly one of ``cron`` and ``every``."""

    exactly_one = ("cron", "every")

    target: Target
    """The agent, network or workflow; with ``@version`` or ``@alias`` just that one."""
    cron: Annotated[str, StringConstraints(min_length=1, max_length=MAX_LENGTH)] | None = None
    """Five fields (minute, hour, day of month, month, day of week), six with seconds before them,
    or ``@hourly``, ``@daily``, ``@weekly``, ``@monthly``, ``@yearly``."""
    every: Duration | None = None
    """The interval between ticks, counted from ``starts_at`` or from 1970-01-01T00:00Z."""
    timezone: str = "UTC"
    """IANA name of the zone whose clock ``cron`` is read on."""
    input: JsonValue = None
    """Template of the input over ``schedule.name``, ``schedule.tick`` (UTC) and
    ``schedule.scheduled_at`` (the same on the schedule's clock)."""
    missed: Literal["skip", "once", "all"] = "skip"
    """The policy for ticks at which nothing was there to start them: none, the latest, each."""
    missed_limit: int = Field(default=100, ge=1, le=1000)
    """How many of them ``all`` makes up for; the latest ones."""
    grace: Duration = 30.0
    """A tick that is started so much too late is late, not missed."""
    starts_at: BoundedTime | None = None
    """No tick before this."""
    ends_at: BoundedTime | None = None
    """No tick from here on."""
    jitter: Duration | None = None
    """Spreads the starts over so long after each tick; which moment, name and tick decide."""
    paused: bool = False
    """Ticks pass by unused."""
    tags: dict[str, str] = {}
    """Tags of the runs, besides ``schedule``."""
    limits: ChildLimitsSpec = ChildLimitsSpec()
    """Limits of each run."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher goes first where runs queue for the same runners."""

    @property
    def target_name(self) -> str:
        """The target without its version or alias."""
        return self.target.partition("@")[0]


def schedule_faults(spec: ScheduleSpec, targets: Iterable[str], path: str) -> Iterator[ErrorDetail]:
    """Yield every fault of a schedule.

    Args:
        spec: The schedule.
        targets: Names of what can be started.
        path: Where it stands.
    """
    kinds = "agent, network or workflow"
    yield from known_faults(spec.target_name, targets, kinds, at(path, "target"))
    yield from choice_faults(spec, path)
    if spec.cron is not None and (wrong := cron_fault(spec.cron)) is not None:
        yield finding(at(path, "cron"), *wrong)
    if (meant := timezone_fault(spec.timezone)) is not None:
        message = f"there is no time zone {spec.timezone[:80]!r}"
        yield finding(at(path, "timezone"), message, meant)
    if spec.every is not None and spec.every < MIN_EVERY_SECONDS:
        message = f"every {spec.every:g} s is too often"
        yield finding(at(path, "every"), message, ">= 1s")
    if spec.jitter is not None:
        longest = min(MAX_JITTER_SECONDS, spec.every or MAX_JITTER_SECONDS)
        if spec.jitter > longest:
            message, allowed = f"got {spec.jitter:g} s", f"<= {longest:g} s"
            yield finding(at(path, "jitter"), message, allowed)
    for field in ("starts_at", "ends_at"):
        instant = getattr(spec, field)
        if instant is not None and instant.year not in YEARS:
            message, allowed = f"got the year {instant.year}", f"{YEARS[0]} to {YEARS[-1]}"
            yield finding(at(path, field), message, allowed)
    if spec.starts_at is not None and spec.ends_at is not None and spec.ends_at <= spec.starts_at:
        message = "it ends before it starts"
        yield finding(at(path, "ends_at"), message, "after starts_at")
    yield from template_faults(spec.input, at(path, "input"), _INPUT)


def schedule_record(name: str, spec: ScheduleSpec) -> ScheduleRecord:
    """Return what the engines need to know of a schedule."""
    target, _, selector = spec.target.partition("@")
    return ScheduleRecord(
        name=name,
        target=target,
        selector=selector or None,
        cron=spec.cron,
        every_seconds=spec.every,
        timezone=spec.timezone,
        input=spec.input,
        missed=spec.missed,
        missed_limit=spec.missed_limit,
        grace_seconds=spec.grace,
        starts_at=spec.starts_at,
        ends_at=spec.ends_at,
        jitter_seconds=spec.jitter or 0.0,
        paused=spec.paused,
        tags=spec.tags,
        limits=spec.limits.limits(),
        priority=spec.priority,
    )
