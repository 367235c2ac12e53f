"""Random histories of runs, plausible and less so, and what the archive must hold of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import structs
from pydantic import JsonValue

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily, ErrorInfo
from penstock.contracts.facts import (
    BlockedCall,
    CancelRequested,
    Decision,
    DefinitionKind,
    ForkedFrom,
    NodeRecord,
    ParentRef,
    RecordKind,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    Seed,
    SeededSignal,
    SeededStep,
    SignalKind,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    Trigger,
    Wait,
    fact_bytes,
)
from penstock.contracts.ids import run_id_from
from penstock.contracts.usage import Usage

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TENANTS = ("acme", "beta")
MODELS = ("openai/gpt-5-mini", "scripted/demo", "local")
ODD_VALUES: tuple[JsonValue, ...] = (
    None,
    "",
    "hello",
    "nul \0 here",
    {"text": "only"},
    {"a": [1, 2.5, None, {"b": "ü€😀"}]},
    {"big": "x" * 5_000},
    [],
    False,
)

RECORD_KINDS: tuple[RecordKind, ...] = (
    "wait",
    "approval",
    "client_tool",
    "resolution",
    "map",
    "branch",
    "transform",
    "phase",
)
RECORD_STATUSES: tuple[Literal["open", "succeeded", "failed", "skipped"], ...] = (
    *("open", "open"),
    *("succeeded", "failed", "skipped"),
)
SIGNAL_KINDS: tuple[SignalKind, ...] = (
    "event",
    "message",
    "approval",
    "tool_result",
    "resolution",
    "pause",
    "pause",
    "resume",
    "admitted",
)

End = Literal[RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED]
ENDS: tuple[End, ...] = (RunStatus.DONE, RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED)

OUTCOMES: tuple[Literal["succeeded", "failed", "unknown"], ...] = (
    *("succeeded",) * 6,
    *("failed",) * 3,
    "unknown",
)

Message = tuple[str, bytes]
"""Subject and body."""


class Clock:
    """Clocks of many machines: they go forward, and disagree a little."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._now = START

    def __call__(self) -> datetime:
        self._now += timedelta(microseconds=self._rng.randint(0, 50_000))
        return self._now + timedelta(microseconds=self._rng.randint(-30_000, 30_000))


def random_usage(rng: random.Random) -> Usage:
    return Usage(
        input_tokens=rng.randint(0, 5_000),
        output_tokens=rng.randint(0, 500),
        cost_usd=rng.randint(0, 1_000) / 1_024,
        unknown_price=rng.random() < 0.2,
        model_calls=1,
        steps=rng.randint(0, 3),
    )


def random_error(rng: random.Random) -> ErrorInfo:
    return ErrorInfo(code="boom", message="it broke", family=rng.choice(list(ErrorFamily)))


def random_run(rng: random.Random, number: int) -> list[tuple[str, RunFact]]:
    """One run: its parent and seed, decisions and node records, attempts, waits and stops, outcomes
    late and unknown, signals, cancellation, its end.
    """
    run_id = run_id_from(1_700_000_000_000 + number, rng.randbytes(10))
    return list(Story(rng, subjects.run_prefix(rng.choice(TENANTS), 3, run_id)).facts())


class Story:
    """What a run has come to while its facts are made up."""

    def __init__(self, rng: random.Random, prefix: str) -> None:
        self.rng = rng
        self.clock = Clock(rng)
        self.prefix = prefix
        self.number = 0
        """Of the latest decision."""
        self.attempts: dict[str, int] = {}
        self.kinds: dict[str, StepKind] = {}

    def facts(self) -> Iterator[tuple[str, RunFact]]:
        rng, clock, prefix = self.rng, self.clock, self.prefix
        yield subjects.invoke(prefix), self._invoked()
        if rng.random() < 0.1:
            yield subjects.cancel(prefix), CancelRequested(occurred_at=clock(), reason="never mind")
        for _ in range(rng.randint(0, 5)):
            self.number += 1
            if rng.random() < 0.3:
                yield self._state_changed()
            else:
                yield from self._steps()
            if rng.random() < 0.3:
                yield self._signal()
        if rng.random() < 0.8:
            yield self._ended()
            for step_id, attempt in self.attempts.items():
                if rng.random() < 0.1:
                    yield self._outcome(step_id, attempt + 1)
            if rng.random() < 0.1:
                yield self._signal()

    def _invoked(self) -> RunInvoked:
        rng, clock = self.rng, self.clock
        at = clock()
        other = run_id_from(1_600_000_000_000, rng.randbytes(10))
        return RunInvoked(
            occurred_at=at,
            name=rng.choice(("research", "report")),
            kind=rng.choice(list(DefinitionKind)),
            version=rng.randint(1, 9),
            plan_digest="d" * 64,
            input=rng.choice(ODD_VALUES),
            session_id=rng.choice((None, "s1", "s2")),
            trigger=rng.choice(list(Trigger)),
            requested_by=rng.choice((None, "someone")),
            tags=rng.choice(({}, {"team": "a"}, {"team": "b", "nul\0": "\0"})),
            parent=ParentRef(
                run_id=other, shard=1, step_id="child", attempt=1, root_run_id=other, depth=1
            )
            if rng.random() < 0.3
            else None,
            forked_from=ForkedFrom(run_id=other, at_seq=7) if rng.random() < 0.2 else None,
            seed=self._seed(at) if rng.random() < 0.3 else None,
        )

    def _seed(self, at: datetime) -> Seed:
        """What another run had recorded; some of its steps are tried again here."""
        rng = self.rng
        steps = []
        for index in range(rng.randint(0, 3)):
            step_id, attempt = f"seeded-{index}", rng.randint(1, 2)
            kind = rng.choice(list(StepKind))
            failed = rng.random() < 0.3
            if rng.random() < 0.5:
                self.attempts[step_id], self.kinds[step_id] = attempt, kind
            steps.append(
                SeededStep(
                    step_id=step_id,
                    kind=kind,
                    queue="main",
                    attempt=attempt,
                    node_id="seeded",
                    name="lookup",
                    output=None if failed else rng.choice(ODD_VALUES),
                    status="failed" if failed else "succeeded",
                    error=random_error(rng) if failed else None,
                    started_at=at - timedelta(hours=2),
                    ended_at=at - timedelta(hours=1),
                )
            )
        return Seed(
            steps=tuple(steps),
            node_records=tuple(
                node_record for node_record in self._node_records() if node_record.status != "open"
            ),
            signals=(SeededSignal(signal_id="old", name="note", payload=rng.choice(ODD_VALUES)),),
            spent=random_usage(rng),
        )

    def _node_records(self) -> tuple[NodeRecord, ...]:
        """Node records of every kind, opened, settled, opened again."""
        rng = self.rng
        made = {}
        for _ in range(rng.randint(0, 3)):
            kind = rng.choice(RECORD_KINDS)
            record_id = f"{kind}-{rng.randint(0, 1)}"
            status = rng.choice(RECORD_STATUSES)
            failed = status == "failed"
            made[record_id] = NodeRecord(
                record_id=record_id,
                kind=kind,
                status=status,
                output=rng.choice(ODD_VALUES) if status == "succeeded" else None,
                error=random_error(rng) if failed else None,
                due_at=self.clock() if kind == "wait" else None,
            )
        return tuple(made.values())

    def _waits(self) -> tuple[Wait, ...]:
        if not self.attempts:
            return ()
        step_id = self.rng.choice(sorted(self.attempts))
        return (
            Wait(
                timer_id=f"{step_id}-wait",
                step_id=step_id,
                next_attempt=self.attempts[step_id] + self.rng.randint(0, 1),
                due_at=self.clock(),
            ),
        )

    def _said(self, manifest: tuple[str, ...] = ()) -> Decision:
        """A decision, and what it says beside its messages."""
        rng = self.rng
        known = sorted(self.attempts)
        stops = rng.sample(known, rng.randint(1, len(known))) if known else []
        blocked = BlockedCall(step_id="x", tool="rm", reason="no")
        return Decision(
            cause_seq=1,
            manifest=manifest,
            blocked=(blocked,) if rng.random() < 0.1 else (),
            node_records=self._node_records() if rng.random() < 0.5 else (),
            waits=self._waits() if rng.random() < 0.15 else (),
            stops=tuple(stops) if rng.random() < 0.15 else (),
        )

    def _state_changed(self) -> tuple[str, RunFact]:
        return (
            subjects.out(self.prefix, self.number, subjects.STATE_SUFFIX),
            StateChanged(occurred_at=self.clock(), decision=self._said()),
        )

    def _signal(self) -> tuple[str, RunFact]:
        rng = self.rng
        kind = rng.choice(SIGNAL_KINDS)
        signal = SignalReceived(
            occurred_at=self.clock(),
            name="note",
            kind=kind,
            payload=rng.choice(ODD_VALUES),
            target="approval-0" if kind == "approval" else "",
            sent_by=rng.choice((None, "someone")),
            from_run="R" * 26 if kind == "message" else None,
        )
        return subjects.signal(self.prefix, f"signal-{self.number}-{rng.randint(0, 9)}"), signal

    def _ended(self) -> tuple[str, RunFact]:
        rng = self.rng
        status = rng.choice(ENDS)
        self.number += 1
        return (
            subjects.out(self.prefix, self.number, subjects.END_SUFFIX),
            RunEnded(
                occurred_at=self.clock(),
                decision=self._said(),
                status=status,
                output=rng.choice(ODD_VALUES) if status is RunStatus.DONE else None,
                error=random_error(rng) if status is RunStatus.FAILED else None,
                usage=random_usage(rng),
            ),
        )

    def _steps(self) -> Iterator[tuple[str, RunFact]]:
        """Schedule some steps, then tell of some outcomes: of these, of earlier attempts."""
        rng, attempts = self.rng, self.attempts
        said = self._said()
        suffixes = []
        scheduled = []
        for index in range(rng.randint(1, 3)):
            again = attempts and rng.random() < 0.4
            step_id = rng.choice(sorted(attempts)) if again else f"step-{self.number}-{index}"
            attempts[step_id] = attempts.get(step_id, 0) + 1
            kind = self.kinds.setdefault(step_id, rng.choice(list(StepKind)))
            scheduled.append(step_id)
            suffixes.append(subjects.step_suffix(kind, "main", step_id, attempts[step_id]))
        said = structs.replace(said, manifest=tuple(suffixes[1:]))
        for place, (step_id, suffix) in enumerate(zip(scheduled, suffixes, strict=True)):
            yield (
                subjects.out(self.prefix, self.number, suffix),
                StepScheduled(
                    occurred_at=self.clock(),
                    decision=said if place == 0 else None,
                    node_id=step_id.partition("-")[0],
                    name="lookup",
                    input=rng.choice(ODD_VALUES),
                    expires_at=self.clock(),
                ),
            )
        for step_id in scheduled:
            if rng.random() < 0.8:
                yield self._outcome(step_id, rng.randint(1, attempts[step_id]))

    def _outcome(self, step_id: str, attempt: int) -> tuple[str, RunFact]:
        rng, kind = self.rng, self.kinds[step_id]
        status = rng.choice(OUTCOMES)
        succeeded = status == "succeeded"
        return (
            subjects.result(self.prefix, step_id, attempt),
            StepResult(
                occurred_at=self.clock(),
                started_at=self.clock(),
                kind=kind,
                name="lookup",
                status=status,
                output=rng.choice(ODD_VALUES) if succeeded else None,
                error=None if succeeded else random_error(rng),
                usage=random_usage(rng) if kind is not StepKind.TOOL else None,
                model=rng.choice(MODELS) if kind is StepKind.AGENT else None,
                runner_id="runner-1",
            ),
        )


def random_log(rng: random.Random, runs: int) -> list[Message]:
    """The log of several runs, interleaved; each subject stands in it once.

    Within a run the order is mostly the one in which things happen, and sometimes any; but
    decisions that node record something follow each other, as the log's fence has it.
    """
    histories = [random_run(rng, number) for number in range(runs)]
    for history in histories:
        if rng.random() < 0.2:
            _shuffle(rng, history)
    log: dict[str, bytes] = {}
    while histories:
        history = rng.choice(histories)
        if history:
            subject, fact = history.pop(0)
            log.setdefault(subject, fact_bytes(fact))
        else:
            histories.remove(history)
    return list(log.items())


def _shuffle(rng: random.Random, history: list[tuple[str, RunFact]]) -> None:
    marking = [message for message in history if _records_something(message[1])]
    rng.shuffle(history)
    in_order = iter(marking)
    history[:] = [
        next(in_order) if _records_something(message[1]) else message for message in history
    ]


def _records_something(fact: RunFact) -> bool:
    decision = getattr(fact, "decision", None)
    return decision is not None and bool(decision.node_records)
