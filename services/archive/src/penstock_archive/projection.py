"""From facts to rows: the pure part of the projector.

It mirrors ``penstock.runs.state.evolve`` at a fraction of its cost, keeping only what rows
need; a test holds both together. Open runs stay in memory between batches; other runs are
loaded from the tables, which are the truth: dropping all memory at any time is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

from pydantic import JsonValue
from pydantic_core import to_json

from penstock.contracts import subjects
from penstock.contracts.facts import (
    CancelRequested,
    RunEnded,
    RunFact,
    RunInvoked,
    SeededStep,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    Usage,
    fact_type,
)
from penstock.contracts.facts import read_fact as read_body
from penstock.contracts.structs import WireStruct, encode
from penstock.contracts.subjects import FactEvent
from penstock.runs.messages import user_text
from penstock.runs.profiles import micros, priced, provider_of
from penstock_archive.progress import (
    note_decision,
    note_step,
    profile_text,
)
from penstock_archive.rows import (
    NO_BEGINNING,
    Addressed,
    Batch,
    Key,
    Row,
    RunRow,
    StepRow,
    Unreadable,
)
from penstock_archive.store import Loaded

INLINE_BYTES: Final = 16_384
"""Inputs and outputs of runs above this are not repeated in ``runs``."""
PREVIEW_CHARACTERS: Final = 2_048
"""What ``steps`` shows of an output; the whole is in ``facts``."""

UNPROFILED_STEPS: Final = 100
"""Profiles of runs with up to so many steps are computed on request: most never are."""

_EVENT_OF: Final[dict[type[RunFact], FactEvent]] = {
    RunInvoked: "invoke",
    StepResult: "result",
    SignalReceived: "signal",
    CancelRequested: "cancel",
    StepScheduled: "step",
    StateChanged: "state",
    RunEnded: "end",
}
_Decided = (StepScheduled, StateChanged, RunEnded)
_STEP_KINDS: Final = frozenset(kind.value for kind in StepKind)
_AWAITED: Final = frozenset({"planned", "scheduled", "stopped"})
"""A step in one of these takes the outcome of its latest attempt."""


def address(seq: int, subject: str, body: bytes) -> Addressed:
    """Take the subject apart.

    Raises:
        ValueError: It is not a fact's.
    """
    return Addressed(seq, subject, subjects.parse_fact(subject), body)


def read_fact(message: Addressed) -> RunFact:
    """Read a message's body.

    Raises:
        ValueError: It is no fact, or one that its subject does not announce.
    """
    fact = read_body(message.body)
    subject = message.subject
    if _EVENT_OF[type(fact)] != subject.event:
        raise ValueError(f"a {fact_type(fact)} cannot stand on {message.subject_text}")
    if subject.kind and subject.kind not in _STEP_KINDS:
        raise ValueError(f"no such kind of step: {subject.kind}")
    if isinstance(fact, _Decided) and fact.decision is not None:
        for suffix in fact.decision.manifest:
            subjects.parse_suffix(suffix)
    return fact


class Projection:
    """Runs in memory, and the rows that a batch of facts makes of them."""

    def __init__(self, instant: Callable[[datetime], Any], *, open_runs: int = 5_000) -> None:
        """Begin with nothing in memory.

        Args:
            instant: Turns a time into what the database's columns take.
            open_runs: How many runs to keep in memory; others are loaded again when needed.
        """
        self._instant = instant
        self._open_runs = open_runs
        self._runs: dict[Key, RunRow] = {}
        self._tombstones: dict[Key, int] = {}

    def forget(self) -> None:
        """Drop all memory, after a batch was built that did not get into the tables."""
        self._runs.clear()
        self._tombstones.clear()

    def missing(self, messages: Iterable[Addressed]) -> list[Key]:
        """Return the runs that must be loaded before these messages can be projected."""
        known = self._runs
        keys = {(item.subject.tenant, item.subject.run_id) for item in messages}
        return [key for key in keys if key not in known]

    def load(self, keys: Iterable[Key], loaded: Loaded) -> None:
        """Take up runs as the tables have them; those without a row begin now.

        Args:
            keys: The runs that were asked for.
            loaded: What the tables have of them.
        """
        for row in loaded.runs:
            self._runs[row[0], row[1]] = run = RunRow(*row[2:])
            run.stored = True
        for row in loaded.steps:
            known = self._runs.get((row[0], row[1]))
            # A run that another projector began between the two queries: the commit will fail.
            if known is not None:
                known.steps[row[2]] = StepRow(*row[2:])
        for tenant, run_id, seq in loaded.tombstones:
            self._tombstones[tenant, run_id] = seq
        for key in keys:
            if key not in self._runs and key not in self._tombstones:
                self._runs[key] = RunRow()

    def build(self, messages: Iterable[Addressed], last_seq: int) -> Batch:
        """Apply messages, in the order of the log, and return the rows that change.

        Each is read, applied and forgotten before the next: thousands of facts at a time in
        memory would cost twice as much to read.

        Args:
            messages: Their runs have been loaded.
            last_seq: The sequence that is reached with them.
        """
        batch = Batch(last_seq)
        changed: dict[Key, RunRow] = {}
        sessions: dict[Key, Row] = {}
        runs, facts, instant = self._runs, batch.facts, self._instant
        nul = False
        for item in messages:
            seq, subject_text, subject, body = item
            try:
                fact = read_fact(item)
            except ValueError as error:
                batch.unreadable.append(Unreadable(item, str(error)))
                continue
            key = (subject.tenant, subject.run_id)
            if self._tombstones and self._deleted(batch, key, seq, fact):
                continue
            changed[key] = run = runs[key]
            at = instant(fact.occurred_at)
            facts.append((seq, key[0], key[1], subject_text, fact_type(fact), body.decode(), at))
            nul = nul or b"\\u0000" in body
            run.last_seq = max(run.last_seq, seq)
            self._apply(batch, sessions, key, run, item, fact, at)
        for key, run in changed.items():
            runs[key] = runs.pop(key)  # now the last to be put out of memory
            run.settle_status()
            if run.ended_at is not None and len(run.steps) > UNPROFILED_STEPS:
                run.profile = profile_text(run)
            if run.stored and run.beginning is None:
                batch.run_progress.append(run.progress(key))
            else:
                batch.runs.append((*run.progress(key), *(run.beginning or NO_BEGINNING)))
            steps = run.steps
            batch.steps.extend([steps[step_id].row(key) for step_id in run.changed_steps])
        batch.sessions.extend(sessions.values())
        if nul:
            _replace_nul(batch)
        return batch

    def committed(self, batch: Batch) -> None:
        """Note that a batch is in the tables; ended runs are not kept."""
        for rows in (batch.runs, batch.run_progress):
            for row in rows:
                key = (row[0], row[1])
                run = self._runs[key]
                if run.ended_at is not None:
                    del self._runs[key]
                else:
                    run.stored = True
                    run.beginning = None
                    run.changed_steps.clear()
        # Those that have not moved for longest go; a run that moves comes back by `load`.
        for key in list(self._runs)[: max(0, len(self._runs) - self._open_runs)]:
            del self._runs[key]
        self._tombstones.clear()

    def _deleted(self, batch: Batch, key: Key, seq: int, fact: RunFact) -> bool:
        """Return whether a fact is of a deleted run; one that is asked for again begins anew."""
        deleted_seq = self._tombstones.get(key)
        if deleted_seq is None:
            return False
        if seq > deleted_seq and isinstance(fact, RunInvoked):
            del self._tombstones[key]
            batch.revived.append(key)
            self._runs[key] = RunRow()
            return False
        batch.refused[key] = max(seq, batch.refused.get(key, 0))
        return True

    def _apply(
        self,
        batch: Batch,
        sessions: dict[Key, Row],
        key: Key,
        run: RunRow,
        item: Addressed,
        fact: RunFact,
        at: Any,
    ) -> None:
        match fact:
            case StepResult():
                self._result(batch, key, run, item, fact, at)
            case StepScheduled():
                note_step(run, item.subject, fact, at)
            case RunInvoked():
                self._invoked(batch, sessions, key, run, item.seq, fact, at)
            case RunEnded():
                _ended(batch, key, run, item, fact, at)
            case StateChanged():
                note_decision(run, item.subject, fact.decision, at)
                run.touch(at)
            case SignalReceived():
                _signalled(batch, key, run, item, fact, at)
            case CancelRequested():
                run.touch(at)

    def _result(
        self, batch: Batch, key: Key, run: RunRow, item: Addressed, fact: StepResult, at: Any
    ) -> None:
        subject = item.subject
        step = run.steps.get(subject.step_id)
        if step is None or subject.attempt > step.attempt:
            return
        usage = fact.usage
        if usage is not None:
            run.spend(usage)
            if fact.kind is not StepKind.RUN:  # a child run's cost stands in its own rows
                batch.usage.append(_usage_row(key, item, fact, usage, at))
        if subject.attempt < step.attempt or step.status not in _AWAITED:
            started, ended = micros(fact.started_at), micros(fact.occurred_at)
            step.add_late(subject.attempt, started, ended, usage, fact.model)
            run.changed_steps.add(step.step_id)
            return
        step.status = fact.status
        step.started_at = self._instant(fact.started_at)
        step.ended_at = at
        output = _json(fact.output)
        step.output_truncated = output is not None and len(output) > PREVIEW_CHARACTERS
        step.output = output[:PREVIEW_CHARACTERS] if output is not None else None
        step.error = _struct_json(fact.error)
        step.usage = _struct_json(usage)
        step.model = fact.model
        run.changed_steps.add(subject.step_id)
        run.touch(at)

    def _invoked(
        self,
        batch: Batch,
        sessions: dict[Key, Row],
        key: Key,
        run: RunRow,
        seq: int,
        fact: RunInvoked,
        at: Any,
    ) -> None:
        run.seq = seq
        run.created_at = at
        run.session_id = session_id = fact.session_id
        run.beginning = (
            seq,
            fact.name,
            fact.kind.value,
            fact.version,
            fact.plan_digest,
            session_id,
            fact.trigger.value,
            fact.requested_by,
            _tags(fact.tags) if fact.tags else None,
            _inline(fact.input),
            at,
            fact.parent.run_id if fact.parent is not None else None,
            fact.parent.root_run_id if fact.parent is not None else None,
            fact.forked_from.run_id if fact.forked_from is not None else None,
        )
        if fact.seed is not None:
            for seeded in fact.seed.steps:
                self._seed(run, seeded)
        run.touch(at)
        if session_id is not None:
            tenant, run_id = key
            first = sessions.get((tenant, session_id))
            created_at = at if first is None else first[3]
            row = (tenant, session_id, fact.name, created_at, at, run_id, seq)
            sessions[tenant, session_id] = row
            text = user_text(fact.input)
            batch.messages.append((seq, tenant, session_id, run_id, "user", text, at))

    def _seed(self, run: RunRow, seeded: SeededStep) -> None:
        """Take over another run's outcome, unless this step has one by now."""
        if seeded.step_id in run.steps:
            return
        started_at = self._instant(seeded.started_at)
        output = _json(seeded.output)
        run.steps[seeded.step_id] = StepRow(
            seeded.step_id,
            seeded.kind.value,
            seeded.queue,
            seeded.node_id,
            seeded.name,
            0,
            seeded.attempt,
            seeded.status,
            started_at,
            started_at,
            self._instant(seeded.ended_at),
            output[:PREVIEW_CHARACTERS] if output is not None else None,
            output is not None and len(output) > PREVIEW_CHARACTERS,
            _struct_json(seeded.error),
        )
        run.changed_steps.add(seeded.step_id)


def _usage_row(key: Key, item: Addressed, fact: StepResult, usage: Usage, at: Any) -> Row:
    provider = provider_of(fact.model)
    usage = priced(usage, provider)
    return (
        item.seq,
        *key,
        item.subject.step_id,
        item.subject.attempt,
        fact.name,
        provider,
        fact.model or "",
        usage.input_tokens,
        usage.output_tokens,
        usage.cost_usd,
        usage.unknown_price,
        usage.model_calls,
        usage.steps,
        at,
    )


def _signalled(
    batch: Batch, key: Key, run: RunRow, item: Addressed, fact: SignalReceived, at: Any
) -> None:
    if fact.kind in ("pause", "resume"):
        run.paused = fact.kind == "pause"
    batch.signals.append(
        (
            item.seq,
            *key,
            item.subject.step_id,
            fact.kind,
            fact.name,
            fact.target,
            fact.from_run,
            fact.sent_by,
            _inline(fact.payload),
            at,
        )
    )
    run.touch(at)


def _ended(batch: Batch, key: Key, run: RunRow, item: Addressed, fact: RunEnded, at: Any) -> None:
    note_decision(run, item.subject, fact.decision, at)
    run.status = fact.status.value
    run.output = _inline(fact.output)
    run.error = _struct_json(fact.error)
    run.error_code = fact.error.code if fact.error is not None else None
    run.ended_at = at
    usage = fact.usage
    run.input_tokens = usage.input_tokens
    run.output_tokens = usage.output_tokens
    run.cost_usd = usage.cost_usd
    run.unknown_price = usage.unknown_price
    run.model_calls = usage.model_calls
    run.attempts = usage.steps
    run.touch(at)
    if run.session_id is not None and fact.error is None and fact.output is not None:
        text = user_text(fact.output)
        tenant, run_id = key
        batch.messages.append((item.seq, tenant, run.session_id, run_id, "assistant", text, at))


def _json(value: JsonValue) -> str | None:
    return None if value is None else to_json(value).decode()


def _tags(tags: dict[str, str]) -> str:
    # PostgreSQL's jsonb refuses U+0000 even in escaped form.
    return to_json(
        {_without_nul(name): _without_nul(value) for name, value in tags.items()}
    ).decode()


def _without_nul(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _inline(value: JsonValue) -> str | None:
    text = _json(value)
    return text if text is None or len(text) <= INLINE_BYTES else None


def _struct_json(value: WireStruct | None) -> str | None:
    return None if value is None else encode(value).decode()


def _replace_nul(batch: Batch) -> None:
    """PostgreSQL's texts cannot hold U+0000."""
    for rows in batch.parts()[1:]:
        rows[:] = [
            tuple(_without_nul(value) if isinstance(value, str) else value for value in row)
            for row in rows
        ]
