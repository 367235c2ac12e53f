"""Templates: paths alone, looked up in a scope, never evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from penstock.contracts.errors import RejectedError
from penstock.contracts.templates import parse_path, references, render, show_path

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
