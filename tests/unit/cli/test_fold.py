from datetime import UTC, datetime

import pytest

from penstock.cli.failure import CommandError
from penstock.cli.fold import coloured_subject, fold_run, frame, tail_subject
from penstock.contracts.facts import DefinitionKind, RunInvoked
from penstock.contracts.subjects import parse_fact
from penstock.runs.state import Entry, evolve, new_state
from penstock.target import Target

RUN_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def test_frame_of_a_fact_holds_it_and_the_state_after_it() -> None:
    fact = RunInvoked(
        occurred_at=NOW, name="a", kind=DefinitionKind.AGENT, version=1, plan_digest="d"
    )
    entry = Entry(7, parse_fact(f"run.acme.3.{RUN_ID}.in.invoke"), fact)
    shown = frame(entry, evolve(new_state("acme", 3, RUN_ID), entry))
    assert shown["seq"] == 7
    assert shown["fact"]["type"] == "run.invoked"
    assert shown["state"] == {"status": "created", "decisions": 0, "steps": {}}


def test_fold_of_what_is_no_run_id_is_misuse(target: Target) -> None:
    with pytest.raises(CommandError) as caught:
        fold_run(target, "../etc", until_seq=None, as_json=False)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("pattern", ["", "run. x", "run..x", ".run", "run."])
def test_tail_of_what_is_no_subject_is_misuse(target: Target, pattern: str) -> None:
    with pytest.raises(CommandError, match="is not a subject"):
        tail_subject(target, pattern, limit=1, as_json=False)


@pytest.mark.parametrize(
    "subject",
    [
        f"run.acme.3.{RUN_ID}.in.invoke",
        f"run.acme.3.{RUN_ID}.out.1.step.tool.http.a.1",
        f"run.acme.3.{RUN_ID}.out.1",
        "timer.due.acme.3.R.t",
    ],
)
def test_coloured_subject_keeps_its_text(subject: str) -> None:
    assert coloured_subject(subject).plain == subject
