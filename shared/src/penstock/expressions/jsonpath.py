"""JSONPath (RFC 9535) over the scope of a run, for conditions.

The library does the finding. Here a query is bounded: its work is counted, filters hold simple
queries alone, regular expressions run in linear time, and it begins with names, so that only
what it names is handed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import JsonValue

from penstock.contracts.errors import RejectedError
from penstock.expressions.evaluator import Path
from penstock.expressions.patterns import check_pattern, matches
from penstock.expressions.syntax import MAX_CHARACTERS
from penstock.expressions.templates import look_up, parse_path, show_path
from penstock.expressions.values import Evaluation, failed

if TYPE_CHECKING:
    from jsonpath_rfc9535 import JSONPathQuery

_SINGULAR: Final = re.compile(
    r"\$\.[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[(?:0|[1-9][0-9]{0,14})\]"
    r"|\['[^'\\\x00-\x1f]*'\]|\[\"[^\"\\\x00-\x1f]*\"\])*",
    re.ASCII,
)
"""Names and indexes as they are written mostly. Others are left to the library, which knows the
standard's rules about blanks, digits and escapes."""
_DOTS: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\.", re.DOTALL)
_UNITS_OF_A_VALUE: Final = 10
"""A value that a query visits costs as much as so many parts of an expression."""

_EVALUATION: Final[ContextVar[Evaluation]] = ContextVar("penstock_jsonpath_evaluation")
"""What pays for the functions of the query that is being worked on."""


@dataclass(frozen=True, slots=True)
class Query:
    """A checked query."""

    prefix: Path
    """The names and indexes that it begins with."""
    singular: bool
    """Whether it is names and indexes alone, and so finds one value or none."""
    rest: JSONPathQuery | None
    """The whole query for the library; none where ``prefix`` does without."""
    reads: tuple[Path, ...]
    """Every path that it reads, those of filters included."""


@lru_cache(maxsize=1024)
def parse_query(text: str) -> Query:
    """Parse a query.

    Raises:
        RejectedError: ``invalid_condition``: it is none, or one that is not allowed here.
    """
    if len(text) > MAX_CHARACTERS:
        raise _invalid(text, f"it has more than {MAX_CHARACTERS} characters")
    if _SINGULAR.fullmatch(text):
        try:
            path = parse_path(text[2:])
        except RejectedError:
            pass
        else:
            _check_prefix(text, path)
            return Query(path, singular=True, rest=None, reads=(path,))
    return _parsed(text)


def _invalid(text: str, reason: str) -> RejectedError:
    return RejectedError("invalid_condition", f"{text[:200]}: {reason}")


def _check_prefix(text: str, path: Path) -> None:
    if not path:
        raise _invalid(text, "a path begins with $ and a name, such as $.input.city")
    if path[0] == "secrets":
        raise _invalid(text, "secrets cannot be used in a condition")
    if path[0] == "steps" and not (len(path) > 1 and isinstance(path[1], str)):
        raise _invalid(text, "name the step: $.steps.NAME")


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jsonpath_rfc9535 as library  # noqa: PLC0415 - only queries that are no paths need it
    from jsonpath_rfc9535 import function_extensions as extensions  # noqa: PLC0415

    class Match(extensions.FilterFunction):
        arg_types = [extensions.ExpressionType.VALUE] * 2
        return_type = extensions.ExpressionType.LOGICAL

        def __init__(self, form: str) -> None:
            self._form = form

        def __call__(self, text: object, pattern: object) -> bool:
            if not isinstance(text, str) or not isinstance(pattern, str):
                return False
            return matches(_EVALUATION.get(), text, self._form.format(_i_regexp(pattern)))

    environment = library.JSONPathEnvironment()
    environment.function_extensions["match"] = Match("^(?:{})$")
    environment.function_extensions["search"] = Match("{}")
    return environment


def _i_regexp(pattern: str) -> str:
    """Return a pattern of RFC 9485 as RE2 has it: its ``.`` finds no carriage return either."""
    return _DOTS.sub(lambda found: "[^\\n\\r]" if found[0] == "." else found[0], pattern)


def _parsed(text: str) -> Query:
    import jsonpath_rfc9535 as library  # noqa: PLC0415 - see above
    from jsonpath_rfc9535 import filter_expressions as filters  # noqa: PLC0415

    try:
        query = _environment().compile(text)
    except library.JSONPathError as error:
        raise _invalid(text, str(error).split("\n", maxsplit=1)[0]) from error
    except RecursionError as error:
        raise _invalid(text, "it is nested too deeply") from error
    prefix = _prefix(query)
    _check_prefix(text, prefix)
    reads = [prefix]
    for part in list(_filter_parts(query)):
        _mend_existence(part)
        if (pattern := _pattern_in(part)) is not None:
            try:
                check_pattern(pattern)
            except RejectedError as error:
                raise _invalid(text, error.message) from error
        if not isinstance(part, filters.FilterQuery):
            continue
        if not part.query.singular_query():
            raise _invalid(text, "a filter takes names and indexes alone, such as ?@.price > 3")
        if isinstance(part, filters.RootFilterQuery):
            _check_prefix(text, _prefix(part.query))
            reads.append(_prefix(part.query))
    rest = None if len(prefix) == len(query.segments) else query
    return Query(prefix, query.singular_query(), rest, tuple(dict.fromkeys(reads)))


def _prefix(query: Any) -> Path:
    from jsonpath_rfc9535.segments import JSONPathChildSegment  # noqa: PLC0415 - see above
    from jsonpath_rfc9535.selectors import IndexSelector, NameSelector  # noqa: PLC0415

    parts: list[str | int] = []
    for segment in query.segments:
        if not isinstance(segment, JSONPathChildSegment) or len(segment.selectors) != 1:
            break
        match segment.selectors[0]:
            case NameSelector(name=name):
                parts.append(name)
            case IndexSelector(index=index) if index >= 0 and parts:
                parts.append(index)
            case _:
                break
    return tuple(parts)


def _mend_existence(part: Any) -> None:
    """Let the test ``@`` be true: the library takes the item itself for its truth."""
    from jsonpath_rfc9535 import filter_expressions as library  # noqa: PLC0415 - see above

    match part:
        case library.FilterExpression():
            names: tuple[str, ...] = ("expression",)
        case library.PrefixExpression():
            names = ("right",)
        case library.LogicalExpression():
            names = ("left", "right")
        case _:
            return
    for name in names:
        test = getattr(part, name)
        if isinstance(test, library.RelativeFilterQuery) and test.query.empty():
            setattr(part, name, library.BooleanLiteral(test.token, True))


def _pattern_in(part: Any) -> str | None:
    """Return the pattern of a call of ``match`` or ``search``, if it is a literal."""
    from jsonpath_rfc9535 import filter_expressions as library  # noqa: PLC0415 - see above

    match part:
        case library.FunctionExtension(
            name="match" | "search", args=[_, library.StringLiteral(value=pattern)]
        ):
            return _i_regexp(pattern)
        case _:
            return None


def _filter_parts(query: Any) -> Iterator[Any]:
    """Iterate over the parts of a query's filters."""
    from jsonpath_rfc9535 import filter_expressions as library  # noqa: PLC0415 - see above
    from jsonpath_rfc9535.selectors import FilterSelector  # noqa: PLC0415

    selectors = (selector for segment in query.segments for selector in segment.selectors)
    waiting: list[Any] = [
        selector.expression for selector in selectors if isinstance(selector, FilterSelector)
    ]
    while waiting:
        part = waiting.pop()
        yield part
        match part:
            case library.FilterExpression(expression=inner):
                waiting.append(inner)
            case library.PrefixExpression(right=inner):
                waiting.append(inner)
            case (
                library.LogicalExpression(left=left, right=right)
                | library.ComparisonExpression(left=left, right=right)
            ):
                waiting += (left, right)
            case library.FunctionExtension(args=arguments):
                waiting += arguments
            case _:
                pass


def find(query: Query, scope: Mapping[str, JsonValue]) -> list[JsonValue]:
    """Return what a query finds, in its order.

    Raises:
        RejectedError: ``expression_failed``: it is too much work, or its root is unknown.
    """
    for path in query.reads:
        if path[0] not in scope:
            known = ", ".join(sorted(scope))
            raise failed(f"there is no {path[0]}", known)
    if query.rest is None:
        try:
            return [look_up(query.prefix, scope)]
        except RejectedError:
            return []
    return [node.value for node in _nodes(query.rest, _document(query, scope))]


def missing(query: Query, scope: Mapping[str, JsonValue]) -> RejectedError:
    """Return the error of a singular query that finds nothing, with what there is instead."""
    try:
        look_up(query.prefix, scope)
    except RejectedError as error:
        allowed = error.details[0].allowed if error.details else None
        return failed(error.message, allowed)
    return failed(f"it finds nothing in {show_path(query.prefix)}")


def _document(query: Query, scope: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    document: dict[str, JsonValue] = {}
    steps: dict[str, JsonValue] = {}
    for path in query.reads:
        value = scope[str(path[0])]
        if path[0] != "steps":
            document[str(path[0])] = value
        elif isinstance(value, Mapping) and path[1] in value:
            document["steps"] = steps
            steps[str(path[1])] = value[str(path[1])]
    return document


def _nodes(query: Any, document: dict[str, JsonValue]) -> list[Any]:
    import jsonpath_rfc9535 as library  # noqa: PLC0415 - see above

    of = Evaluation({})

    class Counted(library.JSONPathNode):
        __slots__ = ()

        def new_child(
            self, value: object, key: int | str, parent: library.JSONPathNode | None
        ) -> library.JSONPathNode:
            of.spend(_UNITS_OF_A_VALUE)
            location = (*self.location, key)
            return Counted(value=value, location=location, parent=parent, root=self.root)

    nodes: Any = [Counted(value=document, location=(), parent=None, root=document)]
    for segment in query.segments:
        nodes = segment.resolve(nodes)
    token = _EVALUATION.set(of)
    try:
        return list(nodes)
    except library.JSONPathError as error:
        raise failed(str(error).split("\n", maxsplit=1)[0]) from error
    except RecursionError as error:
        raise failed("its values are nested too deeply") from error
    finally:
        _EVALUATION.reset(token)
        of.close()
