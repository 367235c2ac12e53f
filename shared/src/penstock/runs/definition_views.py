"""Definitions and schedules as clients see them.

Apart from ``replies``, because schedules need cronsim (extra ``runs``).
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime

from penstock.contracts.facts import Record
from penstock.contracts.rpc import Definition, Version
from penstock.contracts.schedules import ScheduleFailure


class DefinitionItems(Record):
    """A page of definitions; ``next_cursor`` is absent on the last."""

    items: tuple[Definition, ...]
    next_cursor: str | None = None


class VersionItems(Record):
    """A page of versions, the newest first; ``next_cursor`` is absent on the last."""

    items: tuple[Version, ...]
    next_cursor: str | None = None


class ScheduleState(Record):
    """State of a published schedule: its next tick, and the outcome of earlier ones."""

    name: str
    target: str
    """The definition that it starts, with version or alias if the schedule names one."""
    paused: bool
    paused_by: Literal["document", "operator"] | None = None
    reason: str = ""
    """Reason of the operator who paused it."""
    changed_by: str | None = None
    """Key of the operator who paused or resumed it last."""
    changed_at: AwareDatetime | None = None
    next_tick: AwareDatetime | None = None
    """The next tick; a paused schedule skips it."""
    last_tick: AwareDatetime | None = None
    last_run_id: str | None = None
    fired: int = 0
    left_out: int = 0
    pending: int = 0
    """Ticks whose run is about to start."""
    failure: ScheduleFailure | None = None
    """Reason why the latest tick started no run."""


class Tick(Record):
    """One tick of a schedule."""

    tick: AwareDatetime
    """In UTC."""
    scheduled_at: AwareDatetime
    """The same instant in the time zone of the schedule."""
    due_at: AwareDatetime
    """Start of its run: later than the tick if the schedule has jitter."""


class Ticks(Record):
    """Ticks in order."""

    items: tuple[Tick, ...]
