"""JSON Schemas of users: what is refused when stored, and how values are checked."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts.errors import ErrorDetail
from penstock.contracts.json_schema import schema_faults, value_faults, with_defaults
from penstock.contracts.schema_defaults import UnusableSchemaError

DEEP: Any = {}
for _ in range(5000):
    DEEP = {"a": DEEP}


def faults(schema: dict[str, Any]) -> list[ErrorDetail]:
    return list(schema_faults(schema, "spec.input"))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["string", "null"], "format": "email"},
        {"pattern": r"^\p{L}+(?<rest>\d)$"},
        {"$ref": "#"},
        {
            "$id": "https://example.com/own",
            "properties": {"a": {"$ref": "https://example.com/own"}},
        },
        {"$defs": {"a/b": {"type": "null"}}, "$ref": "#/$defs/a~1b"},
        {"$defs": {"a": {"$anchor": "x"}}, "$ref": "#x"},
        {"properties": {"nullable": {"type": "null"}, "dependencies": {}, "$ref": {}}},
        {"default": {"$ref": "#/nowhere"}},
        {"enum": [{"$ref": "#/nowhere"}, {"nullable": True}]},
        {"const": {"$ref": "https://example.com"}},
        {"$defs": {"a": {"properties": {"next": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema#"},
    ],
)
def test_schema_without_faults(schema: dict[str, Any]) -> None:
    assert faults(schema) == []
    assert isinstance(value_faults(schema, {"a": 1}), list)


@pytest.mark.parametrize(
    ("schema", "path", "allowed"),
    [
        ({"type": "frog"}, "type", "array, boolean, integer"),
        ({"properties": {"a": {"minimum": "x"}}}, "properties.a.minimum", "number"),
        ({"items": [{"type": "string"}]}, "items", "boolean, object"),
        ({"pattern": "("}, "pattern", None),
        ({"pattern": "[^]"}, "pattern", "without lookaround"),
        ({"pattern": r"(a)\1"}, "pattern", "without lookaround"),
        ({"pattern": "(?=a)b"}, "pattern", "without lookaround"),
        ({"patternProperties": {"(": {}}}, "patternProperties", None),
        ({"patternProperties": {"(?=a)": {}}}, "patternProperties.(?=a)", "without lookaround"),
        ({"$ref": "#/$defs/b", "$defs": {"a": {}}}, "$ref", "#/$defs/a"),
        ({"properties": {"a": {"$ref": "#/nope"}}}, "properties.a.$ref", "#/$defs/NAME"),
        ({"allOf": [{}, {"$ref": "file:///etc/passwd"}]}, "allOf[1].$ref", "#/..."),
        ({"properties": {"a": {"$ref": "other.json"}}}, "properties.a.$ref", "#/..."),
        ({"properties": {"a": {"nullable": True}}}, "properties.a.nullable", "null"),
        ({"dependencies": {"a": ["b"]}}, "dependencies", "dependentRequired"),
        ({"additionalItems": False}, "additionalItems", "prefixItems"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "$schema", "2020-12"),
        ({"$ref": "#nowhere"}, "", None),
        ({"$defs": {"a": {"$id": "https://example.com/a"}}}, "$defs.a.$id", "of the whole"),
    ],
)
def test_fault_of_a_schema_has_its_place_and_what_is_allowed(
    schema: dict[str, Any], path: str, allowed: str | None
) -> None:
    (fault,) = faults(schema)
    assert fault.path == f"spec.input.{path}".rstrip(".")
    assert (allowed or "") in (fault.allowed or "")


def test_schema_that_is_nested_too_deeply_is_a_fault() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"properties": {"a": schema}}
    assert [fault.path for fault in faults(schema)] == ["spec.input"]


def test_all_faults_of_a_schema_come_at_once() -> None:
    schema = {"type": "frog", "properties": {"a": {"minimum": "x"}, "b": {"pattern": "("}}}
    assert [fault.path.removeprefix("spec.input.") for fault in faults(schema)] == [
        "properties.a.minimum",
        "properties.b.pattern",
        "type",
    ]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"multipleOf": 0.01}, 19.99),
        ({"type": "integer"}, 10**400),
        ({"type": "integer"}, 1.0),
        ({"pattern": r"\p{L}+"}, "ä"),
        ({"uniqueItems": True}, [{"a": number, "b": [number]} for number in range(2500)]),
        ({"type": "object"}, DEEP),
    ],
)
def test_value_that_fits(schema: dict[str, Any], value: Any) -> None:
    assert value_faults(schema, value) == []


@pytest.mark.parametrize(
    ("schema", "value", "path", "allowed"),
    [
        ({"multipleOf": 0.01}, 19.999, "input", None),
        ({"properties": {"n": {"minimum": 1}}}, {"n": 0}, "input.n", "minimum: 1"),
        ({"items": {"enum": ["a", 2]}}, ["a", "b"], "input[1]", "a, 2"),
        ({"pattern": r"^\d$"}, "\u0663", "input", r"pattern: ^\d$"),
        ({"type": "string"}, "\ud800", "input", None),
        ({"required": ["n"]}, {}, "input", None),
    ],
)
def test_value_that_does_not_fit_has_its_place(
    schema: dict[str, Any], value: Any, path: str, allowed: str | None
) -> None:
    (fault,) = value_faults(schema, value, "input")
    assert (fault.path, fault.allowed) == (path, allowed)


def test_pattern_that_backtracks_takes_linear_time() -> None:
    # A backtracking engine would need 2 ** 5000 steps.
    assert len(value_faults({"pattern": r"^(\w+\s?)*$"}, "a" * 5000 + "!")) == 1


def test_findings_of_a_value_are_bounded() -> None:
    assert len(value_faults({"items": {"type": "string"}}, list(range(1000)))) == 20


OPTIONS: dict[str, Any] = {
    "$defs": {
        "limit": {"type": "integer", "default": 5},
        "tree": {"properties": {"n": {"default": 1}, "next": {"$ref": "#/$defs/tree"}}},
    },
    "properties": {
        "limit": {"$ref": "#/$defs/limit"},
        "own": {"$ref": "#/$defs/limit", "default": 7},
        "nested": {"properties": {"a": {"default": None}}},
        "whole": {"default": {"x": 1}, "properties": {"y": {"default": [2]}}},
        "tree": {"$ref": "#/$defs/tree"},
        "list": {"prefixItems": [{}], "items": {"properties": {"k": {"default": "v"}}}},
        "map": {"additionalProperties": {"properties": {"k": {"default": "v"}}}},
        "either": {"anyOf": [{"properties": {"k": {"default": "v"}}}]},
    },
    "allOf": [{"properties": {"more": {"default": False}}}, {"$ref": "#"}, True],
}


@pytest.mark.parametrize(
    ("value", "added"),
    [
        ({}, {}),
        ({"limit": 0, "own": None}, {}),
        ({"nested": {}}, {"nested": {"a": None}}),
        ({"nested": {"a": 1}}, {}),
        ({"whole": {}}, {"whole": {"y": [2]}}),
        ({"tree": {"next": {"n": 2}}}, {"tree": {"n": 1, "next": {"n": 2}}}),
        ({"list": [{}, {}, 3, {"k": 1}]}, {"list": [{}, {"k": "v"}, 3, {"k": 1}]}),
        ({"map": {"a": {}}}, {"map": {"a": {"k": "v"}}}),
        ({"either": {}, "nested": [{}]}, {}),
    ],
)
def test_defaults_are_filled_in_at_any_depth(value: dict[str, Any], added: dict[str, Any]) -> None:
    before = repr(value)
    defaults = {"limit": 5, "own": 7, "whole": {"x": 1, "y": [2]}, "more": False}

    assert with_defaults(OPTIONS, value) == {**defaults, **value, **added}
    assert repr(value) == before


@pytest.mark.parametrize("value", [None, 1, "a", [1], {"a": {"n": 1}, "b": []}])
@pytest.mark.parametrize("schema", [True, {}, {"items": {}, "properties": {"a": True}}])
def test_value_without_missing_members_remains_itself(schema: Any, value: Any) -> None:
    assert with_defaults(schema, value) == value


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#", "default": {}}}},
        {
            "properties": {
                "a": {"$ref": "#", "default": {}},
                "b": {"$ref": "#", "default": {}},
            },
        },
        {
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{n}": {
                    "properties": {
                        side: {"$ref": f"#/$defs/d{n + 1}", "default": {}} for side in "lr"
                    }
                }
                for n in range(25)
            }
            | {"d25": {}},
        },
    ],
)
def test_defaults_without_an_end_are_a_fault_of_the_schema(schema: dict[str, Any]) -> None:
    with pytest.raises(UnusableSchemaError, match="no end"):
        with_defaults(schema, {})
    assert "no end" in faults(schema)[0].message


@pytest.mark.parametrize("schema", [{"type": "frog"}, {"$ref": "https://example.com/x"}, 5, None])
def test_schema_that_is_unusable_is_named_so(schema: Any) -> None:
    with pytest.raises(UnusableSchemaError):
        value_faults(schema, {})
