"""The parts of a decision before it is published.

They are never changed once they are built; they are not frozen because that costs at each field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

from penstock.contracts.facts import (
    Decision,
    NodeRecord,
    RunEnded,
    SecretRef,
    StateChanged,
    StepResult,
    StepScheduled,
)
from penstock.contracts.json import Json
from penstock.contracts.usage import Reservation


@dataclass(slots=True)
class Output:
    """One message of a decision: what follows ``out.{n}.`` in its subject, and its fact."""

    suffix: str
    fact: StepScheduled | StateChanged | RunEnded


@dataclass(slots=True)
class Planned:
    """A step to schedule, before its position in the decision is known."""

    suffix: str
    pool: str
    """The runner pool that takes it: ``{kind}.{queue}``."""
    step_id: str
    node_id: str
    name: str
    input: Json
    config: Json
    at: datetime
    expires_at: datetime
    secrets: dict[str, tuple[str | SecretRef, ...]] = field(default_factory=dict)
    reserve: Reservation | None = None
    at_most_once: bool = False
    heartbeat_seconds: float | None = None

    def output(self, decision: Decision | None = None) -> Output:
        """Return the message; the first one of a decision carries it."""
        return Output(
            self.suffix,
            StepScheduled(
                occurred_at=self.at,
                decision=decision,
                node_id=self.node_id,
                name=self.name,
                input=self.input,
                config=self.config,
                expires_at=self.expires_at,
                secrets=self.secrets,
                reserve=self.reserve,
                at_most_once=self.at_most_once,
                heartbeat_seconds=self.heartbeat_seconds,
            ),
        )


@dataclass(frozen=True, slots=True)
class Timer:
    """A moment at which ``decide`` must run again."""

    timer_id: str
    due_at: datetime


def timer_at(due_at: datetime) -> Timer:
    """Return the timer of a moment, to the millisecond: all that waits for it shares one."""
    milliseconds = math.ceil(due_at.timestamp() * 1000)
    return Timer(f"at-{milliseconds}", datetime.fromtimestamp(milliseconds / 1000, UTC))


@dataclass(slots=True)
class Decided:
    """Decision ``number``: its messages in order, the first of which carries fence and manifest.

    ``stop`` says that everything still at work for the run is to stop, ``stops`` names single
    steps; ``node_records`` are all node records of the decision. ``used`` counts the scheduled
    steps by runner pool (``{kind}.{queue}``) where room was limited; ``full_pools`` are pools that
    had no room for a step: decide again when they have. With ``full_pools`` alone there are no
    ``outputs``: nothing is to be published.
    """

    number: int
    outputs: tuple[Output, ...]
    timers: tuple[Timer, ...] = ()
    stop: bool = False
    stops: tuple[str, ...] = ()
    node_records: tuple[NodeRecord, ...] = ()
    used: dict[str, int] = field(default_factory=dict)
    full_pools: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Repair:
    """Messages that an earlier decision promised and that are not published yet."""

    number: int
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Expired:
    """An attempt whose time is over, with the failed outcome to record on behalf of its runner."""

    step_id: str
    attempt: int
    result: StepResult
