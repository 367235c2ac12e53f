"""The state of a run and how facts make it.

``evolve`` is the only way a state comes about; the engine, the gateway and the CLI all use it.
It commutes wherever the log can interleave: an input may be folded before or after a decision
that did not know of it, and the state is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, Literal

from immutables import Map
from msgspec import Struct
from msgspec.structs import replace

from penstock.contracts import subjects
from penstock.contracts.errors import THROTTLED, ErrorInfo, InvariantError
from penstock.contracts.facts import (
    CancelRequested,
    Decision,
    NodeRecord,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    Seed,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    Wait,
)
from penstock.contracts.json import Json
from penstock.contracts.subjects import FactSubject
from penstock.contracts.usage import Reservation, Usage

_NOTHING: Final = Reservation()
_DUST_USD: Final = 1e-9
"""What additions and subtractions of sums leave behind."""

StepStatus = Literal["planned", "scheduled", "waiting", "stopped", "succeeded", "failed", "unknown"]


class StepState(Struct, frozen=True):
    """One step of a run, at its latest attempt.

    ``planned`` means that a decision's manifest names it but its message has not been seen;
    ``waiting`` that its next attempt is not due yet, ``stopped`` that its outcome has no
    effect any more.
    """

    step_id: str
    kind: StepKind
    queue: str
    attempt: int
    decision: int
    decided_at: datetime
    status: StepStatus
    node_id: str = ""
    name: str = ""
    expires_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    output: Json = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    model: str | None = None
    wait: Wait | None = None
    reserve: Reservation | None = None
    at_most_once: bool = False
    throttled: int = 0
    """Attempts that were turned away by a rate limit; they do not count as tries."""
    outcome_seq: int = 0
    """Stream sequence of the outcome; 0 while there is none, below it if it was taken over."""
    seeded: bool = False
    """Its outcome was taken over from another run."""

    @property
    def pool(self) -> str:
        """The runner pool that takes it: ``{kind}.{queue}``."""
        return f"{self.kind.value}.{self.queue}"

    @property
    def open(self) -> bool:
        """Whether an outcome is still to come."""
        return self.status in ("planned", "scheduled", "waiting")

    @property
    def undone(self) -> bool:
        """Whether there is no outcome: one is still to come, or has no effect any more."""
        return self.open or self.status == "stopped"

    @property
    def reserving(self) -> bool:
        """Whether it may still cost what it has reserved; a stopped one may be billed late."""
        return self.status in ("planned", "scheduled", "stopped")


class NodeRecordState(Struct, frozen=True):
    """A node record, and the decision that made it (0: taken over from another run)."""

    node_record: NodeRecord
    decision: int
    at: datetime

    @property
    def open(self) -> bool:
        """Whether it is still to be settled."""
        return self.node_record.status == "open"


class Signal(Struct, frozen=True):
    """A signal, and its place in the log."""

    seq: int
    fact: SignalReceived


class RunState(Struct, frozen=True):
    """All that is known of a run; ``last_seq`` is the highest stream sequence folded in."""

    tenant: str
    shard: int
    run_id: str
    last_seq: int = 0
    invoked: RunInvoked | None = None
    cancel: CancelRequested | None = None
    ended: RunEnded | None = None
    ended_seq: int = 0
    """Stream sequence of the end."""
    decisions: int = 0
    steps: Map[str, StepState] = Map()
    signals: Map[str, Signal] = Map()
    node_records: Map[str, NodeRecordState] = Map()
    open_records: int = 0
    """How many leaves of the plan wait for something outside: a time, an answer, an event."""
    open_steps: int = 0
    """How many steps have no outcome yet."""
    waiting_steps: int = 0
    """How many of them only wait for their next attempt."""
    attempts: int = 0
    """Attempts at steps that were scheduled."""
    usages: Map[str, Usage] = Map()
    """What each attempt at a step cost, by ``{step}.{attempt}``: late outcomes cost too."""
    usage: Usage = Usage()
    """What the results of its steps have cost so far."""
    spent_by: Map[str, Usage] = Map()
    """The same by agent or tool."""
    reserved: Reservation = _NOTHING
    """What the open steps may still cost."""
    control: tuple[int, str] = (0, "")
    """Sequence and kind of the latest signal that pauses or resumes the run."""
    work: int = 0
    """Work of its expressions, in units, as far as decisions have recorded it."""
    admitted: bool = False
    """Whether its turn has come, where runs with the same key queue."""
    updated_at: datetime | None = None

    @property
    def paused(self) -> bool:
        """Whether nothing new may be scheduled."""
        return self.control[1] == "pause"

    @property
    def status(self) -> RunStatus:
        """Where the run is."""
        if self.ended is not None:
            return self.ended.status
        if self.paused:
            return RunStatus.PAUSED
        if not self.decisions:
            return RunStatus.CREATED
        if self.open_records and self.open_steps == self.waiting_steps:
            return RunStatus.WAITING
        return RunStatus.RUNNING

    @property
    def spent(self) -> Usage:
        """What the run has cost, its own attempts at steps included; final once it has ended."""
        if self.ended is not None:
            return self.ended.usage
        return self.usage.plus(Usage(steps=self.attempts))

    @property
    def request(self) -> RunInvoked:
        """The fact that asked for the run.

        Raises:
            InvariantError: ``not_invoked``: it is not known.
        """
        if self.invoked is None:
            raise InvariantError("not_invoked", f"run {self.run_id} was never asked for")
        return self.invoked

    @property
    def prefix(self) -> str:
        """The stem of the run's subjects."""
        return subjects.run_prefix(self.tenant, self.shard, self.run_id)


class Entry(Struct, frozen=True):
    """A fact as it was read: where it stands in the log, and what it says."""

    seq: int
    subject: FactSubject
    fact: RunFact
    traceparent: str | None = None


PENDING: Final = frozenset({"wait", "approval", "client_tool", "resolution"})
"""Kinds of node records that something outside settles."""

_KINDS: Final = {kind.value: kind for kind in StepKind}


def new_state(tenant: str, shard: int, run_id: str) -> RunState:
    """Return the state of a run of which nothing is known."""
    return RunState(tenant=tenant, shard=shard, run_id=run_id)


def fold(state: RunState, entries: Iterable[Entry]) -> RunState:
    """Apply entries in order."""
    for entry in entries:
        state = evolve(state, entry)
    return state


def evolve(state: RunState, entry: Entry) -> RunState:
    """Return the state after one more fact. Folding the same fact twice changes nothing.

    Args:
        state: The state before it.
        entry: The fact; it must belong to the same run.
    """
    fact, seq = entry.fact, max(state.last_seq, entry.seq)
    if isinstance(fact, StepResult):
        return _with_result(state, entry, fact, seq)
    if isinstance(fact, StepScheduled):
        return _with_step(state, entry, fact, seq)
    at = _later(state, fact)
    if isinstance(fact, RunInvoked):
        if fact.seed is not None:
            state = _with_seed(state, fact.seed, fact.occurred_at)
        return replace(state, last_seq=seq, invoked=fact, updated_at=at)
    if isinstance(fact, (RunEnded, StateChanged)):
        state = _with_decision(state, entry.subject, fact.decision, fact.occurred_at)
        decisions = max(state.decisions, entry.subject.decision)
        if isinstance(fact, RunEnded):
            state = replace(state, ended=fact, ended_seq=entry.seq)
        return replace(state, last_seq=seq, decisions=decisions, updated_at=at)
    if isinstance(fact, CancelRequested):
        return replace(state, last_seq=seq, cancel=fact, updated_at=at)
    return _with_signal(state, entry, fact, seq)


def _with_signal(state: RunState, entry: Entry, fact: SignalReceived, seq: int) -> RunState:
    signals = state.signals.set(entry.subject.step_id, Signal(entry.seq, fact))
    control = state.control
    if fact.kind in ("pause", "resume") and entry.seq > control[0]:
        control = (entry.seq, fact.kind)
    return replace(
        state,
        last_seq=seq,
        signals=signals,
        control=control,
        admitted=state.admitted or fact.kind == "admitted",
        updated_at=_later(state, fact),
    )


def _with_seed(state: RunState, seed: Seed, at: datetime) -> RunState:
    """Take over another run's records; outcomes known by now stay."""
    steps, node_records, signals = state.steps, state.node_records, state.signals
    for place, seeded in enumerate(seed.steps, start=-len(seed.steps)):
        if seeded.step_id not in steps:
            step = StepState(
                step_id=seeded.step_id,
                kind=seeded.kind,
                queue=seeded.queue,
                attempt=seeded.attempt,
                decision=0,
                decided_at=seeded.started_at,
                status=seeded.status,
                node_id=seeded.node_id,
                name=seeded.name,
                started_at=seeded.started_at,
                ended_at=seeded.ended_at,
                output=seeded.output,
                error=seeded.error,
                outcome_seq=place,
                seeded=True,
            )
            steps = steps.set(seeded.step_id, step)
    for node_record in seed.node_records:
        if node_record.record_id not in node_records:
            node_records = node_records.set(
                node_record.record_id, NodeRecordState(node_record, 0, at)
            )
    for place, given in enumerate(seed.signals, start=-len(seed.signals)):
        if given.signal_id not in signals:
            fact = SignalReceived(occurred_at=at, name=given.name, payload=given.payload)
            signals = signals.set(given.signal_id, Signal(place, fact))
    return replace(state, steps=steps, node_records=node_records, signals=signals)


def _with_waits(state: RunState, waits: tuple[Wait, ...]) -> RunState:
    for wait in waits:
        step = state.steps.get(wait.step_id)
        if step is not None and step.attempt < wait.next_attempt:
            throttled = step.error is not None and step.error.code == THROTTLED
            waiting = replace(
                step, status="waiting", wait=wait, throttled=step.throttled + throttled
            )
            state = _put(state, step, waiting)
    return state


def _put(state: RunState, old: StepState | None, new: StepState, **changes: object) -> RunState:
    """Return the state after a step has become another, and after other changes of its fields."""
    changes["steps"] = state.steps.set(new.step_id, new)
    opened = new.open - (old is not None and old.open)
    if opened:
        changes["open_steps"] = state.open_steps + opened
    waiting = (new.status == "waiting") - (old is not None and old.status == "waiting")
    if waiting:
        changes["waiting_steps"] = state.waiting_steps + waiting
    tried = new.attempt - (old.attempt if old is not None else 0)
    if tried and not new.seeded:
        changes["attempts"] = state.attempts + tried
    before = old.reserve if old is not None and old.reserving else None
    after = new.reserve if new.reserving else None
    if before is not after:
        changes["reserved"] = _settled(state.reserved, before, after)
    return replace(state, **changes)


def _settled(
    total: Reservation, before: Reservation | None, after: Reservation | None
) -> Reservation:
    tokens, cost, steps = total.tokens, total.cost_usd, total.steps
    if after is not None:
        tokens, cost, steps = (
            tokens + after.tokens,
            cost + after.cost_usd,
            steps + after.steps,
        )
    if before is not None:
        tokens, cost, steps = (
            tokens - before.tokens,
            max(cost - before.cost_usd, 0.0),
            steps - before.steps,
        )
    return Reservation(
        tokens=max(tokens, 0), cost_usd=cost if cost > _DUST_USD else 0.0, steps=max(steps, 0)
    )


def _with_result(state: RunState, entry: Entry, fact: StepResult, seq: int) -> RunState:
    subject = entry.subject
    step = state.steps.get(subject.step_id)
    if step is None or subject.attempt > step.attempt:
        # Before its schedule, or of a run whose beginning is gone: keep only that it was seen.
        return replace(state, last_seq=seq)
    if fact.usage is not None:
        state = _with_usage(state, f"{subject.step_id}.{subject.attempt}", fact)
    if subject.attempt < step.attempt or step.status in (
        "succeeded",
        "failed",
        "waiting",
        "unknown",
    ):
        return replace(state, last_seq=seq)
    done = replace(
        step,
        status=fact.status,
        started_at=fact.started_at,
        ended_at=fact.occurred_at,
        output=fact.output,
        error=fact.error,
        usage=fact.usage,
        model=fact.model,
        outcome_seq=entry.seq,
        reserve=None,
    )
    return _put(state, step, done, last_seq=seq, updated_at=_later(state, fact))


def _with_usage(state: RunState, key: str, fact: StepResult) -> RunState:
    if fact.usage is None or key in state.usages:
        return state
    spent = state.spent_by.get(fact.name)
    return replace(
        state,
        usages=state.usages.set(key, fact.usage),
        usage=state.usage.plus(fact.usage),
        spent_by=state.spent_by.set(
            fact.name, fact.usage if spent is None else spent.plus(fact.usage)
        ),
    )


def _later(state: RunState, fact: RunFact) -> datetime:
    at = state.updated_at
    return fact.occurred_at if at is None or fact.occurred_at > at else at


def _with_step(state: RunState, entry: Entry, fact: StepScheduled, seq: int) -> RunState:
    subject = entry.subject
    if fact.decision is not None:
        state = _with_decision(state, subject, fact.decision, fact.occurred_at)
    decisions = max(state.decisions, subject.decision)
    step = state.steps.get(subject.step_id)
    if step is not None and step.attempt > subject.attempt:
        return replace(state, last_seq=seq, decisions=decisions)
    if step is not None and step.attempt == subject.attempt and step.status != "planned":
        if step.expires_at is None:
            # Its outcome came before its message: the step was known from the manifest alone.
            known = replace(
                step,
                decided_at=fact.occurred_at,
                node_id=fact.node_id,
                name=fact.name,
                expires_at=fact.expires_at,
                reserve=fact.reserve,
                at_most_once=fact.at_most_once,
            )
            state = _put(state, step, known)
        at = _later(state, fact)
        return replace(state, last_seq=seq, decisions=decisions, updated_at=at)
    scheduled = StepState(
        step_id=subject.step_id,
        kind=_KINDS[subject.kind],
        queue=subject.queue,
        attempt=subject.attempt,
        decision=subject.decision,
        decided_at=fact.occurred_at,
        status="scheduled",
        node_id=fact.node_id,
        name=fact.name,
        expires_at=fact.expires_at,
        reserve=fact.reserve,
        at_most_once=fact.at_most_once,
        throttled=step.throttled if step is not None else 0,
    )
    at = _later(state, fact)
    return _put(state, step, scheduled, last_seq=seq, decisions=decisions, updated_at=at)


def _with_decision(
    state: RunState, subject: FactSubject, decision: Decision, at: datetime
) -> RunState:
    """Note decision ``subject.decision``: what it node records, stops, waits for, and promises."""
    if decision.node_records:
        state = _with_node_records(state, subject.decision, decision.node_records, at)
    for step_id in decision.stops:
        step = state.steps.get(step_id)
        if step is not None and step.open and step.decision < subject.decision:
            state = _put(state, step, replace(step, status="stopped"))
    if decision.waits:
        state = _with_waits(state, decision.waits)
    if decision.work > state.work:
        state = replace(state, work=decision.work)
    reserves = decision.reserves
    for suffix in decision.manifest:
        kind, queue, step_id, attempt = subjects.parse_suffix(suffix)
        known = state.steps.get(step_id)
        if known is None or known.attempt < attempt:
            planned = StepState(
                step_id=step_id,
                kind=StepKind(kind),
                queue=queue,
                attempt=attempt,
                decision=subject.decision,
                decided_at=at,
                status="planned",
                throttled=known.throttled if known is not None else 0,
                reserve=reserves.get(step_id) if reserves else None,
            )
            state = _put(state, known, planned)
    return state


def _with_node_records(
    state: RunState, decision: int, made: tuple[NodeRecord, ...], at: datetime
) -> RunState:
    node_records, opened = state.node_records, 0
    for node_record in made:
        known = node_records.get(node_record.record_id)
        if known is None or known.decision <= decision:
            if node_record.kind in PENDING:
                opened += (node_record.status == "open") - (known is not None and known.open)
            node_records = node_records.set(
                node_record.record_id, NodeRecordState(node_record, decision, at)
            )
    return replace(state, node_records=node_records, open_records=state.open_records + opened)
