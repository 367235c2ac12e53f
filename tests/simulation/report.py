"""What is said of seeds: a failing one with its last events, all of them in a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.faults import KINDS
from tests.simulation.world import Verdict


@dataclass
class Totals:
    """Sums over seeds."""

    seeds: int = 0
    runs: int = 0
    facts: int = 0
    steps: int = 0
    duplicates: int = 0
    redelivered: int = 0
    virtual_seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Add a seed."""
        self.seeds += 1
        self.runs += verdict.runs
        self.facts += verdict.facts
        self.steps += verdict.steps
        self.duplicates += verdict.duplicates
        self.redelivered += verdict.redelivered
        self.virtual_seconds += verdict.virtual_seconds
        self.statuses += verdict.statuses
        self.faults += verdict.faults
        self.kinds += verdict.kinds
        if not verdict.ok:
            self.failed.append(verdict.seed)

    def table(self, seconds: float) -> str:
        """Return all sums as a table."""
        crashes = self.faults["engine_crash"] + self.faults["runner_crash"]
        rows: list[tuple[str, object]] = [
            ("seeds", self.seeds),
            ("failed", f"{len(self.failed)} {sorted(self.failed)[:10]}" if self.failed else 0),
            ("runs", self.runs),
            *((f"runs {status}", n) for status, n in sorted(self.statuses.items())),
            ("facts", self.facts),
            ("crashes", crashes),
            ("duplicates refused", self.duplicates),
            ("redeliveries", self.redelivered),
            ("callbacks", self.steps),
            *((f"nodes: {kind}", n) for kind, n in sorted(self.kinds.items())),
            *((f"faults: {kind}", self.faults[kind]) for kind in KINDS),
            ("virtual hours", round(self.virtual_seconds / 3600, 1)),
            ("seconds", round(seconds, 1)),
        ]
        return "".join(f"| {name:32} | {value!s:>12} |\n" for name, value in rows)


def replay_command(seed: int) -> str:
    """Return the command that runs one seed again."""
    return f'make test-simulation ARGS="--seed {seed}"'


def failure_text(verdict: Verdict, *, traced: int = 60) -> str:
    """Return what did not hold, the last events, and how to see it again."""
    events = "\n".join(verdict.trace[-traced:]) + "\n" if traced else ""
    broken = "\n".join(f"  {text}" for text in verdict.broken[:10])
    return (
        f"{events}seed {verdict.seed} fails:\n{broken}\n"
        f"run it again: {replay_command(verdict.seed)}\n"
    )
