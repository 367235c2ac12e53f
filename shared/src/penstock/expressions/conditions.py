"""Conditions: CEL that gives a boolean, JSONPath with an operator, and combinations of these.

``holds`` decides with data. ``check_condition`` and ``check_expression`` report without data, or
with samples of it, what would fail; they never report what data could make right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import structs
from pydantic import JsonValue

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.json import Json
from penstock.expressions import evaluator, templates
from penstock.expressions.evaluator import Path
from penstock.expressions.inference import infer, kind_at
from penstock.expressions.jsonpath import Query, find, missing, parse_query
from penstock.expressions.patterns import check_pattern, matches
from penstock.expressions.samples import Sample
from penstock.expressions.values import (
    Evaluation,
    article,
    contains,
    equal,
    failed,
    kind_of,
    operate,
)

OPERATORS: Final = ("eq", "ne", "gt", "ge", "lt", "le", "in", "contains", "exists", "matches")
MAX_DEPTH: Final = 16
"""Deepest nesting of ``all``, ``any`` and ``not``."""

_ORDER: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_FORMS: Final = "text, {path, op, value}, {all: [...]}, {any: [...]}, {not: ...}"


def holds(condition: Json, scope: Mapping[str, JsonValue]) -> bool:
    """Return whether a condition holds.

    ``all`` and ``any`` ask their conditions in turn and stop at the first that decides.

    Raises:
        RejectedError: ``condition_not_boolean``: an expression gives something else;
            ``invalid_condition``, ``invalid_expression``: it cannot be read;
            ``expression_failed``: the data do not fit it.
    """
    return _decide(condition, scope, 1)


def _decide(condition: Any, scope: Mapping[str, JsonValue], depth: int) -> bool:
    _check_depth(depth)
    form = _form(condition)
    match form:
        case "literal":
            return bool(condition)
        case "expression":
            return _truth(condition, scope)
        case "all":
            return all(_decide(part, scope, depth + 1) for part in _parts(condition, form))
        case "any":
            return any(_decide(part, scope, depth + 1) for part in _parts(condition, form))
        case "not":
            return not _decide(condition["not"], scope, depth + 1)
        case _:
            return _compare(condition, scope)


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _invalid(f"it is nested deeper than {MAX_DEPTH}")


def _form(condition: Any) -> str:
    if isinstance(condition, bool):
        return "literal"
    if isinstance(condition, str):
        return "expression"
    if isinstance(condition, dict):
        for name in ("all", "any", "not"):
            if name in condition:
                _only(condition, name)
                return name
        if "path" in condition:
            _only(condition, "path", "op", "value")
            return "path"
    raise _invalid("this is no condition", _FORMS)


def _only(condition: Mapping[str, Any], *names: str) -> None:
    unknown = sorted(set(condition) - set(names))
    if unknown:
        raise _invalid(f"there is no {unknown[0]!r} in this condition", ", ".join(names))


def _invalid(message: str, allowed: str | None = None) -> RejectedError:
    detail = ErrorDetail(path="", message=message, allowed=allowed)
    return RejectedError("invalid_condition", message, details=(detail,))


def _parts(condition: Mapping[str, Any], name: str) -> list[Any]:
    parts = condition[name]
    if not isinstance(parts, list) or not parts:
        raise _invalid(f"{name!r} takes a list of conditions")
    return parts


def _expression(text: str) -> str:
    """Return the expression of a condition, also if it was written as a template."""
    whole = templates.whole_expression(text)
    return text if whole is None else whole


def _truth(condition: str, scope: Mapping[str, JsonValue]) -> bool:
    value = evaluator.evaluate(_expression(condition), scope)
    if not isinstance(value, bool):
        raise RejectedError(
            "condition_not_boolean",
            f"{condition[:200]}: a condition gives true or false, and this is "
            f"{article(kind_of(value))}",
        )
    return value


# JSONPath conditions.


def _operator(condition: Mapping[str, Any]) -> str:
    operator = condition.get("op")
    if operator not in OPERATORS:
        what = "there is no operator in it" if operator is None else f"there is no {operator!r}"
        raise _invalid(what, ", ".join(OPERATORS))
    if "value" not in condition and operator != "exists":
        raise _invalid(f"{operator!r} needs a value")
    return str(operator)


def _query(condition: Mapping[str, Any]) -> Query:
    path = condition["path"]
    if not isinstance(path, str):
        raise _invalid("the path is no text", "JSONPath such as $.input.city")
    return parse_query(path)


def _compare(condition: Mapping[str, Any], scope: Mapping[str, JsonValue]) -> bool:
    operator, query = _operator(condition), _query(condition)
    wanted = templates.render(condition.get("value", True), scope)
    try:
        found = find(query, scope)
        if operator == "exists":
            return bool(found) is _boolean(wanted)
        if query.singular and not found:
            raise missing(query, scope)
        return _holds(operator, found[0] if query.singular else found, wanted)
    except RejectedError as error:
        raise RejectedError(
            error.code, f"{condition['path']} {operator}: {error.message}", details=error.details
        ) from error
    except RecursionError as error:
        raise failed("its values are nested too deeply") from error


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise failed(f"the value is true or false, and this is {article(kind_of(value))}")
    return value


def _holds(operator: str, found: Any, wanted: Any) -> bool:
    of = Evaluation({})
    try:
        return _applies(of, operator, found, wanted)
    finally:
        of.close()


def _applies(of: Evaluation, operator: str, found: Any, wanted: Any) -> bool:
    match operator:
        case "eq":
            return equal(of, found, wanted)
        case "ne":
            return not equal(of, found, wanted)
        case "in":
            if not isinstance(wanted, list):
                raise failed(f"the value is a list, and this is {article(kind_of(wanted))}")
            return contains(of, wanted, found)
        case "contains":
            return contains(of, found, wanted)
        case "matches":
            if not isinstance(found, str) or not isinstance(wanted, str):
                kinds = f"{article(kind_of(found))} and {article(kind_of(wanted))}"
                raise failed(f"it compares text with a pattern, and these are {kinds}")
            return matches(of, found, wanted)
        case _:
            return bool(operate(of, _ORDER[operator], found, wanted))


# Without data.


def condition_references(condition: Json) -> tuple[Path, ...]:
    """Return every path over the scope that a condition reads, each once.

    Raises:
        RejectedError: ``invalid_condition``, ``invalid_expression`` or ``invalid_template``.
    """
    return tuple(dict.fromkeys(_references(condition, 1)))


def _references(condition: Any, depth: int) -> Iterator[Path]:
    _check_depth(depth)
    match _form(condition):
        case "expression":
            yield from evaluator.references(_expression(condition))
        case "all" | "any" as name:
            for part in _parts(condition, name):
                yield from _references(part, depth + 1)
        case "not":
            yield from _references(condition["not"], depth + 1)
        case "path":
            yield from _query(condition).reads
            for _, path in templates.references(condition.get("value")):
                yield path
        case _:
            pass


def check_condition(
    condition: Json, path: str, samples: Mapping[str, Sample] | None = None
) -> Iterator[ErrorDetail]:
    """Yield the errors of a condition, as far as that can be seen without data.

    Args:
        condition: The condition.
        path: Where it stands.
        samples: Examples of what names of the scope stand for, see ``sample_of``.
    """
    yield from _check(condition, path, samples, 1)


def _check(
    condition: Any, path: str, samples: Mapping[str, Sample] | None, depth: int
) -> Iterator[ErrorDetail]:
    try:
        _check_depth(depth)
        form = _form(condition)
        parts = _parts(condition, form) if form in ("all", "any") else []
    except RejectedError as error:
        yield _placed(error, path)
        return
    match form:
        case "expression":
            kind, found = yield from _inferred(_expression(condition), path, samples)
            if kind not in ("any", "bool") and not found:
                yield ErrorDetail(
                    path=path,
                    message=f"a condition gives true or false, and this is {article(kind)}",
                )
        case "not":
            yield from _check(condition["not"], f"{path}.not", samples, depth + 1)
        case "path":
            yield from _check_comparison(condition, path, samples)
        case _:
            for index, part in enumerate(parts):
                yield from _check(part, f"{path}.{form}[{index}]", samples, depth + 1)


def _placed(error: RejectedError, path: str) -> ErrorDetail:
    allowed = error.details[0].allowed if error.details else None
    return ErrorDetail(path=path, message=error.message, allowed=allowed)


def _check_comparison(
    condition: Mapping[str, Any], path: str, samples: Mapping[str, Sample] | None
) -> Iterator[ErrorDetail]:
    try:
        query = _query(condition)
    except RejectedError as error:
        yield _placed(error, f"{path}.path")
        return
    try:
        operator = _operator(condition)
    except RejectedError as error:
        yield _placed(error, path if error.message.endswith("a value") else f"{path}.op")
        return
    wanted = condition.get("value", True)
    faults = list(check_template(wanted, f"{path}.value", samples))
    yield from faults
    if faults:
        return
    reads = list(templates.references(wanted, f"{path}.value"))
    for place, read in reads:
        if read[0] == "secrets":
            yield ErrorDetail(path=place, message="secrets cannot be used in a condition")
    if reads:
        return
    kind = "list"
    if query.singular:
        kind = "any" if query.rest else kind_at(query.prefix, samples or {})
    try:
        _check_kinds(operator, kind, wanted)
    except RejectedError as error:
        yield _placed(error, f"{path}.value")


_EXAMPLES: Final[Mapping[str, Any]] = {
    "null": None,
    "bool": True,
    "number": 1,
    "string": "",
    "list": [],
    "map": {},
}


def _check_kinds(operator: str, kind: str, wanted: Any) -> None:
    """Try an operator with an example of the kind that will be found.

    Raises:
        RejectedError: It would fail with anything of that kind.
    """
    if operator == "exists":
        _boolean(wanted)
    elif operator == "matches" and isinstance(wanted, str):
        check_pattern(wanted)
        if kind not in ("any", "string"):
            _holds(operator, _EXAMPLES[kind], wanted)
    elif kind != "any":
        _holds(operator, _EXAMPLES[kind], wanted)
    elif operator in _ORDER and kind_of(wanted) not in ("number", "string"):
        raise failed(f"{operator!r} compares numbers or text, and this is {_a(wanted)}")
    elif operator in ("in", "matches"):
        _holds(operator, "", wanted)


def _a(value: Any) -> str:
    return article(kind_of(value))


def _inferred(expression: str, path: str, samples: Mapping[str, Sample] | None) -> Any:
    """Yield the errors of an expression; return its kind and whether anything was."""
    try:
        kind, found = infer(expression, samples)
    except RejectedError as error:
        yield _placed(error, path)
        return "any", True
    for detail in found:
        yield structs.replace(detail, path=path, message=f"{expression[:200]}: {detail.message}")
    return kind, bool(found)


def check_expression(
    expression: str, path: str, samples: Mapping[str, Sample] | None = None
) -> Iterator[ErrorDetail]:
    """Yield the errors of an expression, as far as that can be seen without data.

    Args:
        expression: CEL.
        path: Where it stands.
        samples: Examples of what names of the scope stand for, see ``sample_of``.
    """
    yield from _inferred(expression, path, samples)


def check_template(
    template: Json, path: str, samples: Mapping[str, Sample] | None = None
) -> Iterator[ErrorDetail]:
    """Yield the errors of a template and its expressions; the paths are not looked up.

    Args:
        template: Any JSON value.
        path: Where it stands.
        samples: Examples of what names of the scope stand for, see ``sample_of``.
    """
    try:
        found = list(templates.expressions_of(template, path))
    except RejectedError as error:
        yield from error.details
        return
    for place, expression in found:
        yield from check_expression(expression, place, samples)
