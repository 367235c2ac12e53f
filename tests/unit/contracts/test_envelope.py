"""The envelope: what every reader of a value takes, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, TypeAdapter, ValidationError

from penstock.contracts.envelope import (
    MAX_DEPTH,
    MAX_FACT_DEPTH,
    MAX_NUMBER,
    BoundedTime,
    EnvelopeError,
    check_text,
    check_value,
    depth_of,
    search,
    within,
)
from penstock.contracts.facts import StepKind, StepResult, fact_bytes, read_fact
from penstock.contracts.structs import MalformedError
from penstock.contracts.usage import MAX_USED, Usage

AT = datetime(2026, 1, 1, tzinfo=UTC)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_NUMBER, MAX_NUMBER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from('[]{}"\\')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\a'), inner),
)


def nested(depth: int, leaf: str = "1") -> str:
    return "[" * depth + leaf + "]" * depth


def depth_by_recursion(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_by_recursion, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_by_recursion, value), default=0)
    return 0


def result(output: Any, **fields: Any) -> StepResult:
    return StepResult(
        **{
            "occurred_at": AT,
            "kind": StepKind.TOOL,
            "name": "t",
            "status": "succeeded",
            "output": output,
            "started_at": AT,
            **fields,
        }
    )


@given(VALUES)
def test_depth_of_any_text_is_that_of_its_value(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert depth_of(text.encode()) == depth_by_recursion(value)


@given(VALUES)
def test_values_of_json_are_within_the_envelope(value: Any) -> None:
    check_value(value)
    check_text(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('{"a": [1, NaN]}', "a[1]", "finite"),
        ('{"a": {"b": 1e400}}', "a.b", "finite"),
        ("-Infinity", "$", "finite"),
        ('{"a": ' + "1" * 5000 + "}", "a", "range"),
        ('{"a": -' + "1" * 400 + "}", "a", "range"),
        ('["\\ud800"]', "[0]", "surrogate"),
        ('{"a": {"\\udfff": 1}}', "a", "surrogate"),
        (nested(MAX_DEPTH + 1), "[0][0]", "nested"),
        ('{"a": ' + nested(200) + "}", "a[0]", "nested"),
        (nested(100_000), "$", "nested"),
    ],
)
def test_value_outside_of_the_envelope_is_refused_with_its_place(
    text: str, place: str, problem: str
) -> None:
    with pytest.raises(EnvelopeError, match=problem) as refused:
        check_text(text.encode())
    assert f"at `{place}" in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        nested(MAX_DEPTH),
        '"' + "[" * 500 + '"',
        f"{MAX_NUMBER}",
        "0." + "1" * 500,
        '"\\ud83d\\ude00"',
    ],
)
def test_value_at_the_edge_is_taken(text: str) -> None:
    check_text(text.encode())
    check_value(json.loads(text))


@pytest.mark.parametrize("text", ["", "{", "[1,]", "\x00", '{"a" 1}'])
def test_text_that_is_no_json_is_left_to_its_reader(text: str) -> None:
    check_text(text.encode())


def test_value_without_a_json_form_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    unfit: Any
    for unfit in (circle, 10**5000, float("nan"), {"a": "\ud800"}, {1j: 2}):
        with pytest.raises(EnvelopeError):
            check_value(unfit)


def test_nul_is_refused_where_a_database_has_to_hold_the_text() -> None:
    values: list[JsonValue] = [{"a": ["\0"]}, {"a\0": 1}]
    for value in values:
        check_value(value)
        with pytest.raises(EnvelopeError, match=r"U\+0000"):
            check_value(value, nul=False)


def test_finding_stands_behind_the_place_of_the_value() -> None:
    with pytest.raises(EnvelopeError) as refused:
        search({"a": [float("inf")]})
    error = refused.value.rejected("invalid_request", at="body")
    assert (error.code, error.details[0].path) == ("invalid_request", "body.a[0]")
    assert "body.a[0]" in error.message
    with pytest.raises(EnvelopeError) as refused:
        search([float("inf")])
    assert refused.value.rejected("x", at="body").details[0].path == "body[0]"


# -- facts ---------------------------------------------------------------------------------------


@given(VALUES.filter(lambda value: depth_by_recursion(value) < MAX_DEPTH))
def test_fact_that_is_written_can_be_read_by_every_reader(value: Any) -> None:
    body = fact_bytes(result(value))
    assert read_fact(body) == result(value)
    TypeAdapter(JsonValue).validate_json(body)


def test_fact_is_refused_by_writer_and_reader_alike() -> None:
    deep = json.loads(nested(MAX_FACT_DEPTH))
    with pytest.raises(MalformedError, match="nested"):
        fact_bytes(result(deep))
    body = fact_bytes(result(4711))
    for bad in (nested(MAX_FACT_DEPTH), "1" * 400, "NaN", "1e400", '"\\ud800"', '"\xff"'):
        with pytest.raises(MalformedError):
            read_fact(body.replace(b"4711", bad.encode("latin-1")))


@pytest.mark.parametrize(
    "usage",
    [
        '{"cost_usd": -1}',
        '{"input_tokens": -1}',
        '{"steps": 1000000000001}',
        '{"steps": 1.5}',
    ],
)
def test_usage_that_no_call_can_have_is_refused(usage: str) -> None:
    body = fact_bytes(result(1, usage=Usage(input_tokens=4711)))
    with pytest.raises(MalformedError, match="usage"):
        read_fact(body.replace(b'{"input_tokens":4711}', usage.encode()))


def test_sum_of_usages_stays_within_bounds() -> None:
    most = Usage(input_tokens=MAX_USED, cost_usd=float(MAX_USED), steps=MAX_USED)
    assert most.plus(most) == most


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_time_at_an_edge_of_the_calendar_is_refused(at: str) -> None:
    body = fact_bytes(result(1))
    with pytest.raises(MalformedError, match="year"):
        read_fact(body.replace(b"2026-01-01T00:00:00Z", at.encode()))
    with pytest.raises(ValidationError, match="year"):
        TypeAdapter(BoundedTime).validate_python(at)


def test_times_within_bounds_have_a_form_in_every_zone() -> None:
    for text in ("0002-01-01T00:00:00Z", "9998-12-31T23:59:59.999999Z"):
        at = TypeAdapter(BoundedTime).validate_python(text)
        for hours in (-23, 23):
            at.astimezone(timezone(timedelta(hours=hours)))


def test_cheap_test_lets_no_depth_and_no_long_number_through() -> None:
    assert within(b'{"a": "[[[[", "b": [1]}', 2)
    assert not within(b"[[[1]]]", 2)
    assert not within(b"[" + b"9" * 400 + b"]", 2)
