"""Facts that others wrote: what cannot be read fails its step, and hides nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from penstock.bus.reader import decode_entry
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError
from penstock.contracts.facts import StepResult, fact_bytes
from penstock.contracts.structs import MalformedError
from penstock.runs.quarantine import UNREADABLE_RESULT, quarantined, read_at

RESULT = "run.acme.0.R.in.result.price.2"
AT = b'"occurred_at": "2026-01-02T03:04:05Z", "started_at": "2026-01-02T03:04:05Z"'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00",
        b'{"type": "run.hexed"}',
        b'{"type": "run.cancel_requested", ' + AT + b"}",
        b'{"type": "step.result", "kind": "tool", "name": "t", "status": "succeeded", "output": '
        + b"[" * 300
        + b"]" * 300
        + b", "
        + AT
        + b"}",
        b'{"type": "step.result", "kind": "tool", "name": "t", "status": "succeeded",'
        b' "usage": {"cost_usd": -1}, ' + AT + b"}",
        b'{"type": "step.result", "kind": "tool", "name": "t", "status": "succeeded",'
        b' "output": NaN, ' + AT + b"}",
    ],
)
def test_result_that_cannot_be_read_is_a_failed_one(body: bytes) -> None:
    fact = decode_entry(RESULT, 7, body).fact

    assert isinstance(fact, StepResult)
    assert fact.status == "failed"
    assert fact.error is not None
    assert fact.error.code == UNREADABLE_RESULT
    assert "step price" in fact.error.message
    assert quarantined(fact)
    expected = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) if AT in body else None
    assert fact.occurred_at == (expected or datetime(1970, 1, 1, tzinfo=UTC))
    fact_bytes(fact)  # it can be stored again


@pytest.mark.parametrize("at", ["yesterday", "2026-01-01T00:00:00", "9999-12-31T23:59:59-14:00"])
def test_time_of_a_bad_result_is_never_a_bad_one(at: str) -> None:
    fact = decode_entry(RESULT, 7, b'{"occurred_at": "%s"}' % at.encode()).fact
    assert fact.occurred_at.year == 1970


def test_other_facts_that_cannot_be_read_are_refused() -> None:
    for event in ("in.signal.go", "in.invoke", "in.cancel", "out.1.state", "out.1.end"):
        with pytest.raises(InvariantError) as refused:
            decode_entry(f"run.acme.0.R.{event}", 7, b'{"type": "run.hexed"}')
        assert refused.value.code == "unreadable_fact"


def test_fact_that_its_subject_does_not_announce_is_refused() -> None:
    body = fact_bytes(
        decode_entry(RESULT, 7, b"").fact,
    )
    with pytest.raises(MalformedError, match="cannot stand there"):
        read_at(subjects.parse_fact("run.acme.0.R.in.signal.go"), body)
