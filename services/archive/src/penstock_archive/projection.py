"""From facts to rows: the pure part of the projector.

Each run is folded by ``evolve``, as everywhere; its rows follow from the state that the tables
have and the state after a batch. Open runs stay in memory between batches, other runs are folded
again from their stored facts: dropping all memory at any time is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from penstock.contracts import subjects
from penstock.contracts.facts import (
    RunEnded,
    RunFact,
    RunInvoked,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    fact_type,
)
from penstock.contracts.json import Json
from penstock.runs.endings import at_end
from penstock.runs.messages import user_text
from penstock.runs.quarantine import read_at
from penstock.runs.state import Entry, RunState, evolve, new_state
from penstock_archive import traits
from penstock_archive.rows import (
    Addressed,
    Batch,
    Key,
    RowMaker,
    Unreadable,
    signal_row,
    usage_row,
)
from penstock_archive.store import Loaded

_Decided = (StepScheduled, StateChanged, RunEnded)
_STEP_KINDS: Final = frozenset(kind.value for kind in StepKind)


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
    subject = message.subject
    fact = read_at(subject, message.body)
    if subject.kind and subject.kind not in _STEP_KINDS:
        raise ValueError(f"no such kind of step: {subject.kind}")
    if isinstance(fact, _Decided) and fact.decision is not None:
        for suffix in fact.decision.manifest:
            subjects.parse_suffix(suffix)
    return fact


def read_entry(seq: int, subject: str, body: str) -> Entry:
    """Read a fact as the archive has it."""
    message = address(seq, subject, body.encode())
    return Entry(seq, message.subject, read_fact(message))


@dataclass(slots=True)
class OpenRun:
    """A run in memory."""

    state: RunState | None = None
    stored: RunState | None = None
    """The state that the tables have."""
    invoked_seq: int = 0
    size_bytes: int = 0
    """Of the bodies of its facts."""

    def add(self, entry: Entry, size_bytes: int) -> RunState:
        """Fold in one more fact and return the state."""
        state, subject = self.state, entry.subject
        if state is None:
            state = new_state(subject.tenant, subject.shard, subject.run_id)
        self.state = state = evolve(state, entry)
        if subject.event == "invoke":
            self.invoked_seq = entry.seq
        self.size_bytes += size_bytes
        return state


class Projection:
    """Runs in memory, and the rows that a batch of facts makes of them."""

    def __init__(
        self,
        instant: Callable[[datetime], Any],
        *,
        open_runs: int = 5_000,
        memory_bytes: int = 67_108_864,
    ) -> None:
        """Begin with nothing in memory.

        Args:
            instant: Turns a time into what the database's columns take.
            open_runs: How many runs to keep in memory; others are loaded again when needed.
            memory_bytes: Largest sum of the bodies of their facts.
        """
        self._rows = RowMaker(instant)
        self._open_runs = open_runs
        self._memory_bytes = memory_bytes
        self._runs: dict[Key, OpenRun] = {}
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
        """Fold runs as far as the tables have them; those without a fact begin now.

        Args:
            keys: The runs that were asked for.
            loaded: What the tables have of them.
        """
        for tenant, run_id, seq in loaded.tombstones:
            self._tombstones[tenant, run_id] = seq
        wanted = {key: OpenRun() for key in keys if key not in self._tombstones}
        for fact in loaded.facts:
            entry = read_entry(*fact)
            run = wanted.get((entry.subject.tenant, entry.subject.run_id))
            if run is not None:
                run.stored = run.add(entry, len(fact.body))
        self._runs.update(wanted)

    def build(self, messages: Iterable[Addressed], last_seq: int) -> Batch:
        """Apply messages, in the order of the log, and return the rows that change.

        Each is read, applied and forgotten before the next: thousands of facts at a time in
        memory would cost twice as much to read.

        Args:
            messages: Their runs have been loaded.
            last_seq: The sequence that is reached with them.
        """
        batch = Batch(last_seq)
        changed: dict[Key, OpenRun] = {}
        runs, facts, instant = self._runs, batch.facts, self._rows.instant
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
            # No fact but a quarantined one has bytes that are no text.
            text = body.decode("utf-8", "replace").replace("\0", "\ufffd")
            facts.append((seq, *key, subject_text, fact_type(fact), text, at))
            if b"\\" in body and b"\\u0000" in body:  # one byte is found faster than six
                batch.nul = True
            before = run.state
            after = run.add(Entry(seq, subject, fact), len(body))
            if not isinstance(fact, StepScheduled):
                _add_rows(batch, before, after, item, fact, at)
        for key, run in changed.items():
            runs[key] = runs.pop(key)  # now the last to be put out of memory
            self._add_run(batch, key, run)
        return batch

    def _add_run(self, batch: Batch, key: Key, run: OpenRun) -> None:
        """Add the row of a run, and those of its steps that have changed."""
        rows = self._rows
        if run.state is None:
            return
        state, stored = at_end(run.state), run.stored and at_end(run.stored)
        progress = rows.progress(state)
        begun = stored is not None and stored.invoked is state.invoked
        if begun:
            batch.run_progress.append(progress)
        else:
            batch.runs.append((*progress, *rows.beginning(state.invoked, run.invoked_seq)))
        _add_traits(batch, key, run, stored if begun else None)
        if stored is None:
            batch.steps += [rows.step(key, step) for step in state.steps.values()]
        elif stored.steps is not state.steps:
            known = stored.steps.get
            batch.steps += [
                rows.step(key, step)
                for step_id, step in state.steps.items()
                if (earlier := known(step_id)) is not step and earlier != step
            ]

    def committed(self, batch: Batch) -> None:
        """Note that a batch is in the tables; ended runs are not kept."""
        runs = self._runs
        for row in (*batch.runs, *batch.run_progress):
            run = runs[row[0], row[1]]
            run.stored = run.state
            if run.state is not None and run.state.ended is not None:
                del runs[row[0], row[1]]
        # Those that have not moved for longest go; a run that moves comes back by `load`.
        size = sum(run.size_bytes for run in runs.values())
        while len(runs) > 1 and (len(runs) > self._open_runs or size > self._memory_bytes):
            size -= runs.pop(next(iter(runs))).size_bytes
        self._tombstones.clear()

    def _deleted(self, batch: Batch, key: Key, seq: int, fact: RunFact) -> bool:
        """Return whether a fact is of a deleted run; one that is asked for again begins anew."""
        deleted_seq = self._tombstones.get(key)
        if deleted_seq is None:
            return False
        if seq > deleted_seq and isinstance(fact, RunInvoked):
            del self._tombstones[key]
            batch.revived.append(key)
            self._runs[key] = OpenRun()
            return False
        batch.refused[key] = max(seq, batch.refused.get(key, 0))
        return True


def _add_traits(batch: Batch, key: Key, run: OpenRun, stored: RunState | None) -> None:
    """Add the traits that a run has by now and that the tables lack."""
    state = run.state
    if state is None or state.invoked is None:
        return
    found: list[tuple[str, str]] = []
    if stored is None:
        found += traits.of_beginning(state.invoked)
    if state.ended is not None and (stored is None or stored.ended is None):
        found += traits.of_end(state.ended)
    tenant, run_id = key
    batch.traits += [(tenant, *one, run.invoked_seq, run_id) for one in dict.fromkeys(found)]


def _add_rows(
    batch: Batch, before: RunState | None, after: RunState, item: Addressed, fact: RunFact, at: Any
) -> None:
    """Add the rows that stand for one fact alone."""
    if isinstance(fact, StepResult):
        # A child run's cost stands in its own rows; what the fold did not count is no cost.
        counted = before is not None and before.usages is not after.usages
        if counted and fact.usage is not None and fact.kind is not StepKind.RUN:
            batch.usage.append(usage_row(item, fact, fact.usage, at))
    elif isinstance(fact, SignalReceived):
        batch.signals.append(signal_row(item, fact, at))
    elif isinstance(fact, RunInvoked):
        if fact.session_id is not None:
            _add_session(batch, fact.session_id, item, fact, at)
            _add_message(batch, fact.session_id, item, "user", fact.input, at)
    elif isinstance(fact, RunEnded) and fact.error is None and fact.output is not None:
        session_id = after.invoked.session_id if after.invoked is not None else None
        if session_id is not None:
            _add_message(batch, session_id, item, "assistant", fact.output, at)


def _add_session(batch: Batch, session_id: str, item: Addressed, fact: RunInvoked, at: Any) -> None:
    tenant, run_id = item.subject.tenant, item.subject.run_id
    first = batch.sessions.get((tenant, session_id))
    created_at = at if first is None else first[3]
    row = (tenant, session_id, fact.name, created_at, at, run_id, item.seq)
    batch.sessions[tenant, session_id] = row


def _add_message(
    batch: Batch, session_id: str, item: Addressed, role: str, value: Json, at: Any
) -> None:
    subject, text = item.subject, user_text(value)
    batch.messages.append((item.seq, subject.tenant, session_id, subject.run_id, role, text, at))
