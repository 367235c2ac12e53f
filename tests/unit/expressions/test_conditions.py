"""Conditions: what holds, and what can be said of them without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from penstock.contracts.errors import RejectedError
from penstock.expressions.conditions import (
    check_condition,
    check_expression,
    check_template,
    condition_references,
    holds,
)
from penstock.expressions.evaluator import Path
from penstock.expressions.samples import UNKNOWN, sample_of

SCOPE: dict[str, Any] = {
    "input": {
        "n": 3,
        "s": "abc",
        "none": None,
        "tags": ["a", "b"],
        "odd": [0, "", None, False, [], 1],
        "breaks": ["\u2028", "\r", "\n"],
        "rows": [{"id": 1, "tag": "a"}, {"id": 2}],
    },
    "steps": {"a": {"output": {"n": 2}}},
}


def compare(path: str, op: str, *value: Any) -> dict[str, Any]:
    return {"path": path, "op": op, **({"value": value[0]} if value else {})}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (True, True),
        (False, False),
        ("input.n == 3", True),
        (" {{ input.n == 4 }} ", False),
        (compare("$.input.n", "eq", 3.0), True),
        (compare("$.input.n", "eq", True), False),
        (compare("$.input.n", "ne", "3"), True),
        (compare("$.input.n", "lt", 3), False),
        (compare("$.input.n", "le", 3.5), True),
        (compare("$.input.s", "gt", "abb"), True),
        (compare("$.input.tags", "eq", ["a", "b"]), True),
        (compare("$.input.n", "in", [1, 2]), False),
        (compare("$.input.tags", "contains", "b"), True),
        (compare("$.input.s", "contains", "bc"), True),
        (compare("$.input", "contains", "none"), True),
        (compare("$.input.none", "exists"), True),
        (compare("$.input.none.x", "exists"), False),
        (compare("$.steps.b", "exists"), False),
        (compare("$.steps.b.output[*]", "exists"), False),
        (compare("$['steps']['a']['output']['n']", "eq", 2), True),
        (compare("$.input.rows[-1].id", "eq", 2), True),
        (compare("$.input.rows[*].id", "eq", [1, 2]), True),
        (compare("$.input.rows[0:1].id", "eq", [1]), True),
        (compare("$.input['n', 's']", "contains", "abc"), True),
        (compare("$..id", "exists"), None),
        (compare("$.input..id", "contains", 2), True),
        (compare("$.input.rows[?@.tag == 'a'].id", "eq", [1]), True),
        (compare("$.input.rows[?@.id < $.steps.a.output.n].id", "eq", [1]), True),
        (compare("$.input.rows[?!@.tag && @.id > 1].id", "eq", [2]), True),
        (compare("$.input.odd[?@]", "eq", [0, "", None, False, [], 1]), True),
        (compare("$.input.odd[?!@]", "eq", []), True),
        (compare("$.input.odd[?@ && @ == 0]", "eq", [0]), True),
        (compare("$.input.tags[?match(@, 'a|c')]", "eq", ["a"]), True),
        (compare("$.input.tags[?match(@, 'a|c')]", "matches", "a"), None),
        (compare("$.input.breaks[?match(@, '.')]", "eq", ["\u2028"]), True),
        (compare("$.input.tags[?search(@, '[.]')]", "eq", []), True),
        (compare(r"$.input.tags[?search(@, '\\.')]", "eq", []), True),
        (compare("$.input.breaks[?search(@, '.')]", "eq", ["\u2028"]), True),
        (compare('$.input["s"]', "eq", "abc"), True),
        (compare("$.input .s", "eq", "abc"), True),
        (compare("$.input.s", "matches", "^ab"), True),
        ({"all": ["input.n > 1", compare("$.input.s", "eq", "x")]}, False),
        ({"any": ["input.n > 1", "input.typo > 1"]}, True),
        ({"not": {"not": "input.n > 1"}}, True),
    ],
)
def test_holds_decides(condition: Any, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(RejectedError):
            holds(condition, SCOPE)
    else:
        assert holds(condition, SCOPE) is expected


@pytest.mark.parametrize(
    ("condition", "code", "reason"),
    [
        ("input.n", "condition_not_boolean", "this is a number"),
        ("input.none", "condition_not_boolean", "this is null"),
        ("input.n +", "invalid_expression", "in place of a value"),
        ("input.typo", "expression_failed", "there is no input.typo"),
        (None, "invalid_condition", "no condition"),
        ([], "invalid_condition", "no condition"),
        ({}, "invalid_condition", "no condition"),
        ({"all": []}, "invalid_condition", "takes a list"),
        ({"any": "input.n"}, "invalid_condition", "takes a list"),
        ({"all": [True], "any": [True]}, "invalid_condition", "no 'any' in this condition"),
        ({"path": "$.a"}, "invalid_condition", "no operator"),
        (compare("$.a", "=="), "invalid_condition", "there is no '=='"),
        (compare("$.a", "eq"), "invalid_condition", "needs a value"),
        (compare("$.a[", "exists"), "invalid_condition", "$.a["),
        (compare("$", "exists"), "invalid_condition", "begins with $ and a name"),
        (compare("$[0]", "exists"), "invalid_condition", "begins with $ and a name"),
        (compare("$.*", "exists"), "invalid_condition", "begins with $ and a name"),
        (compare("$.steps", "exists"), "invalid_condition", "name the step"),
        (compare("$.steps.*", "exists"), "invalid_condition", "name the step"),
        (compare("$.secrets.A", "exists"), "invalid_condition", "secrets"),
        (compare("$['secrets'].A", "exists"), "invalid_condition", "secrets"),
        (compare("$.input[?@.a == $.secrets.A]", "exists"), "invalid_condition", "secrets"),
        (compare("$.input ", "exists"), "invalid_condition", "$.input "),
        (compare(" $.input", "exists"), "invalid_condition", " $.input"),
        (compare("$. input", "exists"), "invalid_condition", "$. input"),
        (compare("$.input.rows[01]", "exists"), "invalid_condition", "rows[01]"),
        (compare("$.input.rows[-0]", "exists"), "invalid_condition", "rows[-0]"),
        (compare("$.input.rows[9007199254740992]", "exists"), "invalid_condition", "rows"),
        (compare("$.input.rows[?@.id == 01]", "exists"), "invalid_condition", "rows"),
        (compare("$.input['a\tb']", "exists"), "invalid_condition", "a\tb"),
        (compare('$.input["\x00"]', "exists"), "invalid_condition", "$.input["),
        (compare("$.input.tags[?match(@, '(?=a)')]", "exists"), "invalid_condition", "pattern"),
        (compare("$.input.tags[?search(@, '(')]", "exists"), "invalid_condition", "pattern"),
        (compare("$.input[?@.*]", "exists"), "invalid_condition", "a filter takes names"),
        (compare("$.input[?@.a[?@.b]]", "exists"), "invalid_condition", "a filter takes names"),
        (compare(3, "exists"), "invalid_condition", "no text"),  # type: ignore[arg-type]
        (compare("$.typo.n", "exists"), "expression_failed", "there is no typo"),
        (compare("$.input.typo", "eq", 1), "expression_failed", "there is no input.typo"),
        (compare("$.input.rows[-3].id", "eq", 1), "expression_failed", "finds nothing"),
        (compare("$.input.s", "gt", 1), "expression_failed", "a string > a number"),
        (compare("$.input.none", "gt", 1), "expression_failed", "null > a number"),
        (compare("$.input.rows[*].id", "gt", 1), "expression_failed", "a list > a number"),
        (compare("$.input.n", "contains", 1), "expression_failed", "cannot contain"),
        (compare("$.input.n", "in", 1), "expression_failed", "the value is a list"),
        (compare("$.input.n", "exists", 1), "expression_failed", "the value is true or false"),
        (compare("$.input.n", "matches", "1"), "expression_failed", "a number and a string"),
        (compare("$.input.s", "matches", "("), "expression_failed", "is not valid"),
        (compare("$.input.s", "eq", "{{ input.typo }}"), "template_unresolved", "input.typo"),
        (compare("$.input.s", "eq", "{{ secrets.A }}"), "invalid_template", "secrets"),
    ],
)
def test_holds_of_what_does_not_fit_is_rejected(condition: Any, code: str, reason: str) -> None:
    with pytest.raises(RejectedError) as rejected:
        holds(condition, SCOPE)

    assert rejected.value.code == code
    assert reason in rejected.value.message


def nested(depth: int) -> Any:
    condition: Any = "input.n == 3"
    for _ in range(depth):
        condition = {"not": condition}
    return condition


def test_conditions_nested_too_deeply_are_rejected() -> None:
    assert holds(nested(15), SCOPE) is False
    for act in (lambda: holds(nested(3000), SCOPE), lambda: condition_references(nested(3000))):
        with pytest.raises(RejectedError):
            act()
    assert "deeper" in next(check_condition(nested(3000), "if")).message


@pytest.mark.parametrize(
    "query",
    [
        "$.input.tree..*",
        "$.input.tree..*..*",
        "$.input.tree[?search(@, '([a-z]{31}){31}')]",
    ],
)
def test_queries_over_too_much_are_refused(query: str) -> None:
    tree: Any = ["a" * 1000] * 100
    for _ in range(10):
        tree = [tree, tree, "aaaaaaaaaaaaaaaaaaa"]
    scope: dict[str, Any] = {"input": {"tree": tree if ".." in query else ["a" * 10_000] * 9999}}

    with pytest.raises(RejectedError) as rejected:
        holds(compare(query, "exists"), scope)

    assert "too much work" in rejected.value.message


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (True, []),
        ("input.n > run.x", [("input", "n"), ("run", "x")]),
        ("{{ input.n }}", [("input", "n")]),
        (compare("$.steps.a.output.n", "gt", 1), [("steps", "a", "output", "n")]),
        (compare("$.input.rows[*].id", "eq", "{{ run.x }}"), [("input", "rows"), ("run", "x")]),
        (
            compare("$.input.rows[?@.id == $.steps['a'].output]", "exists"),
            [("input", "rows"), ("steps", "a", "output")],
        ),
        ({"all": ["a.b", {"not": "a.b"}, {"any": ["c.d"]}]}, [("a", "b"), ("c", "d")]),
    ],
)
def test_condition_references_are_the_paths_over_the_scope(
    condition: Any, expected: list[Path]
) -> None:
    assert condition_references(condition) == tuple(expected)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "s": {"type": "string"},
        "n": {"type": "integer"},
        "maybe": {"type": ["string", "null"]},
        "open": {},
        "ref": {"$ref": "#/$defs/x"},
        "rows": {
            "type": "array",
            "items": {"type": "object", "properties": {"id": {"type": "number"}}},
        },
        "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}]},
        "color": {"enum": ["red", "green"]},
        "mixed": {"enum": ["red", 1]},
        "strange": {"anyOf": [{"type": "string"}, {"type": "number"}]},
    },
}
SAMPLES: Mapping[str, Any] = {"input": sample_of(SCHEMA)}


def test_sample_of_a_schema_says_no_more_than_the_schema() -> None:
    assert sample_of(SCHEMA) == {
        "s": "",
        "n": 1,
        "maybe": UNKNOWN,
        "open": UNKNOWN,
        "ref": UNKNOWN,
        "rows": [{"id": 1.5}],
        "pair": [UNKNOWN],
        "color": "red",
        "mixed": UNKNOWN,
        "strange": UNKNOWN,
    }


@pytest.mark.parametrize(
    "schema",
    [
        True,
        False,
        None,
        {},
        "string",
        {"type": "strange"},
        {"type": 3},
        {"type": []},
        {"type": "string", "nullable": True},
        {"properties": {"a": {"type": "string"}}},
        {"enum": []},
        {"enum": [None, 1]},
        {"const": None},
        {"const": {"a": 1}},
        {"type": ["integer", "number"]},
    ],
)
def test_sample_of_what_is_open_is_unknown(schema: object) -> None:
    assert sample_of(schema) is UNKNOWN


def test_sample_of_a_schema_without_end_ends() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema

    assert isinstance(sample_of(schema), list)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1 +", "in place of a value"),
        ("1 / 0", "division by zero"),
        ("run.x + [1][3]", "it has 1 elements"),
        ("run.xs.map(x, x + int('a'))", "'a' is no integer"),
        ("'a' + 1", "use string(...)"),
        ("'a' < 1", "not defined"),
        ("run.x.matches('(')", "missing )"),
        ("run.x && 1", "&& takes bool"),
        ("'a' ? 1 : 2", "takes bool"),
        ("1.map(x, x)", "takes list or map"),
        ("run.xs.filter(x, x.size() + 1)", "filter() takes bool"),
        ("size(run.n * 2)", "size() does not take a number"),
        ("(run.a + 'x').y", "has no member 'y'"),
        ("(run.a == 'x')[0]", "takes no number"),
        ("{'a': 1}.a.b", "has no member 'b'"),
        ("run.a in 'abc'", "in takes list or map"),
        ("!string(run.a)", "! takes bool"),
        ("-(run.a == 1)", "- takes number or duration"),
        ("{run.a == 1: 2}", "takes string"),
        ("input.s + 1", "a string + a number"),
        ("input.s.foo", "input.s is a string"),
        ("has(input.n.x)", "input.n is a number"),
        ("input.n.size()", "size() does not take a number"),
        ("input.rows.id", "input.rows is a list"),
        ("input.rows.map(r, r.id + 'a')", "a number + a string"),
        ("input.rows[0].id.x", "is a number"),
        ("input.rows.filter(r, r.id > 1)[0].id.x", "is a number"),
        ("input.rows.first().id == 1 && input.color", "&& takes bool"),
        ("input.s.split(',').map(p, p + 1)", "a string + a number"),
        ("input.rows.transformList(i, r, i + 'a')", "a number + a string"),
        ("input.rows.transformList(i, r, r.id + 'a')", "a number + a string"),
        ("input.transformMap(k, v, k + 1)", "a string + a number"),
        ("input.rows.transformMapEntry(i, r, i)", "transformMapEntry() takes map"),
        ("input.rows.all(i, r, i)", "all() takes bool"),
        ("input.rows.transformList(i, r, i, r)", "transformList() takes bool"),
        ("input.rows.exists(i, r, true) + 1", "a bool + a number"),
        ("max(input.n, 1, input.s)", "max() does not take a number, a number, a string"),
        ("input.s.format(input.n)", "format() does not take a string, a number"),
        ("timestamp(input.s).getHours('Mars')", "no time zone 'Mars'"),
    ],
)
def test_check_expression_reports_what_must_fail(expression: str, reason: str) -> None:
    found = list(check_expression(expression, "spec.x", SAMPLES))

    assert [detail.path for detail in found] == ["spec.x"] * len(found)
    assert any(reason in detail.message for detail in found), found


@pytest.mark.parametrize(
    "expression",
    [
        "input.s + 'x'",
        "input.n + 1.5 > 2",
        "input.maybe.size()",
        "input.maybe == null || input.maybe.size() > 1",
        "input.open + 1 > 0 && input.open.x",
        "input.ref[0].x",
        "input.absent + 1",
        "input.pair[1] + 1 + input.strange",
        "input.mixed == 1 ? input.mixed + 1 : 2",
        "input.rows[99].id / 0.1",
        "input.rows[0].other.size()",
        "input.rows.map(r, r.id).sum() + 1",
        "int(input.s) / input.n",
        "dyn(input.s) + 1",
        "run.a + run.b * 2",
        "[1, 'a'][0] + 1",
        "(input.n > 1 ? 1 : 'a') == 'a'",
        "timestamp(input.s) + duration(run.d) > timestamp('2026-01-01T00:00:00Z')",
        "run.tags.map(t, run.tags[t])",
        "run.x.contains(1) || run.x.matches('a')",
        "math.greatest(input.n, run.x) % 2",
        "type(run.x) == string",
        "[].map(x, x + 1)",
        "steps.a.output.first() + 1",
        "min(run.xs) - min(1, 2)",
        "min(run.x, 2, input.n) + input.s.lastIndexOf('a', input.n)",
        "run.x.transformMap(k, v, k == 'a', v + 1) == run.y",
        "run.x.reverse() + 'a' + '%s'.format(run.xs)",
        "timestamp(input.s).getHours(run.zone) + duration(run.d).getMilliseconds()",
    ],
)
def test_check_expression_says_nothing_of_what_data_could_make_right(expression: str) -> None:
    assert list(check_expression(expression, "x", SAMPLES)) == []


@pytest.mark.parametrize(
    ("condition", "path", "reason"),
    [
        ("1 + 1", "if", "this is a number"),
        ("'a' + run.x", "if", "this is a string"),
        ("input.s", "if", "this is a string"),
        ("{{ input.n + 1 }}", "if", "this is a number"),
        ("{{ input.n + }}", "if", "in place of a value"),
        ({"all": [True, {"not": "[1]"}]}, "if.all[1].not", "this is a list"),
        ({"any": ["run.x", None]}, "if.any[1]", "no condition"),
        (compare("$.a", "is"), "if.op", "there is no 'is'"),
        (compare("$.a", "eq"), "if", "needs a value"),
        (compare("$..a", "exists"), "if.path", "begins with"),
        (compare("$.a", "exists", "yes"), "if.value", "true or false"),
        (compare("$.a", "in", "abc"), "if.value", "the value is a list"),
        (compare("$.a", "gt", None), "if.value", "compares numbers or text"),
        (compare("$.a", "matches", "("), "if.value", "missing )"),
        (compare("$.a", "matches", 3), "if.value", "text with a pattern"),
        (compare("$.a[*]", "gt", 3), "if.value", "a list > a number"),
        (compare("$.input.s", "gt", 3), "if.value", "a string > a number"),
        (compare("$.input.n", "matches", "a"), "if.value", "a number and a string"),
        (compare("$.input.rows[0].id", "contains", "a"), "if.value", "cannot contain"),
        (compare("$.a", "eq", ["{{ 1 + }}"]), "if.value[0]", "in place of"),
        (compare("$.a", "eq", "{{ 1 + 'a' }}"), "if.value", "a number + a string"),
        (compare("$.a", "eq", "{{ secrets.A }}"), "if.value", "secrets"),
    ],
)
def test_check_condition_reports_what_must_fail(condition: Any, path: str, reason: str) -> None:
    found = list(check_condition(condition, "if", SAMPLES))

    assert [detail.path for detail in found] == [path]
    assert reason in found[0].message


def test_check_condition_names_the_operators_that_there_are() -> None:
    found = next(check_condition(compare("$.a", "equals", 1), "if"))

    assert found.allowed == "eq, ne, gt, ge, lt, le, in, contains, exists, matches"


@pytest.mark.parametrize(
    "condition",
    [
        True,
        "run.ok",
        "input.open",
        "{{ input.n > 1 }}",
        {"all": ["run.ok", {"any": [compare("$.run.x", "eq", None)]}]},
        compare("$.input.maybe", "gt", "a"),
        compare("$.input.s", "contains", "a"),
        compare("$.input.rows[?@.id > 1]", "contains", 1),
        compare("$.input.n", "gt", "{{ run.x }}"),
        compare("$.input.n", "in", []),
        compare("$.input.rows[-1].id", "matches", "x"),
    ],
)
def test_check_condition_says_nothing_of_what_data_could_make_right(condition: Any) -> None:
    assert list(check_condition(condition, "if", SAMPLES)) == []


def test_check_template_reports_each_expression_at_its_place() -> None:
    template: Any = {
        "a": ["{{ input.s + 1 }}", "{{ input.s }}"],
        "b": "{{ 1 / 0 }}{{ input.n + 1 }}",
    }

    assert [detail.path for detail in check_template(template, "x", SAMPLES)] == ["x.a[0]", "x.b"]
