"""Row changes of decisions: steps, node records, waits; and the profile of an ended run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json, to_json

from penstock.contracts import subjects
from penstock.contracts.facts import Decision, NodeRecord, StepScheduled, Wait
from penstock.contracts.structs import encode
from penstock.contracts.subjects import FactSubject
from penstock.runs.profiles import RunProfile, micros, profile_of
from penstock.runs.state import PENDING
from penstock_archive.rows import RunRow, StepRow, as_micros


def note_step(run: RunRow, subject: FactSubject, fact: StepScheduled, at: Any) -> None:
    """Note a scheduled attempt at a step."""
    if fact.decision is not None:
        note_decision(run, subject, fact.decision, at)
    else:
        run.decisions = max(run.decisions, subject.decision)
    step_id, attempt = subject.step_id, subject.attempt
    step = run.steps.get(step_id)
    if step is not None and step.attempt > attempt:
        step.add_superseded(attempt, micros(fact.occurred_at))
        run.changed_steps.add(step_id)
        return
    if step is not None and step.attempt == attempt and step.status != "planned":
        if not step.node_id:
            # Its outcome came first; until now the step was known from the manifest alone.
            step.scheduled_at = at
            step.node_id = fact.node_id
            step.name = fact.name
            run.changed_steps.add(step_id)
        run.touch(at)
        return
    run.steps[step_id] = StepRow(
        step_id,
        subject.kind,
        subject.queue,
        fact.node_id,
        fact.name,
        subject.decision,
        attempt,
        "scheduled",
        at,
        earlier=step.earlier_text() if step is not None else None,
    )
    run.changed_steps.add(step_id)
    run.touch(at)


def note_decision(run: RunRow, subject: FactSubject, decision: Decision, at: Any) -> None:
    """Note what a decision node records, stops, waits for, and promises; mirrors ``evolve``."""
    if decision.node_records:
        note_records(run, decision.node_records)
    for step_id in decision.stops:
        step = run.steps.get(step_id)
        if step is not None and step.open and step.decision < subject.decision:
            step.status = "stopped"
            run.changed_steps.add(step_id)
    if decision.waits:
        note_waits(run, decision.waits)
    for suffix in decision.manifest:
        kind, queue, step_id, attempt = subjects.parse_suffix(suffix)
        known = run.steps.get(step_id)
        if known is None or known.attempt < attempt:
            run.steps[step_id] = StepRow(
                step_id,
                kind,
                queue,
                "",
                "",
                subject.decision,
                attempt,
                "planned",
                at,
                earlier=known.earlier_text() if known is not None else None,
            )
            run.changed_steps.add(step_id)
    run.decisions = max(run.decisions, subject.decision)


def note_records(run: RunRow, node_records: Iterable[NodeRecord]) -> None:
    """Keep the ids of open node records that something outside settles."""
    pending: set[str] = set(from_json(run.pending)) if run.pending is not None else set()
    for node_record in node_records:
        if node_record.kind in PENDING:
            (pending.add if node_record.status == "open" else pending.discard)(
                node_record.record_id
            )
    run.pending = to_json(sorted(pending)).decode() if pending else None


def note_waits(run: RunRow, waits: Iterable[Wait]) -> None:
    """Note steps that wait for their next attempt."""
    for wait in waits:
        step = run.steps.get(wait.step_id)
        if step is not None and step.attempt < wait.next_attempt:
            step.status = "waiting"
            run.changed_steps.add(wait.step_id)


def profile_text(run: RunRow) -> str:
    """Return the profile of an ended run, as JSON."""
    profile = profile_of_steps(run.created_at, run.ended_at, run.steps.values())
    return encode(profile).decode()


def profile_of_steps(created_at: Any, ended_at: Any, steps: Iterable[StepRow]) -> RunProfile:
    """Return the profile of an ended run; times as any store has them."""
    attempts = [attempt for step in steps for attempt in step.attempts()]
    ended = as_micros(ended_at)
    assert ended is not None  # noqa: S101 - it has ended
    return profile_of(as_micros(created_at), ended, attempts)
