"""Rows of one transaction, and how they follow from a run's states and facts.

Rows are tuples in the order of the columns of their tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from msgspec.structs import astuple
from pydantic_core import to_json

from penstock.contracts.facts import RunInvoked, SignalReceived, StepResult
from penstock.contracts.json import Json
from penstock.contracts.structs import WireStruct, encode
from penstock.contracts.subjects import FactSubject
from penstock.contracts.usage import Usage
from penstock.runs.profiles import priced, provider_of
from penstock.runs.state import RunState, StepState

Row = tuple[Any, ...]
Key = tuple[str, str]
"""Tenant and run id."""

INLINE_BYTES: Final = 16_384
"""Inputs and outputs of runs above this are not repeated in ``runs``."""
PREVIEW_CHARACTERS: Final = 2_048
"""What ``steps`` shows of an output; the whole is in ``facts``."""


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
class Batch:
    """Rows to be written in one transaction, together with the sequence that they reach."""

    last_seq: int
    facts: list[Row] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)
    run_progress: list[Row] = field(default_factory=list)
    traits: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    sessions: dict[Key, Row] = field(default_factory=dict)
    """By tenant and session id."""
    messages: list[Row] = field(default_factory=list)
    usage: list[Row] = field(default_factory=list)
    signals: list[Row] = field(default_factory=list)
    claims: list[Row] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    revived: list[Key] = field(default_factory=list)
    """Runs that were deleted and asked for again: their tombstones go."""
    refused: dict[Key, int] = field(default_factory=dict)
    """Deleted runs with later facts, and the sequence of the last one."""
    replaces_after: int | None = None
    """In a rebuild: facts after this sequence and up to ``last_seq`` are written anew."""
    nul: bool = False
    """Whether a fact holds U+0000, which PostgreSQL's texts cannot."""

    def parts(self) -> tuple[list[Row], ...]:
        """Return the rows in the order of ``statements.CHANGES``."""
        derived = (
            self.runs,
            self.run_progress,
            self.traits,
            self.steps,
            list(self.sessions.values()),
            self.messages,
            self.usage,
            self.signals,
            self.claims,
        )
        return (self.facts, *(map(_clean, derived) if self.nul else derived))


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Makes rows for one database."""

    instant: Callable[[datetime], Any]
    """Turns a time into what the database's columns take."""

    def progress(self, state: RunState) -> Row:
        """Return a row of ``runs``, without its beginning."""
        ended = state.ended
        error = ended.error if ended is not None else None
        return (
            state.tenant,
            state.run_id,
            state.last_seq,
            self._instant(state.updated_at),
            state.status.value,
            _inline(ended.output) if ended is not None else None,
            _struct_json(error),
            self._instant(ended.occurred_at) if ended is not None else None,
            *astuple(state.spent),
            error.code if error is not None else None,
            None,  # the profile is computed again
        )

    def beginning(self, invoked: RunInvoked | None, seq: int) -> Row:
        """Return the columns of ``runs`` that follow from the invoking fact at ``seq``."""
        if invoked is None:
            return _NO_BEGINNING
        parent, forked_from = invoked.parent, invoked.forked_from
        return (
            seq,
            invoked.name,
            invoked.kind.value,
            invoked.version,
            invoked.plan_digest,
            invoked.session_id,
            invoked.trigger.value,
            invoked.requested_by,
            _tags(invoked.tags) if invoked.tags else None,
            _inline(invoked.input),
            self.instant(invoked.occurred_at),
            parent.run_id if parent is not None else None,
            parent.root_run_id if parent is not None else None,
            forked_from.run_id if forked_from is not None else None,
        )

    def step(self, key: Key, step: StepState) -> Row:
        """Return a row of ``steps``."""
        instant, output = self.instant, _json(step.output)
        started_at, ended_at = step.started_at, step.ended_at
        return (
            *key,
            step.step_id,
            step.kind.value,
            step.queue,
            step.node_id,
            step.name,
            step.decision,
            step.attempt,
            step.status,
            instant(step.decided_at),
            instant(started_at) if started_at is not None else None,
            instant(ended_at) if ended_at is not None else None,
            output[:PREVIEW_CHARACTERS] if output is not None else None,
            output is not None and len(output) > PREVIEW_CHARACTERS,
            _struct_json(step.error) if step.error is not None else None,
            _struct_json(step.usage) if step.usage is not None else None,
            step.model,
        )

    def _instant(self, at: datetime | None) -> Any:
        return None if at is None else self.instant(at)


def usage_row(item: Addressed, fact: StepResult, usage: Usage, at: Any) -> Row:
    """Return the row of ``usage`` for an attempt at a step."""
    subject, provider = item.subject, provider_of(fact.model)
    return (
        item.seq,
        subject.tenant,
        subject.run_id,
        subject.step_id,
        subject.attempt,
        fact.name,
        provider,
        fact.model or "",
        *astuple(priced(usage, provider)),
        at,
    )


def signal_row(item: Addressed, fact: SignalReceived, at: Any) -> Row:
    """Return the row of ``signals`` for a signal."""
    subject = item.subject
    return (
        item.seq,
        subject.tenant,
        subject.run_id,
        subject.step_id,
        fact.kind,
        fact.name,
        fact.target,
        fact.from_run,
        fact.sent_by,
        _inline(fact.payload),
        at,
    )


_NO_BEGINNING: Final[Row] = (None,) * 14


def _json(value: Json) -> str | None:
    return None if value is None else to_json(value).decode()


def _inline(value: Json) -> str | None:
    text = _json(value)
    return text if text is None or len(text) <= INLINE_BYTES else None


def _struct_json(value: WireStruct | None) -> str | None:
    return None if value is None else encode(value).decode()


def _tags(tags: dict[str, str]) -> str:
    # PostgreSQL's jsonb refuses U+0000 even in escaped form.
    return to_json(
        {_without_nul(name): _without_nul(value) for name, value in tags.items()}
    ).decode()


def _without_nul(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _clean(rows: list[Row]) -> list[Row]:
    return [
        tuple(_without_nul(value) if isinstance(value, str) else value for value in row)
        for row in rows
    ]
