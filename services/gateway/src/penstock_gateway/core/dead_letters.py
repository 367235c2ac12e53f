"""What a dead letter is about, read from the subject of the message that was given up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from penstock.contracts import subjects
from penstock.contracts.messages import DeadLetter
from penstock.runs.replies import Remedy

_ENGINE: Final = re.compile(r"^(engine|timers)_\d+$")
_RUN: Final = re.compile(r"^(?:run|delta)\.([^.]+)\.(\d+)\.([^.]+)\.")
_TIMER: Final = re.compile(r"^timer\.(?:due|set)\.([^.]+)\.(\d+)\.([^.]+)\.")


@dataclass(frozen=True, slots=True)
class Address:
    """Tenant and run of the message of a dead letter."""

    tenant: str
    shard: int
    run_id: str


def address_of(letter: DeadLetter) -> Address | None:
    """Return whose message it was; ``None`` where its subject does not say."""
    found = _RUN.match(letter.subject) or _TIMER.match(letter.subject)
    return None if found is None else Address(found[1], int(found[2]), found[3])


def remedy_of(letter: DeadLetter) -> Remedy:
    """Return how the work of a message can be done again."""
    if _ENGINE.match(letter.consumer):
        return "reload"
    return "attempt" if step_of(letter) is not None else "none"


def step_of(letter: DeadLetter) -> tuple[str, int] | None:
    """Return the step and the attempt that a runner gave up."""
    if not letter.consumer.startswith("runner_"):
        return None
    try:
        subject = subjects.parse_fact(letter.subject)
    except ValueError:
        return None
    return (subject.step_id, subject.attempt) if subject.event == "step" else None
