"""What a decision is made of, before it is published."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.contracts.facts import RunEnded, StateChanged, StepResult, StepScheduled, Wait


@dataclass(frozen=True, slots=True)
class Output:
    """One message of a decision: what follows ``out.{n}.`` in its subject, and its fact."""

    suffix: str
    fact: StepScheduled | StateChanged | RunEnded


@dataclass(frozen=True, slots=True)
class Decided:
    """Decision ``number``: its messages in order, the first of which carries fence and manifest.

    ``waits`` need timers. ``stop`` says that runners still at work for the run are to stop.
    """

    number: int
    outputs: tuple[Output, ...]
    waits: tuple[Wait, ...] = ()
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Repair:
    """Messages that an earlier decision promised and that nobody has published yet."""

    number: int
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Expired:
    """An attempt whose time is over: the failed outcome to state in its runner's stead."""

    step_id: str
    attempt: int
    result: StepResult
