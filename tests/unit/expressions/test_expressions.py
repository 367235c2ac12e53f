"""Expressions: CEL over JSON, with bounded work and errors that say what there is instead."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path as File
from typing import Any

import pytest
import yaml
from pydantic import JsonValue

from penstock.contracts.errors import RejectedError
from penstock.expressions.conditions import holds
from penstock.expressions.evaluator import Path, evaluate, references
from penstock.expressions.functions import FUNCTIONS
from penstock.expressions.templates import render

PAGE = (File(__file__).parents[3] / "docs/expressions.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def examples(kind: str) -> Iterator[Any]:
    for block in blocks(kind):
        for line in block.splitlines():
            text, node_record, expected = re.split(r" +(=>|!!) ", line, maxsplit=1)
            yield pytest.param(text, node_record, expected, id=text)


PAGE_SCOPE: dict[str, JsonValue] = json.loads(blocks("json")[0])


def check(found: JsonValue, expected: str) -> None:
    assert found == json.loads(expected)
    assert type(found) is type(json.loads(expected))


@pytest.mark.parametrize(("text", "node_record", "expected"), list(examples("expression")))
def test_expression_of_the_page_gives_what_it_says(
    text: str, node_record: str, expected: str
) -> None:
    if node_record == "=>":
        check(evaluate(text, PAGE_SCOPE), expected)
        return
    with pytest.raises(RejectedError) as rejected:
        evaluate(text, PAGE_SCOPE)
    assert expected in rejected.value.message


@pytest.mark.parametrize(("text", "node_record", "expected"), list(examples("template")))
def test_template_of_the_page_gives_what_it_says(
    text: str, node_record: str, expected: str
) -> None:
    if node_record == "=>":
        check(render(json.loads(text), PAGE_SCOPE), expected)
        return
    with pytest.raises(RejectedError) as rejected:
        render(json.loads(text), PAGE_SCOPE)
    assert expected in rejected.value.message


@pytest.mark.parametrize(("text", "node_record", "expected"), list(examples("condition")))
def test_condition_of_the_page_gives_what_it_says(
    text: str, node_record: str, expected: str
) -> None:
    condition = yaml.safe_load(text)
    if node_record == "=>":
        assert holds(condition, PAGE_SCOPE) is json.loads(expected)
        return
    with pytest.raises(RejectedError) as rejected:
        holds(condition, PAGE_SCOPE)
    assert expected in rejected.value.message


def test_page_lists_every_function() -> None:
    section = PAGE[PAGE.index("### Functions") : PAGE.index("### What differs")]
    assert {*FUNCTIONS, "has"} == set(re.findall(r"`([a-zA-Z.]+)`", section.split("```")[0])) - {
        "x.f"
    }


SCOPE: dict[str, Any] = {
    "i": 3,
    "d": 1.5,
    "s": "abc",
    "l": [1, 2.0, None],
    "m": {"a": 1, "b c": 2},
    "n": None,
    "t": True,
    "big": 10**30,
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("i", 3),
        (" i // a comment\n", 3),
        ("-i", -3),
        ("--i", 3),
        ("!t", False),
        ("i - 1 - 1", 1),
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("-7 / 2", -3),
        ("-7 % 2", -1),
        ("5.5 % 2", 1.5),
        ("-9223372036854775808", -(2**63)),
        ("0x1F", 31),
        (".5 + 1e1", 10.5),
        ("1u + 1", 2),
        ("t ? 1 : t ? 2 : 3", 1),
        ("false ? 1 : false ? 2 : 3", 3),
        ("false && i", False),
        ("t || i", True),
        ("'a' + \"b\"", "ab"),
        (r"'\n\x41\u00e9\101\''", "\nAéA'"),
        (r"r'\d'", r"\d"),
        ('"""a"b"""', 'a"b'),
        ("'''a\nb'''", "a\nb"),
        ("string(b'abc')", "abc"),
        ("[1] == [1.0]", True),
        ("{'a': [1]} == {'a': [1.0]}", True),
        ("{'a': 1} == {'b': 1}", False),
        ("t == 1", False),
        ("null == n", True),
        ("false < t", True),
        ("1 in l", True),
        ("[] + l", [1, 2.0, None]),
        ("m['b c']", 2),
        ("m.map(k, m[k])", [1, 2]),
        ("l[1.0]", 2.0),
        ("big", 10**30),
        ("big > 1.5", True),
        ("[1, 2].map(x, [3, 4].map(y, x * y))", [[3, 4], [6, 8]]),
        ("[1, 2].map(x, [x].map(x, x + 1))", [[2], [3]]),
        ("[1, 2].exists_one(x, x == 1)", True),
        ("[1, 1].exists_one(x, x == 1)", False),
        ("[].all(x, x)", True),
        ("[].exists(x, x)", False),
        ("[5, 7].existsOne(x, x > 6)", True),
        ("[5, 7].existsOne(i, x, i == 1 && x == 7)", True),
        ("[5, 7].exists_one(i, x, x > i)", False),
        ("[5, 7].all(i, x, x > i)", True),
        ("m.all(k, v, k == 'a' || v == 2)", True),
        ("m.exists(k , v, v == 2)", True),
        ("[[3]].transformList(i, x, x.map(y, y + i))", [[3]]),
        ("[2, 4].transformList(i, x, [1].transformList(j, y, x * 10 + i + y))", [[21], [42]]),
        ("l.all(t, t == null || t > 0)", True),
        ("m.transformMap(k, v, v > 1, v * 2)", {"b c": 4}),
        ("m.transformMapEntry(k, v, {string(v): k})", {"1": "a", "2": "b c"}),
        ("[].transformMap(i, x, x)", {}),
        ("'%s|%s|%s|%s|%s'.format([d, null, t, b'a', type(i)])", "1.5|null|true|a|int"),
        ("'%s'.format([[l, m, duration('90s')]])", "[[1, 2.0, null], {a: 1, b c: 2}, 90s]"),
        ("'%d%% %b %b %o %x %X'.format([2.0, 5, true, 8, -31, 'az'])", "2% 101 1 10 -1f 617A"),
        ("'%f %.0f %.3e'.format([1, 2.5, 1234])", "1.000000 2 1.234e+03"),
        ("'a'.format([1])", "a"),
        ("'abcabc'.lastIndexOf('b') + 'abcabc'.lastIndexOf('b', 3)", 5),
        ("'abcabc'.lastIndexOf('') - 'abc'.lastIndexOf('', 1)", 5),
        ("s.charAt(1) + s.charAt(3)", "b"),
        ("s.indexOf('a', 3)", -1),
        ("s.indexOf('', 3)", 3),
        ("'a.b.c'.split('.', 0)", []),
        ("'a.b.c'.split('.', 1)", ["a.b.c"]),
        ("'a.b.c'.split('.', -1)", ["a", "b", "c"]),
        ("s.split('', 2)", ["a", "bc"]),
        ("s.split('', 9)", ["a", "b", "c"]),
        ("'aaa'.replace('a', 'b', 2) + 'a'.replace('a', 'b', 0)", "bbaa"),
        ("s.reverse()", "cba"),
        ("{'a': {'b': 1}}.a.b", 1),
        ("type(d) == double && type(n) == null_type && type(int) == type", True),
        ("duration('90s') > duration('1m')", True),
        ("-duration('1h')", -3600),
        ("string(timestamp('2026-01-01T00:00:00.5Z'))", "2026-01-01T00:00:00.500000Z"),
        ("timestamp(0)", "1970-01-01T00:00:00Z"),
        ("int(timestamp('1970-01-02T00:00:00Z'))", 86400),
        ("timestamp('2026-02-01T00:00:00Z').getDayOfWeek()", 0),
        ("duration('90m').getHours()", 1),
        ("bool('true')", True),
        ("s.substring(1) + s.substring(0, 1)", "bca"),
        ("s.indexOf('z')", -1),
        ("s.replace('b', '')", "ac"),
        ("[1, 1.0, true, 'a', [1], [1.0]].distinct()", [1, True, "a", [1]]),
        ("[1, 2, 3].slice(1, 3)", [2, 3]),
        ("min(2, 1.5) + max([1, 4])", 5.5),
        ("math.round(-2.5)", -3),
        ("math.round(0.49999999999999994)", 0),
        ("math.round(-0.49999999999999994)", 0),
        ("math.round(4503599627370497.0)", 4503599627370497),
        ("math.round(9007199254740991)", 9007199254740991),
        ("math.round(0.5) + math.round(1.5)", 3),
        ("math.sign(-7) + math.sign(0)", -1),
        ("math.sign(-0.5)", -1.0),
        ("min(3, 1, 2) + max(1)", 2),
        ("math.greatest(1, 2, 3, 4.5)", 4.5),
        ("math.least(-1)", -1),
        ("int(timestamp('1969-12-31T23:59:59.5Z'))", -1),
        ("int(timestamp('2026-01-01T00:00:00.999999Z'))", 1767225600),
        ("timestamp('2026-01-01T00:00:00.123456000Z')", "2026-01-01T00:00:00.123456Z"),
        ("duration('123.321456s').getMilliseconds()", 321),
        ("duration('-1.5s').getMilliseconds()", -500),
        ("duration('-90m').getHours()", -1),
        ("duration('876000h1ms').getSeconds()", 3153600000),
        ("duration('1.000001s')", 1.000001),
        ("duration('1000ns') == duration('1us')", True),
        ("timestamp('2026-07-01T22:30:00Z').getHours('Europe/Berlin')", 0),
        ("timestamp('2026-07-01T22:30:00Z').getDayOfWeek('Asia/Kathmandu')", 4),
        ("timestamp('2026-07-01T22:30:00Z').getMinutes('Asia/Kathmandu')", 15),
        ("timestamp('2026-07-01T22:30:00Z').getHours('-08:30')", 14),
        ("timestamp('2026-07-01T22:30:00Z').getHours('02:00')", 0),
        ("timestamp('2026-01-01T00:00:00Z').getFullYear('America/Lima')", 2025),
    ],
)
def test_evaluate_gives_the_value(expression: str, expected: JsonValue) -> None:
    found = evaluate(expression, SCOPE)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "the end in place of a value"),
        ("1 +", "the end in place of a value"),
        ("1 2", "'2' in place of an operator"),
        ("(1", "in place of ')'"),
        ("t ? 1", "in place of ':'"),
        ("'a", "a string is not closed"),
        ("a @ b", "'@' at character 3"),
        ("if", "reserved word"),
        (r"'\q'", "no escape"),
        (r"'\ud800'", "no character"),
        ("9223372036854775808", "too large"),
        ("1e400", "too large"),
        ("Foo{a: 1}", "'{' in place of"),
        ("m.?a", "'?' in place of a name"),
        ("has(m)", "has(input.city)"),
        ("size()", "takes 1 arguments"),
        ("eval('1')", "no function 'eval'"),
        ("s.formatted([1])", "no function 'formatted'"),
        ("l.transformList(x, x)", "in place of ','"),
        ("l.transformList(i, x)", "in place of ','"),
        ("l.transformList(i, i, i)", "the same name 'i'"),
        ("l.transformMap(i, x, true, x, x)", "two variables and an expression"),
        ("l.all(i, x, true, x)", "two variables and an expression"),
        ("l.filter(i, x, true)", "takes a variable and an expression"),
        ("l.all(size, x, true).size(1)", "takes 1 arguments"),
        ("l.all(int, x, true)", "'int' cannot be the name of a variable"),
        ("min()", "takes 1 to 64 arguments"),
        ("l.map(x)", "in place of ','"),
        ("l.map(x, )", "takes a variable and an expression"),
        ("l.filter(x, x, x)", "takes a variable and an expression"),
        ("l.map(steps, steps)", "cannot be the name of a variable"),
        ("l.map(1, 1)", "in place of a name"),
        ("steps", "name the step"),
        ("size(steps)", "name the step"),
        ("'a' in steps", "name the step"),
        ("steps[i]", "name the step"),
        ("steps[0]", "name the step"),
        ("secrets.A", "secrets cannot be used"),
        ("'x' + secrets.A", "secrets cannot be used"),
        ("l.map(x, secrets)", "secrets cannot be used"),
        ("1" + "+1" * 80, "deeper than 64"),
        ("(" * 80 + "1" + ")" * 80, "deeper than 64"),
        ("!" * 1900 + "true", "deeper than 64"),
        ("'" + "a" * 2000 + "'", "at most 2000"),
    ],
)
def test_evaluate_of_no_expression_is_invalid(expression: str, reason: str) -> None:
    with pytest.raises(RejectedError) as rejected:
        evaluate(expression, SCOPE)

    assert rejected.value.code == "invalid_expression"
    assert reason in rejected.value.message


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("x", "there is no x"),
        ("m.z", "there is no m.z"),
        ("m['z'].y", "there is no m.z"),
        ("m[s]", "there is no m['abc']"),
        ("l[3]", "it has 3 elements"),
        ("l[-1]", "it has 3 elements"),
        ("l[0.5]", "is no integer"),
        ("l['a']", "is a list and has no member"),
        ("i.a", "i is a number and has no member 'a'"),
        ("has(i.a)", "i is a number"),
        ("s[0]", "s is a string"),
        ("n.a", "n is null"),
        ("s + 1", "use string(...)"),
        ("t + t", "a bool + a bool is not defined"),
        ("m < m", "not defined"),
        ("n > 1", "test for null first"),
        ("i && t", "&& takes true or false, and this is a number"),
        ("t && i", "&& takes true or false"),
        ("i ? 1 : 2", "takes true or false"),
        ("!i", "! takes true or false"),
        ("-s", "takes a number or a duration"),
        ("'a' in s", "text.contains(part)"),
        ("1 in m", "names in a map are strings"),
        ("i in i", "cannot contain"),
        ("{1: 2}", "names in a map are strings"),
        ("{'a': 1, 'a': 2}", "twice"),
        ("i.map(x, x)", "takes a list or a map"),
        ("l.filter(x, x)", "takes true or false"),
        ("size(i)", "size() does not take a number"),
        ("l.sort()", "of one kind"),
        ("[1].join()", "join() takes strings"),
        ("[].first()", "of an empty list"),
        ("i / 0", "division by zero"),
        ("d % 0", "division by zero"),
        ("1e308 * 10", "not a finite number"),
        ("-big", "does not fit"),
        ("big * 1e300", "not a finite number"),
        ("double(big * 1)", "does not fit"),
        ("int('x')", "is no integer"),
        ("uint(-1)", "below zero"),
        ("bool('yes')", "neither true nor false"),
        ("timestamp('2026-01-01')", "is no time"),
        ("timestamp('2026-13-01T00:00:00Z')", "is no time"),
        ("timestamp(1e300)", "out of range"),
        ("timestamp('9999-12-31T00:00:00Z') + duration('48h')", "out of range"),
        ("duration('1 day')", "is no duration"),
        ("b'a'", "bytes are no JSON"),
        ("type(1)", "a type is no JSON"),
        ("s.matches('(?=a)')", "is not valid"),
        (r"s.matches('\\pL{500}')", "too large"),
        ("string(b'\\xff')", "not UTF-8"),
        ("s.substring(2, 1)", "substring(2, 1)"),
        ("s.charAt(4)", "charAt() at 4 of a text of 3 characters"),
        ("s.indexOf('a', -1)", "indexOf() at -1"),
        ("s.lastIndexOf('a', 4)", "lastIndexOf() at 4"),
        ("s.split('', 1.5)", "is no integer"),
        ("'%s'.format([])", "has 0 values, and the text takes more"),
        ("'%q'.format([1])", "format() has no '%q'"),
        ("'100%'.format([])", "format() has no '%'"),
        ("'%.2d'.format([1])", "format() has no '%.2d'"),
        ("'%.101f'.format([1])", "at most 100 digits"),
        ("'%d'.format([1.5])", "is no integer"),
        ("'%d'.format(['1'])", "%d does not take a string"),
        ("'%x'.format([true])", "%x does not take a bool"),
        ("'%s'.format([b'\\xff'])", "not UTF-8"),
        ("[1].transformMap(i, x, x)", "names in a map are strings"),
        ("[1].transformMapEntry(i, x, x)", "takes a map, and this is a number"),
        ("[1, 1].transformMapEntry(i, x, {'a': x})", "'a' is in the map twice"),
        ("l.transformList(i, x, x, i)", "transformList() takes true or false"),
        ("timestamp('2026-01-01T00:00:00.1234567Z')", "parts of a microsecond"),
        ("duration('1.5us')", "parts of a microsecond"),
        ("duration('1e3s')", "is no duration"),
        ("duration('999999999999999999h')", "out of range"),
        ("timestamp(0).getHours('Europe')", "no time zone 'Europe'"),
        ("timestamp(0).getHours('../etc/passwd')", "no time zone"),
        ("timestamp(0).getHours('+24:00')", "no time zone '+24:00'"),
        ("timestamp(0).getHours('')", "no time zone ''"),
        ("timestamp('0001-01-01T00:00:00Z').getHours('-01:00')", "out of range"),
        ("duration('1h').getHours('UTC')", "does not take a duration, a string"),
        ("min(1, 'a')", "does not take a number, a string"),
    ],
)
def test_evaluate_of_what_does_not_fit_fails_with_the_reason(expression: str, reason: str) -> None:
    with pytest.raises(RejectedError) as rejected:
        evaluate(expression, SCOPE)

    assert rejected.value.code == "expression_failed"
    assert rejected.value.message.startswith(expression)
    assert reason in rejected.value.message


def test_evaluate_of_a_misspelt_member_tells_what_there_is() -> None:
    with pytest.raises(RejectedError) as rejected:
        evaluate("m.z + 1", SCOPE)

    assert (rejected.value.details[0].path, rejected.value.details[0].allowed) == (
        "m.z + 1",
        "a, b c",
    )


def test_pattern_with_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RejectedError, match="half of a surrogate pair"):
        evaluate("text.matches(pattern)", {"text": "a", "pattern": "\ud800"})


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"^\d$", "\u0663", False),
        (r"^\w$", "ß", False),
        (r"^\s$", "\u00a0", False),
        ("[a&&b]", "&", True),
        ("a{", "a{", True),
        (r"^\Qa.b\E$", "a.b", True),
        (r"^\pL$", "ß", True),
        ("(?i)STRASSE", "strasse", True),
        ("^(?P<year>[0-9]+)$", "2026", True),
        (r"^\?$", "\ud800", True),
    ],
)
def test_patterns_mean_what_re2_says(pattern: str, text: str, found: bool) -> None:
    assert evaluate("text.matches(pattern)", {"text": text, "pattern": pattern}) is found


@pytest.mark.parametrize(
    "expression",
    [
        "xs.map(a, xs.map(b, a * b)).size()",
        "[s]" + ".map(a, a + a)" * 60 + ".size()",
        "[xs]" + ".map(a, a + a)" * 60 + ".size()",
        "[s]" + ".map(a, [a, a])" * 60,
        "[s]" + ".map(a, [a, a])" * 40 + " == [s]" + ".map(a, [a, a])" * 40,
        "s.replace('', s)",
        "xs.map(x, s).join(s)",
        "lists.range(1e18)",
        "xs.transformList(a, b, xs.transformList(c, d, a * d)).size()",
        "xs.map(x, '%s'.format([s]))",
        "xs.map(x, '%s'.format([[[[[s]]]]])).size()",
        "xs.map(x, xs.map(y, timestamp(x).getHours('Europe/Berlin'))).size()",
        r"s.matches('(\\w{9}\\W?){30}\\d')",
        r"s.matches('\\pL{500}')",
        "xs.map(x, s)",
    ],
)
def test_evaluate_of_too_much_work_is_refused_soon(expression: str) -> None:
    scope: dict[str, JsonValue] = {"xs": list(range(5000)), "s": "a" * 100_000}

    with pytest.raises(RejectedError) as rejected:
        evaluate(expression, scope)

    assert rejected.value.code == "expression_failed"
    assert re.search("too much work|the result|too large", rejected.value.message)


def test_evaluate_over_ten_thousand_elements_is_not_too_much() -> None:
    scope: dict[str, JsonValue] = {"xs": list(range(10_000))}

    assert evaluate("xs.filter(x, x % 2 == 0).map(x, {'id': x, 'half': x / 2}).size()", scope) == (
        5_000
    )


class Lazy(Mapping[str, Any]):
    """Steps of a run: looked up when asked for, and too many to look at all."""

    def __getitem__(self, key: str) -> Any:
        if key != "a":
            raise AssertionError(key)
        return {"output": [1, 2]}

    def __contains__(self, key: object) -> bool:
        return key == "a"

    def __iter__(self) -> Iterator[str]:
        return iter(("a",))

    def __len__(self) -> int:
        raise AssertionError


def test_evaluate_looks_up_only_the_steps_that_are_named() -> None:
    scope: dict[str, Any] = {"steps": Lazy()}

    assert evaluate("steps.a.output[0] + steps['a'].output.size()", scope) == 3
    assert evaluate("has(steps.b) ? steps.b.output : 0", scope) == 0
    with pytest.raises(RejectedError) as rejected:
        evaluate("steps.b.output + 1", scope)
    assert rejected.value.details[0].allowed == "a"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 1", ()),
        ("input.a.b", [("input", "a", "b")]),
        ("input.a + input.a", [("input", "a")]),
        ("input.rows[0]['x y'].z", [("input", "rows", 0, "x y", "z")]),
        ("input.rows[input.n].title", [("input", "rows"), ("input", "n")]),
        ("has(input.a.b)", [("input", "a", "b")]),
        ("input.s.size() > 1", [("input", "s")]),
        ("input.xs.map(x, x.a + item.b)", [("input", "xs"), ("item", "b")]),
        ("input.xs.map(x, x.ys.map(y, x.z + y))", [("input", "xs")]),
        ("[x].map(x, x.a)", [("x",)]),
        ("input.m.transformMap(k, v, v.a + item.b)", [("input", "m"), ("item", "b")]),
        ("{'a': run.id}.a", [("run", "id")]),
        ("steps.a.output.n > 1 ? steps['b'].output : null", [
            ("steps", "a", "output", "n"),
            ("steps", "b", "output"),
        ]),
    ],
)  # fmt: skip
def test_references_are_the_paths_over_the_scope(expression: str, expected: list[Path]) -> None:
    assert references(expression) == tuple(expected)


def test_expressions_without_patterns_load_no_engine() -> None:
    program = (
        "import sys; from penstock.expressions import conditions, templates;"
        "templates.render('{{ input.a + 1 }} {{ input.a }}', {'input': {'a': 1}});"
        "conditions.holds({'path': '$.input.a', 'op': 'eq', 'value': 1}, {'input': {'a': 1}});"
        "print({'re2', 'jsonpath_rfc9535', 'regex'} & set(sys.modules))"
    )

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert found.stdout.decode().strip() == "set()"
