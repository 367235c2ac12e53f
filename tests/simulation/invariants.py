"""What must hold in every world, after every message and at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock.contracts import subjects
from penstock.contracts.facts import (
    CancelRequested,
    Decision,
    NodeRecord,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    SignalReceived,
    StateChanged,
    StepResult,
    StepScheduled,
    fact_bytes,
    read_fact,
)
from penstock.contracts.ids import (
    instance_id,
    parse_step_id,
    resolution_record_id,
    turn_step_id,
)
from penstock.contracts.plan import EndNode, Node, ParallelNode, Plan
from penstock.contracts.subjects import FactSubject
from penstock.runs.state import Entry, RunState, fold, new_state
from penstock_archive import tables
from penstock_archive.projection import Projection
from penstock_archive.rows import Addressed
from penstock_archive.statements import RUN_PROGRESS
from penstock_archive.store import Loaded, StoredFact
from penstock_orchestrator.core.decisions import Decided
from tests.simulation.plans import NOT_EQUIPPED
from tests.simulation.streams import TAKEN, Publish, Refused, StoredMessage

Read = Callable[[bytes], bytes]

_COSTS = ("input_tokens", "output_tokens", "cost_usd", "model_calls")


@dataclass
class RunLedger:
    """What the log says of one run, read without the code under test."""

    tenant: str
    shard: int
    run_id: str
    entries: list[Entry] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    plan: Plan | None = None
    invoked: RunInvoked | None = None
    begun: bool = False
    """Whether an engine has acknowledged that the run was asked for."""
    cancel_seq: int = 0
    decisions: int = 0
    node_records: dict[str, NodeRecord] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    paused: bool = False
    admitted: bool = False
    promised: set[str] = field(default_factory=set)
    outcomes: dict[tuple[str, int], StepResult] = field(default_factory=dict)
    succeeded: dict[str, StepResult] = field(default_factory=dict)
    scheduled: dict[tuple[str, int], StepScheduled] = field(default_factory=dict)
    end: RunEnded | None = None

    @property
    def prefix(self) -> str:
        return subjects.run_prefix(self.tenant, self.shard, self.run_id)

    @property
    def state(self) -> RunState:
        return fold(new_state(self.tenant, self.shard, self.run_id), self.entries)


class Invariants:
    """Watches stream RUNS; ``broken`` says what did not hold."""

    def __init__(self, plans: dict[str, Plan], read: Read) -> None:
        """Begin to watch.

        Args:
            plans: All plans by digest.
            read: Gives the body that a stored body stands for (claims).
        """
        self._plans = plans
        self._read = read
        self.runs: dict[str, RunLedger] = {}
        self.broken: list[str] = []
        self.on_asked: Callable[[RunLedger, NodeRecord], None] = lambda _run, _node_record: None
        self.duplicates = 0
        self._meant: dict[str, bytes] = {}

    def _require(self, holds: object, what: str, ledger: RunLedger | None = None) -> None:
        if not holds:
            self.broken.append(what if ledger is None else f"{ledger.run_id}: {what}")

    # -- after every message ---------------------------------------------------------------------

    def on_stored(self, message: StoredMessage) -> None:
        """Check one more fact."""
        body = self._read(message.body)
        fact: RunFact = read_fact(body)
        subject = subjects.parse_fact(message.subject)
        ledger = self.runs.get(subject.run_id)
        if ledger is None:
            ledger = self.runs[subject.run_id] = RunLedger(
                subject.tenant, subject.shard, subject.run_id
            )
        self._require(message.subject not in ledger.subjects, f"{message.subject} twice", ledger)
        decision = getattr(fact, "decision", None)
        if decision is not None:
            self._decision(ledger, subject, decision, message)
        match fact:
            case RunInvoked():
                ledger.invoked = fact
                ledger.plan = self._plans.get(fact.plan_digest)
            case CancelRequested():
                ledger.cancel_seq = message.seq
            case StepResult():
                self._result(ledger, subject, fact)
            case StepScheduled():
                self._scheduled(ledger, subject, fact, message)
            case RunEnded():
                self._require(ledger.end is None, "a second end", ledger)
                ledger.end = fact
            case SignalReceived():
                ledger.paused |= fact.kind == "pause"
                if fact.kind == "admitted":
                    self._admitted(ledger)
            case StateChanged():
                pass
        ledger.entries.append(Entry(message.seq, subject, fact))
        ledger.subjects.append(message.subject)
        ledger.bodies.append(message.body)

    def _decision(
        self, ledger: RunLedger, subject: FactSubject, decision: Decision, message: StoredMessage
    ) -> None:
        number = subject.decision
        self._require(
            number == ledger.decisions + 1,
            f"first message of decision {number} after that of {ledger.decisions}",
            ledger,
        )
        ledger.decisions = number
        promised = [f"{ledger.prefix}.out.{number}.{suffix}" for suffix in decision.manifest]
        self._require(
            len({*promised, message.subject}) == len(promised) + 1,
            f"decision {number} states something twice: {decision.manifest}",
            ledger,
        )
        for node_record in decision.node_records:
            self._marked(ledger, node_record)
        for wait in decision.waits:
            again = wait.step_id in ledger.stopped
            self._require(not again, f"{wait.step_id} was stopped and is waited for", ledger)
        ledger.stopped |= {*decision.stops}
        ledger.promised |= {*promised}
        if ledger.end is not None:
            self._require(subject.event == "end", f"decision {number} after the end", ledger)

    def _admitted(self, ledger: RunLedger) -> None:
        """Check that no more runs of one key are under way than may be."""
        ledger.admitted = True
        if ledger.plan is None or ledger.plan.concurrency is None:
            return
        name, most = ledger.plan.name, ledger.plan.concurrency.max
        beside = [
            run.run_id
            for run in self.runs.values()
            if run.admitted and run.end is None and run.tenant == ledger.tenant
            if run.plan is not None and run.plan.name == name
        ]
        self._require(len(beside) <= most, f"under way with one key: {beside}, not {most}", ledger)

    def _marked(self, ledger: RunLedger, node_record: NodeRecord) -> None:
        known = ledger.node_records.get(node_record.record_id)
        ledger.node_records[node_record.record_id] = node_record
        self._require(
            known is None or known.status == "open" or node_record.kind == "resolution",
            f"node record {node_record.record_id} is settled twice",
            ledger,
        )
        if node_record.status == "open" and node_record.request is not None:
            self.on_asked(ledger, node_record)

    def _result(self, ledger: RunLedger, subject: FactSubject, fact: StepResult) -> None:
        key = subject.step_id, subject.attempt
        self._require(key not in ledger.outcomes, f"two outcomes of {key}", ledger)
        self._require(key in ledger.scheduled, f"an outcome of {key}, never scheduled", ledger)
        ledger.outcomes[key] = fact
        if fact.status == "succeeded":
            known = subject.step_id in ledger.succeeded
            self._require(not known, f"step {subject.step_id} succeeded twice", ledger)
            ledger.succeeded[subject.step_id] = fact

    def _scheduled(
        self, ledger: RunLedger, subject: FactSubject, fact: StepScheduled, message: StoredMessage
    ) -> None:
        key = subject.step_id, subject.attempt
        self._require(key not in ledger.scheduled, f"{key} scheduled twice", ledger)
        ledger.scheduled[key] = fact
        if fact.decision is None:
            self._require(
                message.subject in ledger.promised, f"{message.subject} not promised", ledger
            )
        self._require(subject.step_id not in ledger.stopped, f"{key} was stopped", ledger)
        if subject.attempt > 1:
            before = ledger.outcomes.get((subject.step_id, subject.attempt - 1))
            self._require(
                before is not None and before.status in ("failed", "unknown"),
                f"{key} follows no failure",
                ledger,
            )
            if before is not None and before.status == "unknown":
                answered = ledger.node_records.get(resolution_record_id(subject.step_id))
                self._require(
                    answered is not None and (answered.choice or "").endswith("retried"),
                    f"{key} repeats what nobody decided to repeat",
                    ledger,
                )
        self._require(subject.step_id not in ledger.succeeded, f"{key} after success", ledger)
        self._require(fact.name != NOT_EQUIPPED, f"{key} calls what is not equipped", ledger)
        if fact.name == "look" and isinstance(fact.input, dict):
            self._require(
                fact.input.get("key") == ledger.tenant, f"{key}: system parameter", ledger
            )
        if ledger.plan is not None:
            self._needs(ledger, ledger.plan, key)

    def _needs(self, ledger: RunLedger, plan: Plan, key: tuple[str, int]) -> None:
        node_id, path, _, _ = parse_step_id(key[0])
        for needed in plan.by_id[node_id].needs:
            self._require(
                _done(ledger, plan.by_id[needed], instance_id(needed, path)),
                f"{key} is scheduled and {needed}, which it needs, is not done",
                ledger,
            )

    def on_acknowledged(self, message: StoredMessage) -> None:
        """Check that an input is acknowledged only after its effects are stored."""
        subject = subjects.parse_fact(message.subject)
        ledger = self.runs[subject.run_id]
        held_back = ledger.paused or (ledger.plan is not None and ledger.plan.concurrency)
        if subject.event == "invoke" and not held_back:
            self._require(ledger.decisions, "acknowledged before anything was decided", ledger)
            ledger.begun = True
        elif subject.event == "cancel" and ledger.begun:
            self._require(ledger.end, "cancellation acknowledged before the run's end", ledger)

    def on_decided(self, state: RunState, decided: Decided | None) -> None:
        """Check that whoever knows of a cancellation only stops."""
        if state.cancel is not None and decided is not None:
            suffixes = {output.suffix for output in decided.outputs}
            self._require(
                suffixes == {subjects.END_SUFFIX},
                f"{state.run_id}: {suffixes} is decided after a cancellation",
            )

    def on_sent(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        """Check that every try to state a promised message means the same, also if it gets lost.

        A batch may belong to a decision that somebody else made first.
        """
        if not subject.startswith("run.") or ".out." not in subject or "Nats-Batch-Id" in headers:
            return
        if b'"decision":{' not in self._read(body):
            same = self._meant.setdefault(subject, body) == body
            self._require(same, f"{subject} was repaired differently")

    def on_refused(self, message: Publish, refused: Refused) -> None:
        """Check that whoever states a promised message again states the same."""
        held = refused.held
        if refused.error["err_code"] != TAKEN["err_code"] or held is None:
            return
        self.duplicates += 1
        subject = message.subject
        first = b'"decision":{' in self._read(held.body)
        if ".out." in subject and not first and b'"decision":{' not in self._read(message.body):
            self._require(held.body == message.body, f"{subject} was repaired differently")

    # -- at the end ------------------------------------------------------------------------------

    def at_end(self) -> None:
        """Check what holds once all runs have ended."""
        for ledger in self.runs.values():
            if ledger.invoked is None:
                continue
            self._require(ledger.end is not None, "does not end", ledger)
            state = ledger.state
            self._require(state.ended == ledger.end, "the fold knows another end", ledger)
            self._require(
                fold(state, ledger.entries) == state, "folding twice changes the state", ledger
            )
            if ledger.end is not None and ledger.end.status is RunStatus.DONE and not _cut(ledger):
                left = [step.step_id for step in state.steps.values() if step.open]
                self._require(not left, f"done with open steps {left}", ledger)
            self._turns(ledger)
            self._spent(ledger)
            self._projected(ledger, state)

    def _turns(self, ledger: RunLedger) -> None:
        if ledger.plan is None:
            return
        for step_id, _ in ledger.scheduled:
            node_id, _, turn, index = parse_step_id(step_id)
            node = ledger.plan.by_id[node_id]
            if node.kind == "agent" and turn is not None and index is None:
                agent = ledger.plan.agents[node.ref]
                limit = agent.max_turns
                self._require(turn <= limit, f"{step_id} is beyond {limit}", ledger)

    def _spent(self, ledger: RunLedger) -> None:
        """Check that a run spends no more than it may, its children included."""
        if ledger.plan is None or ledger.invoked is None:
            return
        usage = [result.usage for result in ledger.outcomes.values() if result.usage is not None]
        spent = {
            "max_tokens": sum(each.tokens for each in usage),
            "max_cost_usd": sum(each.cost_usd for each in usage) - 1e-9,
            "max_steps": len(ledger.scheduled) + sum(each.steps for each in usage),
        }
        for name, used in spent.items():
            for limits in (ledger.plan.limits, ledger.invoked.limits):
                most = getattr(limits, name)
                self._require(most is None or used <= most, f"{name}: {used} of {most}", ledger)

    def _projected(self, ledger: RunLedger, state: RunState) -> None:
        row, steps = projected(ledger)
        usage = state.ended.usage if state.ended is not None else state.usage
        spent = tuple(row[name] for name in _COSTS)
        wanted = tuple(getattr(usage, name) for name in _COSTS)
        self._require(row["status"] == state.status.value, "the projection's status", ledger)
        self._require(spent == wanted, f"the projection spent {spent}, not {wanted}", ledger)
        changed_at = state.updated_at
        if state.ended is not None:
            # Nothing shows that follows the end.
            at = next(n for n, entry in enumerate(ledger.entries) if entry.subject.event == "end")
            state = fold(
                new_state(state.tenant, state.shard, state.run_id), ledger.entries[: at + 1]
            )
            changed_at = ledger.entries[at].fact.occurred_at
        self._require(row["last_seq"] == state.last_seq, "the projection's last sequence", ledger)
        self._require(row["updated_at"] == changed_at, "the projection's last change", ledger)
        known = {step.step_id: (step.status, step.attempt) for step in state.steps.values()}
        self._require(steps == known, f"the projection's steps: {steps}, not {known}", ledger)


def _cut(ledger: RunLedger) -> bool:
    """Tell whether something in a run's plan ends before all within it has ended."""
    nodes = ledger.plan.by_id.values() if ledger.plan is not None else ()
    return any(isinstance(node, EndNode | ParallelNode) for node in nodes)


def _done(ledger: RunLedger, node: Node, iid: str) -> bool:
    """Return whether a node's instance is settled, by node records and outcomes alone."""
    node_record = ledger.node_records.get(iid)
    if node_record is not None:
        return node_record.status != "open"
    if node.kind != "agent":
        return iid in ledger.succeeded
    turn = 1
    while (result := ledger.succeeded.get(turn_step_id(iid, turn))) is not None:
        if isinstance(result.output, dict) and result.output.get("action") == "respond":
            return True
        turn += 1
    return False


def projected(ledger: RunLedger) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """Project a run's log with the archive's code, in batches of three.

    Returns:
        The run's row, and the status and attempt of each step.
    """
    projection = Projection(lambda instant: instant)
    messages = [
        Addressed(entry.seq, text, entry.subject, fact_bytes(entry.fact))
        for entry, text in zip(ledger.entries, ledger.subjects, strict=True)
    ]
    facts = [StoredFact(item.seq, item.subject_text, item.body.decode()) for item in messages]
    row: dict[str, Any] = {}
    steps: dict[str, tuple[str, int]] = {}
    for start in range(0, len(messages), 3):
        batch = messages[start : start + 3]
        missing = projection.missing(batch)
        projection.load(missing, Loaded(facts[:start], []))
        built = projection.build(batch, batch[-1].seq)
        projection.committed(built)
        (latest,) = (*built.runs, *built.run_progress)
        row = dict(zip(RUN_PROGRESS.names, latest, strict=False))
        for values in built.steps:
            step = dict(zip(tables.steps.columns.keys(), values, strict=True))
            steps[step["step_id"]] = (step["status"], step["attempt"])
    return row, steps
