"""What must be true after chaos, whatever happened: read from the log and the ledger."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from penstock.bus.claims import Claims
from penstock.bus.connection import connect
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.events import events_of
from penstock.contracts.facts import RunEnded, RunInvoked, RunStatus, StepResult
from penstock.contracts.state import Entry
from penstock.settings import CoreSettings


@dataclass
class Havoc:
    """What was done to the stack, as far as it explains a repeated effect."""

    broken: set[int] = field(default_factory=set)
    """Pids of runners that were killed or stopped."""
    bus_down: list[tuple[float, float]] = field(default_factory=list)
    """Unix times between which the bus was away (or had just come back)."""


async def read_log(nats_url: str) -> dict[str, list[Entry]]:
    """Read the whole log, by run."""
    settings = CoreSettings(nats_url=nats_url)
    bus = await connect(settings, name="verdict")
    reader = LogReader(bus, Claims(bus, settings.claim_threshold_bytes))
    runs: dict[str, list[Entry]] = defaultdict(list)
    async for page in reader.pages(subjects.RUNS, subjects.RUN_SPACE):
        for message in page:
            entry = await reader.entry(message)
            runs[entry.subject.run_id].append(entry)
    await bus.close()
    return runs


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
    outcomes: dict[tuple[str, int], int] = defaultdict(int)
    succeeded: dict[str, int] = defaultdict(int)
    for entry in entries:
        if isinstance(entry.fact, StepResult):
            outcomes[entry.subject.step_id, entry.subject.attempt] += 1
            succeeded[entry.subject.step_id] += entry.fact.status == "succeeded"
    faults += [f"{count} outcomes of {step}" for step, count in outcomes.items() if count != 1]
    faults += [f"{step} succeeded {count} times" for step, count in succeeded.items() if count > 1]
    first_messages: dict[int, int] = defaultdict(int)
    for entry in entries:
        decision = getattr(entry.fact, "decision", None)
        if decision is not None:
            first_messages[entry.subject.decision] += 1
    faults += [f"decision {n} made {c} times" for n, c in first_messages.items() if c != 1]
    return faults


def open_at(entries: list[Entry], moment: datetime) -> bool:
    """Tell whether the run was asked for before ``moment`` and ended after it."""
    facts = [entry.fact for entry in entries]
    asked = any(isinstance(f, RunInvoked) and f.occurred_at <= moment for f in facts)
    return asked and not any(isinstance(f, RunEnded) and f.occurred_at <= moment for f in facts)


def event_ids(entries: list[Entry]) -> list[int]:
    """Return the ids that a follower of the run must have seen, in order."""
    return [event.id for entry in entries for event in events_of(entry) if event.id is not None]


def effects(ledger: Path) -> int:
    """Return how many effects there were, repeated ones included."""
    return len(ledger.read_text().splitlines())


def unexplained_effects(ledger: Path, havoc: Havoc, runs: dict[str, list[Entry]]) -> list[str]:
    """Return the repeated effects that nothing we did explains.

    An effect may be repeated if the process that had it before was killed or stopped (its outcome
    was not recorded), if the bus was away in between (its acknowledgement was lost), or if the
    attempt before is recorded as failed.
    """
    lines: dict[str, list[dict[str, float]]] = defaultdict(list)
    for text in ledger.read_text().splitlines():
        line = json.loads(text)
        lines[line["key"]].append(line)
    return [
        f"{key}: {before} then {after}"
        for key, seen in lines.items()
        for before, after in pairwise(sorted(seen, key=lambda line: line["at"]))
        if not _explained(key, before, after, havoc, runs)
    ]


def _explained(
    key: str,
    before: dict[str, float],
    after: dict[str, float],
    havoc: Havoc,
    runs: dict[str, list[Entry]],
) -> bool:
    if int(before["pid"]) in havoc.broken or int(after["pid"]) in havoc.broken:
        return True
    if any(before["at"] <= up and down <= after["at"] for down, up in havoc.bus_down):
        return True
    run_id, step_id = key.split(":")
    return any(
        isinstance(entry.fact, StepResult)
        and entry.subject.step_id == step_id
        and entry.subject.attempt == int(before["attempt"])
        and entry.fact.status == "failed"
        for entry in runs[run_id]
    )
