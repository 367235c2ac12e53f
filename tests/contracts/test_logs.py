"""Golden logs: complete runs as releases wrote them, replayed by the engine of today.

`golden/logs/{writer}/{run}.ndjson` is a log, `.plan.json` the exact bytes of its plan, and
`.state.json` what the writer made of it. None of them is ever edited; each release adds a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from penstock.contracts import subjects
from penstock.contracts.facts import RunEnded, RunFact, StateChanged, StepScheduled
from penstock.contracts.ids import content_digest
from penstock.contracts.messages import LogEntry
from penstock.contracts.plan import PLAN, Plan
from penstock.contracts.structs import decode, plain
from penstock.runs.state import Entry, RunState, evolve, fold, new_state
from penstock_orchestrator.core.decide import decide, repair
from tests.contracts.record import STORIES, summary

LOGS = Path(__file__).parent / "golden" / "logs"
FILES = sorted(LOGS.glob("*/*.ndjson"))


@dataclass(frozen=True)
class Recording:
    """A log with its plan."""

    file: Path

    @cached_property
    def plan_bytes(self) -> bytes:
        return self.file.with_suffix(".plan.json").read_bytes()

    @cached_property
    def plan(self) -> Plan:
        return PLAN.validate_json(self.plan_bytes)

    @cached_property
    def entries(self) -> list[Entry]:
        lines = self.file.read_text(encoding="utf-8").splitlines()
        read = [decode(LogEntry, line) for line in lines]
        return [Entry(item.seq, subjects.parse_fact(item.subject), item.fact) for item in read]

    @property
    def empty(self) -> RunState:
        first = self.entries[0].subject
        return new_state(first.tenant, first.shard, first.run_id)

    def prefixes(self) -> Iterator[tuple[RunState, list[Entry]]]:
        """Yield the state after each prefix, and what the log holds from there on."""
        state = self.empty
        for index, entry in enumerate(self.entries):
            state = evolve(state, entry)
            yield state, self.entries[index + 1 :]


RUNS = [Recording(file) for file in FILES]


@pytest.fixture(params=RUNS, ids=lambda run: f"{run.file.parent.name}-{run.file.stem}")
def run(request: pytest.FixtureRequest) -> Recording:
    found: Recording = request.param
    return found


def decision_of(entry: Entry) -> Any:
    """Return the decision that a message stands first in, or `None`."""
    return getattr(entry.fact, "decision", None)


def essence(fact: RunFact) -> dict[str, Any]:
    """Return what a message of a decision says, in the form that all writers have in common."""
    if isinstance(fact, StepScheduled):
        kept = {"node_id", "name", "input", "expires_at", "secrets", "at_most_once"}
        return _only(fact, kept)
    if isinstance(fact, StateChanged):
        return {"waits": [plain(wait) for wait in fact.decision.waits]}
    assert isinstance(fact, RunEnded)
    return _only(fact, {"status", "output", "error"})


def _only(fact: RunFact, names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in plain(fact).items() if name in names}


def is_part(recorded: Any, decided: Any) -> bool:
    """Tell whether a later writer says all that an earlier one did; it may say more."""
    if isinstance(recorded, dict) and isinstance(decided, dict):
        return all(
            key in decided and is_part(value, decided[key]) for key, value in recorded.items()
        )
    return bool(recorded == decided)


def test_golden_logs_exist_of_every_kind() -> None:
    assert {file.stem for file in FILES} >= {story.__name__ for story in STORIES}


def test_golden_log_folds_to_what_its_writer_knew(run: Recording) -> None:
    stored = json.loads(run.file.with_suffix(".state.json").read_text(encoding="utf-8"))

    assert summary(fold(run.empty, run.entries)) == stored


def test_golden_log_names_the_plan_by_its_bytes(run: Recording) -> None:
    state = fold(run.empty, run.entries)

    assert state.request.plan_digest == content_digest(run.plan_bytes)


def test_golden_log_gets_no_decision_after_its_end(run: Recording) -> None:
    ends = 0
    for state, _ in run.prefixes():
        if state.ended is not None:
            ends += 1
            assert decide(run.plan, state, state.ended.occurred_at, state.last_seq) is None
            assert repair(run.plan, state) == []
    assert ends


def test_golden_log_is_decided_today_as_it_was_recorded(run: Recording) -> None:
    replayed = 0
    for state, rest in run.prefixes():
        if not rest or (decision := decision_of(rest[0])) is None:
            continue
        first = rest[0]
        decided = decide(run.plan, state, first.fact.occurred_at, decision.cause_seq)
        assert decided is not None, f"nothing is decided before {first}"
        assert decided.number == first.subject.decision
        suffixes = [output.suffix for output in decided.outputs]
        assert suffixes[1:] == list(decision.manifest)
        made = decision_of(Entry(0, first.subject, decided.outputs[0].fact))
        assert made.cause_seq == decision.cause_seq
        # A later engine may note more than an earlier one knew of.
        assert [
            node_record for node_record in made.node_records if node_record in decision.node_records
        ] == list(decision.node_records)
        assert (made.blocked, made.stops) == (decision.blocked, decision.stops)
        recorded = {
            entry.subject: entry.fact for entry in rest if entry.subject.decision == decided.number
        }
        prefix = subjects.run_prefix(*first.subject[:3])
        for output in decided.outputs:
            subject = subjects.parse_fact(subjects.out(prefix, decided.number, output.suffix))
            if subject not in recorded:
                # Published by nobody: the run was cancelled or had ended by then.
                continue
            fact = recorded[subject]
            assert essence(output.fact) == essence(fact)
            if isinstance(output.fact, StepScheduled) and isinstance(fact, StepScheduled):
                assert is_part(fact.config, output.fact.config)
        assert subjects.out(prefix, decided.number, suffixes[0]) == subject_of(first, prefix)
        replayed += 1
    assert replayed


def subject_of(entry: Entry, prefix: str) -> str:
    """Return the subject of a decision's message."""
    at = entry.subject
    suffix = (
        subjects.step_suffix(at.kind, at.queue, at.step_id, at.attempt)
        if at.event == "step"
        else at.event
    )
    return subjects.out(prefix, at.decision, suffix)


def test_golden_log_cut_within_a_decision_is_repaired_as_it_was_recorded(run: Recording) -> None:
    for state, rest in run.prefixes():
        repairs = repair(run.plan, state)
        for found in repairs:
            recorded = {
                entry.subject.step_id: entry.fact
                for entry in rest
                if entry.subject.event == "step" and entry.subject.decision == found.number
            }
            for output in found.outputs:
                step_id = subjects.parse_suffix(output.suffix)[2]
                assert essence(output.fact) == essence(recorded[step_id])


def test_golden_log_needs_nothing_more_where_it_waits_for_an_input(run: Recording) -> None:
    for state, rest in run.prefixes():
        if rest and not rest[0].subject.decision and not repair(run.plan, state):
            assert state.updated_at is not None
            assert decide(run.plan, state, state.updated_at, 0) is None
