"""What must be true after chaos, whatever happened: read from the log and the ledger.

A repeated effect is explained by a fact and by nothing else: between the two beginnings the first
one's process was killed, stopped or (by its own record) stood still, or the bus was hit; or the
attempt before is recorded as failed. No grace is added to any of these times.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from penstock.bus.claims import Claims
from penstock.bus.connection import connect
from penstock.bus.reader import LogReader, Stored
from penstock.contracts import subjects
from penstock.contracts.facts import RunEnded, RunInvoked, RunStatus, StepResult
from penstock.runs.events import events_of
from penstock.runs.state import Entry
from penstock.settings import CoreSettings


@dataclass(frozen=True)
class Span:
    """Unix times between which something was not as it should be."""

    since: float
    until: float

    def meets(self, since: float, until: float) -> bool:
        """Tell whether any moment belongs to both."""
        return self.since <= until and since <= self.until

    def overlap(self, since: float, until: float) -> float:
        """Return how many seconds belong to both."""
        return max(0.0, min(self.until, until) - max(self.since, since))


@dataclass
class Havoc:
    """What was done to the stack, as far as it explains a repeated effect."""

    runners: dict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    """By pid: stopped from when to when; killed: until for ever."""
    bus: list[Span] = field(default_factory=list)
    """From a blow to a server of the bus until it answered again."""

    def killed(self, pid: int, at: float) -> None:
        """Note that a process was killed."""
        self.runners[pid].append(Span(at, float("inf")))

    def stopped(self, pid: int, since: float) -> None:
        """Note that a process was stopped and goes on now."""
        self.runners[pid].append(Span(since, time.time()))


@dataclass(frozen=True)
class Effect:
    """One time that a handler ran, to its effect."""

    key: str
    attempt: int
    pid: int
    began_at: float
    at: float
    deliveries: int = 0
    """How often the bus had delivered the attempt, by its own count; 0: unknown."""


@dataclass
class Ledger:
    """What the runners themselves wrote down."""

    effects: list[Effect]
    begins: list[Effect]
    """All that began; ``at`` is infinite where no effect followed."""
    stalls: dict[int, list[Span]]


def read_ledger(path: Path) -> Ledger:
    """Read what the runners wrote."""
    open_: dict[tuple[str, int, int], list[tuple[float, int]]] = defaultdict(list)
    ledger = Ledger([], [], defaultdict(list))
    with path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            pid, at = int(line["pid"]), float(line["at"])
            if line["what"] == "stall":
                ledger.stalls[pid].append(Span(float(line["since"]), at))
                continue
            place = (str(line["key"]), int(line["attempt"]), pid)
            if line["what"] == "begin":
                open_[place].append((at, int(line.get("deliveries", 0))))
            else:
                began_at, deliveries = open_[place].pop(0)
                ledger.effects.append(Effect(*place, began_at, at, deliveries))
    ledger.begins += ledger.effects
    for place, begins in open_.items():
        ledger.begins += [Effect(*place, at, float("inf"), count) for at, count in begins]
    return ledger


async def read_log(settings: CoreSettings) -> dict[str, list[Stored]]:
    """Read the whole log as stored, by run."""
    bus = await connect(settings, name="verdict")
    reader = LogReader(bus, Claims(bus, settings.claim_threshold_bytes))
    runs: dict[str, list[Stored]] = defaultdict(list)
    async for page in reader.pages(subjects.RUNS, subjects.RUN_SPACE):
        for message in page:
            runs[message.subject.split(".", 4)[3]].append(message)
    await bus.close()
    return runs


async def decoded(
    settings: CoreSettings, runs: dict[str, list[Stored]]
) -> AsyncIterator[tuple[str, list[Entry]]]:
    """Yield each run with its facts; only one run's facts are held at a time."""
    bus = await connect(settings, name="verdict")
    reader = LogReader(bus, Claims(bus, settings.claim_threshold_bytes))
    try:
        for run_id, messages in runs.items():
            yield run_id, [await reader.entry(message) for message in messages]
    finally:
        await bus.close()


def faults_of_run(entries: list[Entry]) -> list[str]:
    """Return what is wrong with one run's log; an empty list if nothing is."""
    faults: list[str] = []
    invokes = [entry for entry in entries if isinstance(entry.fact, RunInvoked)]
    ends = [entry for entry in entries if isinstance(entry.fact, RunEnded)]
    if len(invokes) != 1:
        faults.append(f"{len(invokes)} invokes")
    if len(ends) != 1:
        faults.append(f"{len(ends)} ends")
    else:
        faults += [
            f"ended {entry.fact.status}: {entry.fact.error}"
            for entry in ends
            if isinstance(entry.fact, RunEnded) and entry.fact.status is not RunStatus.DONE
        ]
    scheduled: dict[str, int] = defaultdict(int)
    outcomes: dict[tuple[str, int], int] = defaultdict(int)
    succeeded: dict[str, int] = defaultdict(int)
    first_messages: dict[int, int] = defaultdict(int)
    for entry in entries:
        subject, fact = entry.subject, entry.fact
        if subject.event == "step":
            scheduled[subject.step_id] += 1
        if isinstance(fact, StepResult):
            outcomes[subject.step_id, subject.attempt] += 1
            succeeded[subject.step_id] += fact.status == "succeeded"
        if getattr(fact, "decision", None) is not None:
            first_messages[subject.decision] += 1
    faults += [f"{count} outcomes of {step}" for step, count in outcomes.items() if count != 1]
    faults += [f"{step} succeeded {count} times" for step, count in succeeded.items() if count > 1]
    faults += [f"{step} never succeeded" for step in scheduled if not succeeded[step]]
    faults += [f"decision {n} made {c} times" for n, c in first_messages.items() if c != 1]
    decisions = {entry.subject.decision for entry in entries if entry.subject.decision}
    faults += [f"decision {n} has no first message" for n in decisions if not first_messages[n]]
    return faults


def event_ids(entries: list[Entry]) -> list[int]:
    """Return the ids that a follower of the run must have seen, in order."""
    return [event.id for entry in entries for event in events_of(entry) if event.id is not None]


def failed_attempts(run_id: str, entries: list[Entry]) -> set[tuple[str, int]]:
    """Return idempotency key and attempt of each attempt that is recorded as failed."""
    return {
        (f"{run_id}:{entry.subject.step_id}", entry.subject.attempt)
        for entry in entries
        if isinstance(entry.fact, StepResult) and entry.fact.status == "failed"
    }


def succeeded_keys(run_id: str, entries: list[Entry], name: str) -> set[str]:
    """Return the idempotency keys of the tool's steps that are recorded as succeeded."""
    return {
        f"{run_id}:{entry.subject.step_id}"
        for entry in entries
        if isinstance(entry.fact, StepResult)
        and entry.fact.status == "succeeded"
        and entry.fact.name == name
    }


@dataclass
class Repetitions:
    """How often an effect was had again, by what explains it."""

    by_bus: int = 0
    by_blow: int = 0
    by_stall: int = 0
    by_failure: int = 0
    unexplained: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of them."""
        explained = self.by_bus + self.by_blow + self.by_stall + self.by_failure
        return explained + len(self.unexplained)


def explain(
    ledger: Ledger, havoc: Havoc, failed: set[tuple[str, int]], ack_wait_seconds: float
) -> Repetitions:
    """Ask of each effect but the first of its step what explains that there is another.

    Args:
        ledger: What really ran.
        havoc: What was done.
        failed: Key and attempt of what the log says has failed.
        ack_wait_seconds: Silence after which the bus delivers again. A runner at work is silent
            for half of it at most, so it must have stood still for the other half.
    """
    found = Repetitions()
    for key, effects in _by_key(ledger.effects).items():
        attempts = sorted({effect.attempt for effect in effects})
        for attempt in attempts:
            if attempt > 1:
                if (key, attempt - 1) in failed:
                    found.by_failure += 1
                else:
                    found.unexplained.append(f"{key}: attempt {attempt} without a failed one")
            same = [effect for effect in effects if effect.attempt == attempt]
            for before, after in pairwise(sorted(same, key=lambda effect: effect.began_at)):
                _explain_redelivery(before, after, ledger, havoc, found, ack_wait_seconds)
    return found


def _explain_redelivery(
    before: Effect,
    after: Effect,
    ledger: Ledger,
    havoc: Havoc,
    found: Repetitions,
    ack_wait_seconds: float,
) -> None:
    since, until = before.began_at, after.began_at
    # Who began first may have stood still with the message in its socket until shortly before:
    # the bus, which had heard nothing for the whole ack_wait, delivered it to the other one.
    stood_still = min(since, until - ack_wait_seconds)
    # Who began second may have been sent it first: then it did nothing for the whole ack_wait
    # that ended when it was sent to the other one, and found it in its socket afterwards.
    waited = (since - ack_wait_seconds, since)

    sent_first = any(span.meets(*waited) for span in havoc.runners.get(after.pid, ()))
    silent = any(span.meets(stood_still, until) for span in havoc.runners.get(before.pid, ()))
    if silent or sent_first:
        found.by_blow += 1
    elif any(span.meets(since, until) for span in havoc.bus):
        found.by_bus += 1
    elif (
        sum(span.overlap(since, until) for span in ledger.stalls.get(before.pid, ()))
        >= ack_wait_seconds / 2
    ):
        found.by_stall += 1
    else:
        found.unexplained.append(f"{before} then {after}")


def _by_key(effects: Iterable[Effect]) -> dict[str, list[Effect]]:
    grouped: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        grouped[effect.key].append(effect)
    return {key: group for key, group in grouped.items() if len(group) > 1 or group[0].attempt > 1}
