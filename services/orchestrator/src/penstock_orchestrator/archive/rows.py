"""What the projector keeps in memory of an open run, and what it writes in one transaction.

Rows are tuples in the order of the columns in ``statements.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from penstock.contracts.facts import RunStatus, Usage
from penstock.contracts.subjects import FactSubject

Row = tuple[Any, ...]
Key = tuple[str, str]
"""Tenant and run id."""


class Addressed(NamedTuple):
    """A message of the log whose subject is a fact's; its body has not been read."""

    seq: int
    subject_text: str
    subject: FactSubject
    body: bytes


class Unreadable(NamedTuple):
    """A message that is no fact, and why."""

    message: Addressed
    reason: str


@dataclass(slots=True)
class StepRow:
    """One step at its latest attempt."""

    step_id: str
    kind: str
    queue: str
    node_id: str
    name: str
    decision: int
    attempt: int
    status: str
    scheduled_at: Any
    started_at: Any = None
    ended_at: Any = None
    output: str | None = None
    output_truncated: bool = False
    error: str | None = None
    usage: str | None = None

    def row(self, key: Key) -> Row:
        """Return the row, in the order of ``statements.STEPS``."""
        return (
            *key,
            self.step_id,
            self.kind,
            self.queue,
            self.node_id,
            self.name,
            self.decision,
            self.attempt,
            self.status,
            self.scheduled_at,
            self.started_at,
            self.ended_at,
            self.output,
            self.output_truncated,
            self.error,
            self.usage,
        )


@dataclass(slots=True)
class RunRow:
    """What is to be known of a run to go on with it."""

    last_seq: int = 0
    updated_at: Any = None
    status: str = RunStatus.CREATED.value
    output: str | None = None
    error: str | None = None
    ended_at: Any = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unknown_price: bool = False
    model_calls: int = 0
    seq: int | None = None
    session_id: str | None = None
    stored: bool = False
    beginning: Row | None = None
    """The columns from ``seq`` on, until they are stored."""
    steps: dict[str, StepRow] = field(default_factory=dict)
    changed_steps: set[str] = field(default_factory=set)

    def progress(self, key: Key) -> Row:
        """Return the row, in the order of ``statements.RUN_PROGRESS``."""
        return (
            *key,
            self.last_seq,
            self.updated_at,
            self.status,
            self.output,
            self.error,
            self.ended_at,
            self.input_tokens,
            self.output_tokens,
            self.cost_usd,
            self.unknown_price,
            self.model_calls,
        )

    def touch(self, at: Any) -> None:
        """Note a change that happened at ``at``."""
        if self.updated_at is None or at > self.updated_at:
            self.updated_at = at

    def spend(self, usage: Usage) -> None:
        """Add what a call cost; once the run has ended, its end says what it cost."""
        if self.ended_at is None:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
            self.cost_usd += usage.cost_usd
            self.unknown_price = self.unknown_price or usage.unknown_price
            self.model_calls += usage.model_calls


NO_BEGINNING: Final[Row] = (None,) * 11


@dataclass(slots=True)
class Batch:
    """Rows to be written in one transaction, together with the sequence that they reach."""

    last_seq: int
    facts: list[Row] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)
    run_progress: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)
    messages: list[Row] = field(default_factory=list)
    usage: list[Row] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    def parts(self) -> tuple[list[Row], ...]:
        """Return the rows in the order of ``statements.CHANGES``."""
        return (
            self.facts,
            self.runs,
            self.run_progress,
            self.steps,
            self.sessions,
            self.messages,
            self.usage,
        )
