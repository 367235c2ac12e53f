from __future__ import annotations

import pytest

from penstock.contracts.errors import (
    ConflictError,
    ErrorDetail,
    InvariantError,
    PenstockError,
    RejectedError,
    TransientError,
)
from penstock_gateway.core.problems import CODE_OF_STATUS, problem_of, retry_after, status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RejectedError("anything_else", "x"), 422),
        (RejectedError("run_not_found", "x"), 404),
        (RejectedError("unauthenticated", "x"), 401),
        (RejectedError("body_too_large", "x"), 413),
        (TransientError("append_timeout", "x"), 503),
        (ConflictError("wrong_revision", "x"), 409),
        (InvariantError("unreadable_fact", "x"), 500),
    ],
)
def test_status_follows_code_then_family(error: PenstockError, status: int) -> None:
    assert problem_of(error).status == status


def test_problem_keeps_every_finding() -> None:
    found = (ErrorDetail(path="spec.model", message="missing", allowed="a model"),)
    problem = problem_of(RejectedError("invalid_document", "no", details=found))
    assert (problem.code, problem.detail, problem.errors) == ("invalid_document", "no", found)
    assert problem.type == "urn:penstock:problem:invalid_document"
    assert problem.title == "Unprocessable Content"


def test_problem_of_a_broken_invariant_hides_its_inside() -> None:
    problem = problem_of(InvariantError("unreadable_fact", "run.acme.3.X cannot be read"))
    assert "acme" not in problem.detail
    assert problem.errors == ()


def test_retry_after_is_given_where_trying_again_makes_sense() -> None:
    assert retry_after(TransientError("x", "x")) == 1
    assert retry_after(TransientError("x", "x", retry_after_seconds=2.1)) == 3
    assert retry_after(RejectedError("rate_limited", "x", retry_after_seconds=0.2)) == 1
    assert retry_after(RejectedError("x", "x")) is None


@pytest.mark.parametrize(("status", "code"), CODE_OF_STATUS.items())
def test_codes_and_statuses_agree_both_ways(status: int, code: str) -> None:
    assert status_of(code, RejectedError.family) == status
