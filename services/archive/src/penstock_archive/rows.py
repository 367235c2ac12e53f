"""What the projector keeps in memory of an open run, and what it writes in one transaction.

Rows are tuples in the order of the columns of their tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
from pydantic_core import from_json

from penstock.contracts.facts import RunStatus, Usage
from penstock.contracts.structs import convert, decode
from penstock.contracts.subjects import FactSubject
from penstock.runs.profiles import Attempt
from penstock_archive.instants import to_micros

Row = tuple[Any, ...]
Key = tuple[str, str]
"""Tenant and run id."""

_OPEN: Final = frozenset({"planned", "scheduled", "waiting"})


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
    model: str | None = None
    earlier: str | None = None
    """JSON: the attempts before this one."""

    @property
    def open(self) -> bool:
        """Whether an outcome is still to come."""
        return self.status in _OPEN

    def row(self, key: Key) -> Row:
        """Return the row, in the order of ``tables.steps``."""
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
            self.model,
            self.earlier,
        )

    def attempts(self) -> list[Attempt]:
        """Return all attempts at the step, for its run's profile."""
        known = self._earlier()
        if self.status != "planned" and self.decision and self.attempt not in known:
            known[self.attempt] = self._latest()
        return list(known.values())

    def earlier_text(self) -> str | None:
        """Return the JSON of all attempts so far, for a step that is now tried again."""
        return _attempts_text(self.attempts())

    def add_late(
        self, attempt: int, started: int, ended: int, usage: Usage | None, model: str | None
    ) -> None:
        """Keep the outcome of an attempt that came after the run had ceased to wait for it."""
        known = self._earlier()
        before = known.get(attempt) or self._latest()
        scheduled = before.scheduled if before.attempt == attempt else None
        known[attempt] = before._replace(
            attempt=attempt,
            scheduled=scheduled,
            started=started,
            ended=ended,
            usage=usage,
            model=model,
        )
        self.earlier = _attempts_text(known.values())

    def add_superseded(self, attempt: int, scheduled: int) -> None:
        """Keep an attempt whose message came after that of a later one."""
        known = self._earlier()
        before = known.get(attempt) or Attempt(
            self.step_id, self.node_id, self.kind, self.name, attempt, None, None, None
        )
        known[attempt] = before._replace(scheduled=scheduled)
        self.earlier = _attempts_text(known.values())

    def _earlier(self) -> dict[int, Attempt]:
        return {
            number: Attempt(
                self.step_id,
                self.node_id,
                self.kind,
                self.name,
                number,
                scheduled,
                started,
                ended,
                None if usage is None else convert(Usage, usage),
                model,
            )
            for number, scheduled, started, ended, usage, model in (
                from_json(self.earlier) if self.earlier is not None else ()
            )
        }

    def _latest(self) -> Attempt:
        return Attempt(
            self.step_id,
            self.node_id,
            self.kind,
            self.name,
            self.attempt,
            as_micros(self.scheduled_at),
            as_micros(self.started_at),
            as_micros(self.ended_at),
            None if self.usage is None else decode(Usage, self.usage),
            self.model,
        )


def _attempts_text(attempts: Iterable[Attempt]) -> str | None:
    rows = [
        [one.attempt, one.scheduled, one.started, one.ended, one.usage, one.model]
        for one in attempts
    ]
    return msgspec.json.encode(rows).decode() if rows else None


def as_micros(instant: Any) -> int | None:
    """Return a time, in whichever form the store takes it, as microseconds since 1970."""
    return to_micros(instant) if isinstance(instant, datetime) else instant


@dataclass(slots=True)
class RunRow:
    """Values of a run that its further projection needs."""

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
    attempts: int = 0
    decisions: int = 0
    paused: bool = False
    pending: str | None = None
    """JSON: ids of the open node records that something outside settles."""
    error_code: str | None = None
    profile: str | None = None
    seq: int | None = None
    session_id: str | None = None
    created_at: Any = None
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
            self.attempts,
            self.decisions,
            self.paused,
            self.pending,
            self.error_code,
            self.profile,
        )

    def settle_status(self) -> None:
        """Say where the run is, as ``RunState.status`` does."""
        if self.ended_at is not None:
            return
        if self.paused:
            self.status = RunStatus.PAUSED.value
        elif not self.decisions:
            self.status = RunStatus.CREATED.value
        elif self.pending is not None and all(
            step.status == "waiting" or not step.open for step in self.steps.values()
        ):
            self.status = RunStatus.WAITING.value
        else:
            self.status = RunStatus.RUNNING.value

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
            self.attempts += usage.steps


NO_BEGINNING: Final[Row] = (None,) * 14


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
    signals: list[Row] = field(default_factory=list)
    claims: list[Row] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    revived: list[Row] = field(default_factory=list)
    """Runs that were deleted and asked for again: their tombstones go."""
    refused: dict[Key, int] = field(default_factory=dict)
    """Deleted runs with later facts, and the sequence of the last one."""
    replaces_after: int | None = None
    """In a rebuild: facts after this sequence and up to ``last_seq`` are written anew."""

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
            self.signals,
            self.claims,
        )
