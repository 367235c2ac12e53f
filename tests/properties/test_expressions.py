"""Expressions, templates and conditions under any text and any data."""

from __future__ import annotations

import contextlib
import json
import string
from typing import Any

import cel
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import JsonValue

from penstock.contracts.envelope import EnvelopeError, check_value
from penstock.contracts.errors import RejectedError
from penstock.expressions.conditions import (
    check_condition,
    check_expression,
    condition_references,
    holds,
)
from penstock.expressions.evaluator import evaluate, references
from penstock.expressions.jsonpath import parse_query
from penstock.expressions.samples import sample_of
from penstock.expressions.secrets import fill_secrets
from penstock.expressions.syntax import MAX_CHARACTERS
from penstock.expressions.templates import references as template_references
from penstock.expressions.templates import render, render_with_secrets

NAMES = ("a", "b", "c", "input", "items")

any_text = st.text(st.characters(), max_size=20)
numbers = st.integers() | st.floats() | st.integers(-3, 3)
values = st.recursive(
    st.none() | st.booleans() | numbers | any_text | st.sampled_from(("", "a", "1h", "2026")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=8,
)
scopes = st.dictionaries(st.sampled_from(NAMES), values)

ATOMS = (
    *NAMES,
    *("0", "1", "2.5", "-1", "'a'", '"b"', "true", "null", "[]", "{}", "int", "r'\\d'", "b'x'"),
    *("'2026-01-01T00:00:00Z'", "'1h'", "9223372036854775807", "1e308", "steps", "secrets", "x"),
)
FORMS = (
    *("({} + {})", "({} - {})", "({} * {})", "({} / {})", "({} % {})", "({} == {})", "({} < {})"),
    *("({} && {})", "({} || {})", "({} in {})", "{}[{}]", "[{}, {}]", "{{{}: {}}}"),
    *("{}.map(x, {})", "{}.filter(x, {})", "{}.all(x, {})", "{}.exists(x, {})", "{}.matches({})"),
    *("{}.map(x, {}, x)", "{}.split({})", "{}.join({})", "min({}, {})", "{}.contains({})"),
    *("lists.range({}).map(x, {})", "has({}.a) || {}", "{} ? {} : 1", "{}.a.b == {}"),
    *("timestamp({}) + duration({})", "string({}) + {}", "-{} > !{}", "int({}) + double({})"),
    *("{}.transformList(x, y, {})", "{}.transformMap(k, x, {}, x)", "{}.all(x, y, {})"),
    *("'%s %d'.format([{}, {}])", "{}.format([{}])", "{}.lastIndexOf({}, 1)", "{}.charAt({})"),
    *("timestamp({}).getHours({})", "max({}, {}, 1)", "math.round({}) + math.sign({})"),
    *("{}.flatten().distinct() == {}", "{}.sort().sum() + {}", "{}.replace({}, 'a')"),
)
expressions = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.builds(
        lambda form, first, second: form.format(first, second),
        st.sampled_from(FORMS),
        inner,
        inner,
    ),
    max_leaves=10,
)
symbols = st.text(st.sampled_from(string.printable), max_size=60)


@given(expressions | symbols | any_text, scopes)
@example("'" + "\\" * 5, {})
@example("a" * (MAX_CHARACTERS + 1), {})
@example("a.map(x, [x, x]) == a", {"a": [[[[[[[[1]]]]]]]]})
def test_evaluate_gives_json_or_rejects(expression: str, scope: dict[str, JsonValue]) -> None:
    code = message = ""
    found: JsonValue = None
    try:
        found = evaluate(expression, scope)
    except RejectedError as error:
        code, message = error.code, error.message
    if code:
        assert code in {"invalid_expression", "expression_failed"}
        assert message
    else:
        json.dumps(found, allow_nan=False)


@given(expressions | symbols, scopes)
def test_evaluate_is_a_function_of_its_arguments(expression: str, scope: dict[str, Any]) -> None:
    before = repr(scope)

    def outcome() -> str:
        try:
            return repr(evaluate(expression, scope))
        except RejectedError as error:
            return error.message

    assert outcome() == outcome()
    assert repr(scope) == before


@given(expressions, scopes)
def test_evaluate_reads_only_its_references(expression: str, scope: dict[str, Any]) -> None:
    try:
        read = {path[0] for path in references(expression)}
    except RejectedError:
        return
    less = {name: value for name, value in scope.items() if name in read}

    def outcome(of: dict[str, Any]) -> str:
        try:
            return repr(evaluate(expression, of))
        except RejectedError as error:
            return error.code

    assert outcome(scope) == outcome(less)


@given(expressions, scopes)
def test_check_expression_reports_only_what_fails(expression: str, scope: dict[str, Any]) -> None:
    schema = {"const": 1}
    reported = list(check_expression(expression, "spec.x", {"nothing": sample_of(schema)}))
    assert {detail.path for detail in reported} <= {"spec.x"}
    if "&&" in expression or "||" in expression or "?" in expression or "x, " in expression:
        return  # what is not reached need not fail
    if reported:
        with pytest.raises(RejectedError):
            evaluate(expression, scope)


SAFE_FORMS = (
    *("({} + {})", "({} - {})", "({} * {})", "({} == {})", "({} < {})", "({} >= {})"),
    *("({} && {})", "({} || {})", "({} in {})", "[{}, {}]", "({} != {} ? 1 : 2)"),
    *("[{}].map(x, [x, {}])", "[{}].filter(x, {})", "[1, {}].exists(x, x == {})"),
    *("{}.contains({})", "{}.startsWith({})"),
)
small = st.recursive(
    st.sampled_from(("i", "j", "s", "t", "l", "0", "7", "-2", "'a'", "'ab'", "true", "false")),
    lambda inner: st.builds(
        lambda form, first, second: form.format(first, second),
        st.sampled_from(SAFE_FORMS),
        inner,
        inner,
    ),
    max_leaves=6,
)


@given(small)
def test_evaluate_agrees_with_another_implementation_of_cel(expression: str) -> None:
    scope: dict[str, Any] = {"i": 3, "j": -1, "s": "abc", "t": True, "l": [1, "a", [2]]}
    try:
        expected = cel.evaluate(expression, scope)
    except (TypeError, RuntimeError, ValueError, LookupError, ArithmeticError):
        return  # ours may know more functions and kinds
    try:
        found = evaluate(expression, scope)
    except RejectedError:
        # The other one lets pass what stands on the left of && and ||.
        assert "&&" in expression or "||" in expression or "contains" in expression
        return
    assert found == expected
    assert type(found) is type(expected)


templates = st.recursive(
    st.none() | st.booleans() | st.integers() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


@given(templates, scopes)
@example({"\ud800": None}, {})
def test_render_without_templates_is_the_identity(template: Any, scope: dict[str, Any]) -> None:
    if "{{" in json.dumps(template, ensure_ascii=False):
        template = json.loads(json.dumps(template).replace("{{", "{ "))
    try:
        check_value(template)
    except EnvelopeError:
        with pytest.raises(RejectedError, match="invalid_value"):
            render(template, scope)
        return

    assert render(template, scope) == template
    assert list(template_references(template)) == []
    rendered = render_with_secrets(template, scope)
    assert (rendered.value, rendered.secrets) == (template, {})


texts = st.lists(
    any_text
    | expressions.map(lambda text: "{{ " + text + " }}")
    | symbols
    | st.sampled_from(("{{", "}}", "{{ secrets.A }}", "'", '"', "{")),
    max_size=4,
).map("".join)


@given(
    st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner)), scopes
)
def test_render_rejects_or_gives_json(template: Any, scope: dict[str, Any]) -> None:
    for act in (render, render_with_secrets):
        with contextlib.suppress(RejectedError):
            act(template, scope)
    with contextlib.suppress(RejectedError):
        list(template_references(template))


SECRET = "\N{KEY}s3cret\N{KEY}"
forged = (
    st.sampled_from(
        (
            "[secret]",
            "{{ secrets.A }}",
            '{"secret": "A"}',
            {"secret": "A"},
            [{"secret": "A"}],
            {"/0": [{"secret": "A"}]},
        )
    )
    | values
)
parts = st.sampled_from(
    ("{{ secrets.A }}", "{{ input }}", "text", "{{ 'x' }}", "{{ [input] }}", "[secret]", " ")
)


def storable(value: Any) -> bool:
    """Whether a run can have the value as its input."""
    try:
        check_value(value)
    except EnvelopeError:
        return False
    return True


@given(
    st.lists(st.lists(parts, min_size=1, max_size=4).map("".join), max_size=4),
    forged.filter(storable),
)
def test_secrets_appear_where_the_template_has_them_and_nowhere_else(
    template: list[str], given_input: JsonValue
) -> None:
    whole: Any = {"list": template}
    rendered = render_with_secrets(whole, {"input": given_input})
    wire = json.loads(json.dumps([rendered.value, rendered.secrets]))
    asked: list[str] = []

    def lookup(name: str) -> str:
        asked.append(name)
        return SECRET

    filled = fill_secrets(wire[0], wire[1], lookup)

    assert SECRET not in json.dumps(wire, ensure_ascii=False)
    for index, text in enumerate(template):
        wanted = text.count("{{ secrets.A }}")
        found = json.dumps(filled["list"][index], ensure_ascii=False)  # type: ignore[index, call-overload]
        assert found.count(SECRET) == wanted
        assert (f"/list/{index}" in rendered.secrets) == (wanted > 0)
    assert asked == ["A"] * sum(text.count("{{ secrets.A }}") for text in template)
    plain: JsonValue = {"list": [text.replace("secrets.A", "key") for text in template]}
    without = render(plain, {"input": given_input, "key": SECRET})
    assert json.dumps(filled) == json.dumps(without)


queries = st.lists(
    st.sampled_from(
        [
            *("$", ".a", ".b", "[0]", "[-1]", "[*]", "..a", "..*", "['a']", "[0:2]", "[?@.a > 1]"),
            *("[?@ == $.b]", "[?match(@, 'a')]", ".input", ".steps", "[", "]", "[?@.a || @.b]"),
        ]
    ),
    max_size=6,
).map(lambda pieces: "$" + "".join(pieces))
comparisons = st.fixed_dictionaries(
    {"path": queries | any_text | values, "op": st.sampled_from(("eq", "gt", "in", "contains"))
     | st.sampled_from(("matches", "exists", "ne", "?")) | values},
    optional={"value": values | texts, "more": values},
)  # fmt: skip
conditions = st.recursive(
    expressions | comparisons | values | texts,
    lambda inner: (
        st.fixed_dictionaries({"all": st.lists(inner)})
        | st.fixed_dictionaries({"any": st.lists(inner)})
        | st.fixed_dictionaries({"not": inner})
    ),
    max_leaves=6,
)


@given(conditions, scopes)
def test_holds_gives_a_boolean_or_rejects(condition: Any, scope: dict[str, Any]) -> None:
    faults = list(check_condition(condition, "if"))
    with contextlib.suppress(RejectedError):
        assert isinstance(holds(condition, scope), bool)
    with contextlib.suppress(RejectedError):
        condition_references(condition)
    assert all(fault.path.startswith("if") for fault in faults)


@given(queries)
def test_parse_query_gives_a_query_or_rejects(query: str) -> None:
    with contextlib.suppress(RejectedError):
        found = parse_query(query)
        assert found.prefix in found.reads
