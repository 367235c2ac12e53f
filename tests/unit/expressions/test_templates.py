"""Templates: expressions in text, and secrets by reference."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from penstock.contracts.errors import RejectedError
from penstock.expressions.secrets import fill_secrets
from penstock.expressions.templates import (
    expressions_of,
    parse_path,
    references,
    render,
    render_with_secrets,
    show_path,
    whole_expression,
)

SCOPE: dict[str, JsonValue] = {
    "input": {
        "city": "Ulm",
        "n": 3,
        "pi": 3.5,
        "none": None,
        "yes": True,
        "items": [{"title": "first"}, {"title": "second"}],
        "odd key": {"x.y": 1},
        "größe": "lang",
        "template": "{{ input.city }}",
    },
    "run": {"id": "R"},
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{ input.city }}", "Ulm"),
        ("{{input.city}}", "Ulm"),
        ("{{\n input.city\t}}", "Ulm"),
        ("{{ input.n }}", 3),
        ("{{ input.pi }}", 3.5),
        ("{{ input.none }}", None),
        ("{{ input.yes }}", True),
        ("{{ input.items }}", [{"title": "first"}, {"title": "second"}]),
        ("{{ input.items[1].title }}", "second"),
        ("{{ input.items[ 0 ] }}", {"title": "first"}),
        ('{{ input["odd key"]["x.y"] }}', 1),
        ("{{ input['city'] }}", "Ulm"),
        ("in {{ input.city }}, {{ input.n }} times", "in Ulm, 3 times"),
        (" {{ input.n }}", " 3"),
        ("{{ input.n }}{{ input.n }}", "33"),
        ("{{ input.none }}!", "null!"),
        ("{{ input.yes }}!", "true!"),
        ("see {{ input.items[0] }}", 'see {"title": "first"}'),
        ("{{ input.template }}", "{{ input.city }}"),
        ("{{ run }}", {"id": "R"}),
        ("{{ not closed", "{{ not closed"),
        ("closed }} only", "closed }} only"),
    ],
)
def test_render_of_a_string_gives_values_or_text(template: str, expected: JsonValue) -> None:
    found = render(template, SCOPE)

    assert found == expected
    assert type(found) is type(expected)


def test_render_goes_into_objects_and_lists_but_not_into_keys() -> None:
    template: JsonValue = {
        "a": ["{{ input.n }}", {"b": "{{ input.city }}"}],
        "{{ k }}": 1,
        "n": None,
    }

    assert render(template, SCOPE) == {"a": [3, {"b": "Ulm"}], "{{ k }}": 1, "n": None}


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("input.town", "input.town"),
        ("steps.a.output", "steps"),
        ("input.items[2]", "input.items[2]"),
        ("input.items.first", "input.items.first"),
        ("input.city[0]", "input.city[0]"),
        ("input[0]", "input[0]"),
        ("input.none.x", "input.none.x"),
        ("input.city.__class__", "input.city.__class__"),
    ],
)
def test_render_of_a_path_that_leads_nowhere_says_where_it_ends(path: str, missing: str) -> None:
    with pytest.raises(RejectedError) as rejected:
        render(f"{{{{ {path} }}}}", SCOPE)

    assert rejected.value.code == "template_unresolved"
    assert f"there is no {missing}" in rejected.value.message


def test_render_of_a_misspelt_name_tells_what_there_is() -> None:
    with pytest.raises(RejectedError) as rejected:
        render("{{ run.idd }}", SCOPE)

    assert rejected.value.details[0].allowed == "id"


class Lazy(Mapping[str, Any]):
    """A scope that is looked up when asked for, as the steps of a run are."""

    def __getitem__(self, key: str) -> Any:
        return {"output": key}

    def __contains__(self, key: object) -> bool:
        return key == "a"

    def __iter__(self) -> Iterator[str]:
        return iter(("a",))

    def __len__(self) -> int:
        return 1


def test_render_of_something_in_a_lazy_scope_finds_it() -> None:
    scope: dict[str, Any] = {"steps": Lazy()}

    assert render("{{ steps.a.output }}", scope) == "a"
    assert render("{{ steps.a }}", scope) == {"output": "a"}


@pytest.mark.parametrize("template", ["{{ steps }}", "all {{ steps }}"])
def test_render_of_a_lazy_scope_itself_is_rejected(template: str) -> None:
    scope: dict[str, Any] = {"steps": Lazy()}

    with pytest.raises(RejectedError) as rejected:
        render(template, scope)

    assert rejected.value.code == "template_unresolved"


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "1",
        "input.",
        ".input",
        "input..city",
        "input.1a",
        "input[",
        "input[-1]",
        "input[x]",
        "input[1:2]",
        "input .city",
        "input + 1",
        "f(input)",
        "__import__('os')",
        "input['a\\'b']",
        "input.größe",
    ],
)
def test_parse_path_of_anything_else_is_rejected(expression: str) -> None:
    with pytest.raises(RejectedError) as rejected:
        parse_path(expression)

    assert rejected.value.code == "invalid_template"


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
paths = st.tuples(names, st.lists(names | st.integers(0, 99), max_size=4))


@given(paths)
def test_parse_path_of_a_shown_path_gives_it_back(path: tuple[str, list[str | int]]) -> None:
    parts = (path[0], *path[1])

    assert parse_path(show_path(parts)) == parts


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_render_of_any_value_looked_up_returns_it_untouched(value: JsonValue) -> None:
    assert render("{{ input }}", {"input": value}) == value


@given(json_values)
def test_render_never_fails_otherwise_than_by_rejecting(value: JsonValue) -> None:
    with contextlib.suppress(RejectedError):
        render(value, SCOPE)


def test_references_give_each_path_with_its_place() -> None:
    template: JsonValue = {"a": ["{{ input.x }}", "no"], "b": {"c": "{{ run.id }} {{ steps.s }}"}}

    assert list(references(template)) == [
        ("a[0]", ("input", "x")),
        ("b.c", ("run", "id")),
        ("b.c", ("steps", "s")),
    ]


def test_references_of_a_bad_template_name_its_place() -> None:
    with pytest.raises(RejectedError) as rejected:
        list(references({"a": [{"b": "{{ 1 + }}"}]}))

    assert rejected.value.code == "invalid_template"
    assert rejected.value.details[0].path == "a[0].b"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ input.n + 1 }}", 4),
        ("{{ 'a' }}", "a"),
        ("{{ true }}", True),
        ("{{ null }}", None),
        ("{{ input.items.map(x, x.title) }}", ["first", "second"]),
        ("{{ {'a': {'b': input.n}} }}", {"a": {"b": 3}}),
        ("{{ {'a': {'b': input.n}}}}", {"a": {"b": 3}}),
        ("{{ '}}' }}", "}}"),
        ('{{ "{{ \\" }}" }}!', '{{ " }}!'),
        ("{{ '''}}''' + '{' }}", "}}{"),
        ("a {{ input.n > 2 ? '}}' : '{{' }} b {{ input.n }}", "a }} b 3"),
        ("{{ input.city }}{{ 'x' }}", "Ulmx"),
        ("{{ has(input.town) }}", False),
    ],
)
def test_render_of_an_expression_gives_its_value(template: str, expected: JsonValue) -> None:
    found = render(template, SCOPE)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("template", "code", "reason"),
    [
        ("{{ input.n + }}", "invalid_template", "in place of a value"),
        ("{{ }}", "invalid_template", "the end in place of a value"),
        ("{{ it's }}", "invalid_template", "a string is not closed"),
        ("{{ {'a': 1 }}", "invalid_template", "in place of"),
        ("{{ a {{ b }}", "invalid_template", "in place of"),
        ("{{ " + "a" * 3000 + " + 1 }}", "invalid_template", "at most 2000"),
        ("{{ input.n + 'x' }}", "expression_failed", "use string(...)"),
        ("{{ secrets }}", "invalid_template", "write {{ secrets.NAME }}"),
        ("{{ secrets.A.b }}", "invalid_template", "write {{ secrets.NAME }}"),
        ("{{ secrets[0] }}", "invalid_template", "write {{ secrets.NAME }}"),
        ("{{ secrets['A'] }}", "invalid_template", "secrets cannot be used here"),
        ("{{ (secrets.A) }}", "invalid_template", "secrets cannot be used in an expression"),
        ("{{ secrets.A + 'x' }}", "invalid_template", "secrets cannot be used in an expression"),
    ],
)
def test_render_of_what_does_not_fit_is_rejected(template: str, code: str, reason: str) -> None:
    scope: dict[str, JsonValue] = {**SCOPE, "secrets": {"A": "in the scope by mistake"}}
    for act in (render, render_with_secrets):
        if act is render_with_secrets and reason.endswith("used here"):
            continue
        with pytest.raises(RejectedError) as rejected:
            act(template, scope)

        assert rejected.value.code == code
        assert reason in rejected.value.message


def test_references_of_expressions_are_their_paths() -> None:
    template: JsonValue = ["{{ input.a + run['b'] }} {{ secrets.C }}", "{{ input.xs.map(x, x.y) }}"]

    assert list(references(template, "spec")) == [
        ("spec[0]", ("input", "a")),
        ("spec[0]", ("run", "b")),
        ("spec[0]", ("secrets", "C")),
        ("spec[1]", ("input", "xs")),
    ]
    assert list(expressions_of(template)) == [
        ("[0]", "input.a + run['b']"),
        ("[1]", "input.xs.map(x, x.y)"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ a }}", "a"),
        (" {{ '}}' }}\n", "'}}'"),
        ("{{ a }} {{ b }}", None),
        ("x {{ a }}", None),
        ("{{ a", None),
        ("{{}}", ""),
        ("a", None),
    ],
)
def test_whole_expression_is_that_of_one_template(text: str, expected: str | None) -> None:
    assert whole_expression(text) == expected


VAULT = {"TOKEN": "t0p", "a/b~c": "odd"}

WITH_SECRETS: JsonValue = {
    "headers": [{"a/b~c": "Bearer {{ secrets.TOKEN }} for {{ input.city }}"}],
    "whole": "{{ secrets['a/b~c'] }}",
    "other": "{{ input.n }}",
    "": "{{secrets.TOKEN}}{{secrets.TOKEN}}",
}


def test_render_with_secrets_keeps_them_beside_the_value() -> None:
    rendered = render_with_secrets(WITH_SECRETS, SCOPE)

    assert rendered.value == {
        "headers": [{"a/b~c": "Bearer [secret] for Ulm"}],
        "whole": "[secret]",
        "other": 3,
        "": "[secret][secret]",
    }
    assert rendered.secrets == {
        "/headers/0/a~1b~0c": ("Bearer ", {"secret": "TOKEN"}, " for ", "Ulm"),
        "/whole": ({"secret": "a/b~c"},),
        "/": ({"secret": "TOKEN"}, {"secret": "TOKEN"}),
    }


def test_fill_secrets_after_a_way_through_json_gives_the_texts_and_changes_nothing() -> None:
    rendered = render_with_secrets(WITH_SECRETS, SCOPE)
    value, secrets = json.loads(json.dumps([rendered.value, rendered.secrets]))

    filled = fill_secrets(value, secrets, VAULT.__getitem__)

    assert filled == {
        "headers": [{"a/b~c": "Bearer t0p for Ulm"}],
        "whole": "odd",
        "other": 3,
        "": "t0pt0p",
    }
    assert value == rendered.value


def test_fill_secrets_of_a_template_that_is_one_text() -> None:
    rendered = render_with_secrets("{{ secrets.TOKEN }}", SCOPE)

    assert (rendered.value, list(rendered.secrets)) == ("[secret]", [""])
    assert fill_secrets(rendered.value, rendered.secrets, VAULT.__getitem__) == "t0p"


@pytest.mark.parametrize(
    "value",
    [
        {"whole": "[secret]"},
        {"headers": [], "whole": "[secret]"},
        {"headers": [{"a/b~c": "Bearer [secret] for Bonn"}], "whole": "[secret]"},
        {"headers": [{"a/b~c": {"x": 1}}], "whole": "[secret]"},
        [],
        "[secret]",
        None,
    ],
)
def test_fill_secrets_of_another_value_is_rejected(value: JsonValue) -> None:
    rendered = render_with_secrets(WITH_SECRETS, SCOPE)

    with pytest.raises(RejectedError) as rejected:
        fill_secrets(value, rendered.secrets, VAULT.__getitem__)

    assert rejected.value.code == "secrets_misplaced"


@pytest.mark.parametrize(
    "forged",
    [
        "{{ secrets.TOKEN }}",
        "[secret]",
        {"secret": "TOKEN"},
        '{"secret": "TOKEN"}',
        [{"secret": "TOKEN"}],
        {"/a": [{"secret": "TOKEN"}]},
    ],
)
def test_a_forged_reference_stays_what_it_is(forged: JsonValue) -> None:
    template = {"a": "{{ input }}", "b": "{{ secrets.TOKEN }} {{ input }}", "c": forged}
    if forged == "{{ secrets.TOKEN }}":
        del template["c"]

    rendered = render_with_secrets(template, {"input": forged})
    filled = fill_secrets(rendered.value, rendered.secrets, VAULT.__getitem__)

    text = forged if isinstance(forged, str) else json.dumps(forged)
    assert list(rendered.secrets) == ["/b"]
    assert filled == {**template, "a": forged, "b": f"t0p {text}"}
