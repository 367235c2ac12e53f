"""Schemas that ask for much work, and values that would take it: counted, not tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.contracts.json_schema import MAX_CHECKS, schema_faults, value_faults
from penstock.contracts.schema_defaults import UnusableSchemaError
from penstock.contracts.schema_work import SchemaWork, larger

Schema = dict[str, Any]
ROOT: Schema = {"$ref": "#"}


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def chain(length: int, form: Callable[[Schema], Schema]) -> Schema:
    """Return a schema that refers to a second one, that to a third one, ..."""
    links = {f"d{n}": form({"$ref": f"#/$defs/d{n + 1}"}) for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "object"}}}


CHAINS: list[Callable[[Schema], Schema]] = [
    lambda then: {"allOf": [then, then]},
    lambda then: {"anyOf": [then, {"not": then}]},
    lambda then: {"allOf": [{"properties": {"a": then}}, {"properties": {"a": then}}]},
    lambda then: {"properties": {"a": then}, "patternProperties": {"^a": then}},
    lambda then: {"if": then, "then": then},
    lambda then: {"items": then, "contains": then},
]


@pytest.mark.parametrize("form", CHAINS)
def test_schema_that_stands_for_very_many_checks_is_unusable(
    form: Callable[[Schema], Schema],
) -> None:
    long, short = chain(60, form), chain(4, form)
    assert not list(schema_faults(short, ""))
    assert isinstance(value_faults(short, {}), list)
    (fault,) = schema_faults(long, "spec.input")
    assert (fault.path, "more than 10000 checks" in fault.message) == ("spec.input", True)
    with pytest.raises(UnusableSchemaError, match="10000 checks"):
        value_faults(long, {})


def test_references_by_anchor_and_with_escapes_count_as_well() -> None:
    links: Schema = {
        f"d{n}": {"$anchor": f"d{n}", "allOf": [{"$ref": f"#d{n + 1}"}] * 2} for n in range(40)
    }
    assert list(schema_faults({"$ref": "#d0", "$defs": {**links, "z": {"$anchor": "d40"}}}, ""))
    escaped: Schema = {
        f"d {n}": {"allOf": [{"$ref": f"#/$defs/d%20{n + 1}"}] * 2} for n in range(40)
    }
    schema: Schema = {"$ref": "#/$defs/d%200", "$defs": {**escaped, "d 40": {}}}
    assert list(schema_faults(schema, ""))


@pytest.mark.parametrize(
    ("schema", "spread"),
    [
        ({}, 1),
        ({"properties": {"a": {}, "b": {}}}, 1),
        ({"properties": {"a": {}}, "additionalProperties": {}, "allOf": [{}, {}]}, 3),
        ({"properties": {"a": {"allOf": [True] * 9}}}, 10),
        ({"prefixItems": [{"enum": [1]}] * 50, "items": {}}, 2),
        (chain(30, lambda then: {"properties": {"a": then, "b": then}}), 2),
    ],
)
def test_spread_is_the_most_checks_of_one_part(schema: Schema, spread: int) -> None:
    assert SchemaWork(schema).spread == spread


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {"a": ROOT}}, {"properties": {"a": ROOT}}]},
        {"properties": {"a": ROOT}, "patternProperties": {"^a": ROOT}},
        {"anyOf": [{"properties": {"a": ROOT}}, {"additionalProperties": ROOT}]},
    ],
)
def test_circle_is_checked_once_for_each_part_and_its_errors_are_not(schema: Schema) -> None:
    assert not list(schema_faults(schema, ""))
    assert value_faults(schema, deep(90)) == []
    work = SchemaWork(schema)
    assert not work.exceeds(deep(90), 2000)
    assert work.repeats(deep(20), 1_000_000)
    assert not work.repeats(deep(2), 100)


def test_value_in_alternatives_of_alternatives_has_one_error() -> None:
    operator: Schema = {
        "properties": {"op": {"type": "string"}, "left": ROOT, "right": ROOT},
        "required": ["op", "left"],
    }
    schema: Schema = {
        "oneOf": [{"type": "number"}, *[{**operator, "title": str(n)} for n in range(4)]]
    }
    value: Any = "x"
    for _ in range(40):
        value = {"op": "+", "left": value, "right": 1}
    # Its errors, with those inside them, would be 4 ** 40.
    (fault,) = value_faults(schema, value, "input")
    assert (fault.path, "too many alternatives" in fault.message) == ("input", True)


def test_value_that_takes_too_many_checks_is_refused() -> None:
    schema: Schema = {"items": {"allOf": [{"type": "number"}] * 2000}}
    assert value_faults(schema, list(range(100))) == []
    (fault,) = value_faults(schema, list(range(1001)), "input")
    assert (fault.path, fault.message) == (
        "input",
        f"takes more than {MAX_CHECKS} checks by its schema",
    )


def test_large_value_has_its_first_error() -> None:
    value: Any = [{"n": 1}] * 5000 + [{"n": "x"}] * 5000
    schema: Schema = {"items": {"properties": {"n": {"type": "integer"}}}}
    assert [fault.path for fault in value_faults(schema, value, "input")] == ["input[5000].n"]


@pytest.mark.parametrize(
    ("value", "parts"), [(1, 1), ("a" * 950, 10), ([1, [2, {"a": 3}]], 6), ({"a": {}}, 2)]
)
def test_parts_of_a_value_are_counted(value: Any, parts: int) -> None:
    assert larger(value, parts - 1)
    assert not larger(value, parts)


@pytest.mark.parametrize(
    "schema",
    [
        {"items": {"enum": [{"k": number} for number in range(3_000)]}},
        {"items": {"const": {"k": list(range(3_000))}}},
        {"items": {"enum": [[number] for number in range(3_000)]}},
    ],
)
def test_members_that_a_value_is_compared_with_count(schema: Schema) -> None:
    value: Any = [{"k": 2_999}] * 8_000
    (found,) = value_faults(schema, value)
    assert "checks by its schema" in found.message
    assert (
        value_faults({"items": {"enum": [f"k{n}" for n in range(3_000)]}}, ["k2999"] * 8_000) == []
    )
    assert value_faults(schema, []) == []
