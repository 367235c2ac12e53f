"""Structs of the wire: finite numbers, readable errors, and their bridge to pydantic."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import BaseModel, ValidationError

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import StepKind, StepResult, fact_bytes, read_fact
from penstock.contracts.json import Json
from penstock.contracts.structs import MalformedError, convert, decode, encode, plain
from penstock.contracts.usage import RunLimits, Usage

AT = datetime(2026, 1, 1, tzinfo=UTC)


def result(output: Json) -> StepResult:
    return StepResult(
        occurred_at=AT,
        kind=StepKind.TOOL,
        name="t",
        status="succeeded",
        output=output,
        started_at=AT,
    )


class Holder(BaseModel):
    limits: RunLimits = RunLimits()
    error: ErrorInfo | None = None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_encode_of_a_number_that_is_not_finite_names_its_path(number: float) -> None:
    with pytest.raises(MalformedError, match=r"output\.a\[1\]"):
        fact_bytes(result({"a": [1, number]}))


def test_encode_of_a_lone_surrogate_is_malformed() -> None:
    with pytest.raises(MalformedError):
        fact_bytes(result("\ud800"))


@pytest.mark.parametrize("number", [b"NaN", b"1e400", b"Infinity"])
def test_read_of_a_number_that_is_not_finite_is_refused(number: bytes) -> None:
    body = fact_bytes(result(4711)).replace(b"4711", number)
    with pytest.raises(ValueError, match=r".+"):
        read_fact(body)


@pytest.mark.parametrize("value", [2**64, -(10**30), "text \u0000", None, {"a": [True, 1.5]}])
def test_fact_read_back_is_the_one_written(value: Json) -> None:
    assert read_fact(fact_bytes(result(value))) == result(value)


def test_read_ignores_unknown_fields_and_takes_a_whole_number_for_a_cost() -> None:
    assert decode(Usage, b'{"cost_usd": 2, "news": 1}') == Usage(cost_usd=2.0)


def test_read_out_of_range_names_its_path() -> None:
    with pytest.raises(MalformedError, match=r"\$\.max_depth"):
        decode(RunLimits, b'{"max_depth": 33}')
    with pytest.raises(MalformedError, match="finite"):
        convert(RunLimits, {"max_cost_usd": float("inf")})


def test_encode_leaves_defaults_out_and_plain_has_them_all() -> None:
    assert encode(Usage(input_tokens=3)) == b'{"input_tokens":3}'
    assert plain(Usage(input_tokens=3)) == {
        "input_tokens": 3,
        "output_tokens": 0,
        "cost_usd": 0.0,
        "unknown_price": False,
        "model_calls": 0,
        "steps": 0,
    }


def test_struct_in_a_pydantic_model_is_validated_and_written() -> None:
    holder = Holder.model_validate({"limits": {"max_steps": 5}, "error": None})
    assert holder.limits == RunLimits(max_steps=5)
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    with pytest.raises(ValidationError, match="max_steps"):
        Holder.model_validate({"limits": {"max_steps": 0}})
