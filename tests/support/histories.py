"""Random histories of runs, plausible and less so, and what the archive must hold of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import JsonValue

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily, ErrorInfo
from penstock.contracts.facts import (
    FACT,
    BlockedCall,
    CancelRequested,
    Decision,
    DefinitionKind,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    Trigger,
    Usage,
    Wait,
)
from penstock.contracts.ids import run_id_from

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

End = Literal[RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED]
ENDS: tuple[End, ...] = (RunStatus.DONE, RunStatus.DONE, RunStatus.FAILED, RunStatus.CANCELLED)

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
    )


def random_error(rng: random.Random) -> ErrorInfo:
    return ErrorInfo(code="boom", message="it broke", family=rng.choice(list(ErrorFamily)))


def random_run(rng: random.Random, number: int) -> list[tuple[str, RunFact]]:
    """One run: decisions, attempts, waits, late outcomes, signals, cancellation, its end."""
    clock = Clock(rng)
    run_id = run_id_from(1_700_000_000_000 + number, rng.randbytes(10))
    prefix = subjects.run_prefix(rng.choice(TENANTS), 3, run_id)
    return list(_facts(rng, clock, prefix))


def _facts(rng: random.Random, clock: Clock, prefix: str) -> Iterator[tuple[str, RunFact]]:
    yield (
        subjects.invoke(prefix),
        RunInvoked(
            occurred_at=clock(),
            name=rng.choice(("research", "report")),
            kind=rng.choice(list(DefinitionKind)),
            version=rng.randint(1, 9),
            plan_digest="d" * 64,
            input=rng.choice(ODD_VALUES),
            session_id=rng.choice((None, "s1", "s2")),
            trigger=rng.choice(list(Trigger)),
            requested_by=rng.choice((None, "someone")),
            tags=rng.choice(({}, {"team": "a"}, {"team": "b", "nul\0": "\0"})),
        ),
    )
    if rng.random() < 0.1:
        yield subjects.cancel(prefix), CancelRequested(occurred_at=clock(), reason="never mind")
    decision = 0
    attempts: dict[str, int] = {}
    kinds: dict[str, StepKind] = {}
    for _ in range(rng.randint(0, 5)):
        decision += 1
        if rng.random() < 0.2 and attempts:
            step_id = rng.choice(sorted(attempts))
            wait = Wait(
                timer_id=f"{step_id}-wait",
                step_id=step_id,
                next_attempt=attempts[step_id] + rng.randint(0, 1),
                due_at=clock(),
            )
            yield (
                subjects.out(prefix, decision, subjects.STATE_SUFFIX),
                StateChanged(occurred_at=clock(), decision=Decision(cause_seq=1), waits=(wait,)),
            )
            continue
        yield from _decision(rng, clock, prefix, decision, attempts, kinds)
        if rng.random() < 0.15:
            signal = SignalReceived(
                occurred_at=clock(), name="note", payload=rng.choice(ODD_VALUES)
            )
            yield subjects.signal(prefix, f"signal-{decision}"), signal
    if rng.random() < 0.8:
        status = rng.choice(ENDS)
        yield (
            subjects.out(prefix, decision + 1, subjects.END_SUFFIX),
            RunEnded(
                occurred_at=clock(),
                decision=Decision(cause_seq=1),
                status=status,
                output=rng.choice(ODD_VALUES) if status is RunStatus.DONE else None,
                error=random_error(rng) if status is RunStatus.FAILED else None,
                usage=random_usage(rng),
            ),
        )
        for step_id, attempt in attempts.items():
            if rng.random() < 0.1:
                yield _outcome(rng, clock, prefix, step_id, attempt + 1, kinds[step_id])


def _decision(
    rng: random.Random,
    clock: Clock,
    prefix: str,
    decision: int,
    attempts: dict[str, int],
    kinds: dict[str, StepKind],
) -> Iterator[tuple[str, RunFact]]:
    """Schedule some steps, then tell of some outcomes: of these, of earlier attempts."""
    suffixes = []
    scheduled = []
    for index in range(rng.randint(1, 3)):
        again = attempts and rng.random() < 0.4
        step_id = rng.choice(sorted(attempts)) if again else f"step-{decision}-{index}"
        attempts[step_id] = attempts.get(step_id, 0) + 1
        kind = kinds.setdefault(step_id, rng.choice(list(StepKind)))
        scheduled.append(step_id)
        suffixes.append(subjects.step_suffix(kind, "main", step_id, attempts[step_id]))
    blocked = (BlockedCall(step_id="x", tool="rm", reason="no"),) if rng.random() < 0.1 else ()
    for place, (step_id, suffix) in enumerate(zip(scheduled, suffixes, strict=True)):
        yield (
            subjects.out(prefix, decision, suffix),
            StepScheduled(
                occurred_at=clock(),
                decision=Decision(cause_seq=1, manifest=tuple(suffixes[1:]), blocked=blocked)
                if place == 0
                else None,
                node_id=step_id.partition("-")[0],
                name="lookup",
                input=rng.choice(ODD_VALUES),
                expires_at=clock(),
            ),
        )
    for step_id in scheduled:
        if rng.random() < 0.8:
            attempt = rng.randint(1, attempts[step_id])
            yield _outcome(rng, clock, prefix, step_id, attempt, kinds[step_id])


def _outcome(
    rng: random.Random, clock: Clock, prefix: str, step_id: str, attempt: int, kind: StepKind
) -> tuple[str, RunFact]:
    failed = rng.random() < 0.3
    agent = kind is StepKind.AGENT
    return (
        subjects.result(prefix, step_id, attempt),
        StepResult(
            occurred_at=clock(),
            started_at=clock(),
            kind=kind,
            name="lookup",
            status="failed" if failed else "succeeded",
            output=None if failed else rng.choice(ODD_VALUES),
            error=random_error(rng) if failed else None,
            usage=random_usage(rng) if agent else None,
            model=rng.choice(MODELS) if agent else None,
            runner_id="runner-1",
        ),
    )


def random_log(rng: random.Random, runs: int) -> list[Message]:
    """The log of several runs, interleaved; each subject stands in it once.

    Within a run the order is mostly the one in which things happen, and sometimes any.
    """
    histories = [random_run(rng, number) for number in range(runs)]
    for history in histories:
        if rng.random() < 0.2:
            rng.shuffle(history)
    log: dict[str, bytes] = {}
    while histories:
        history = rng.choice(histories)
        if history:
            subject, fact = history.pop(0)
            log.setdefault(subject, FACT.dump_json(fact))
        else:
            histories.remove(history)
    return list(log.items())
