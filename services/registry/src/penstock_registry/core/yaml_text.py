"""YAML texts become JSON values by the core schema of YAML 1.2, within bounds.

Values are built from the parser's events, so that the bounds hold before anything is built: an
alias counts as all that it stands for. ``<<`` merges mappings, as YAML 1.1 has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, cast

import yaml
from pydantic import JsonValue

from penstock.contracts.envelope import MAX_DEPTH
from penstock.contracts.errors import finding
from penstock.texts import place_at
from penstock_registry.core.places import invalid_document

MAX_NODES: Final = 100_000
"""Of one request, aliases expanded; each 100 characters of a scalar count as one more. They are
read in about half a second."""
MAX_DOCUMENTS: Final = 1_000
"""Of one request, empty documents included."""
_MAX_TAG_DIRECTIVES: Final = 16
"""Each is compared with all others."""

_TAG_DIRECTIVE: Final = re.compile(r"^%TAG", re.MULTILINE)
_PREFIX: Final = "tag:yaml.org,2002:"


def _float(text: str) -> float:
    value = float(text)  # refuses .nan and .inf, which YAML writes with a point
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


class _Type(NamedTuple):
    """One type of the core schema: how its scalars look, and how they are read."""

    pattern: re.Pattern[str]
    read: Callable[[str], JsonValue]


_TYPES: Final = {
    "null": _Type(re.compile(r"(?:~|null|Null|NULL|)"), lambda _: None),
    "bool": _Type(
        re.compile(r"(?:true|True|TRUE|false|False|FALSE)"), lambda text: text.lower() == "true"
    ),
    "int": _Type(
        re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    "float": _Type(
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        _float,
    ),
    "str": _Type(re.compile(r".*", re.DOTALL), str),
}
_FIRST: Final = re.compile(r"[-+.0-9~nNtTfF]|$")
"""Beginnings of scalars that may be other than text."""


def _fault(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=cast("yaml.Mark", event.start_mark))


class _Anchored(NamedTuple):
    value: JsonValue
    nodes: int
    levels: int


class YamlReader:
    """Reads the YAML texts of one request, which share the bounds."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._events: Iterator[yaml.Event] = iter(())
        self._documents_read = 0
        self._nodes = 0
        self._deepest = 0
        self._anchors: dict[str, _Anchored] = {}

    def read(self, text: str, *, path: str = "") -> list[JsonValue]:
        """Return the documents of a text as JSON values; empty ones are left out.

        Raises:
            RejectedError: ``invalid_document`` if it is not YAML or exceeds a bound, with line
                and column.
        """
        try:
            return [document for document in self._documents(text) if document is not None]
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
            problem = f"{error.problem or error.context}{where}"
        except yaml.reader.ReaderError as error:
            line, column = place_at(text.encode(), error.position)
            problem = f"{error.reason} (line {line}, column {column})"
        except UnicodeEncodeError as error:
            problem = f"character {error.start + 1} is half a surrogate pair"
        raise invalid_document([finding(path, f"not YAML: {problem}")])

    def _documents(self, text: str) -> Iterator[JsonValue]:
        if len(_TAG_DIRECTIVE.findall(text)) > _MAX_TAG_DIRECTIVES:
            raise yaml.MarkedYAMLError(problem=f"more than {_MAX_TAG_DIRECTIVES} %TAG lines")
        self._events = yaml.parse(text, yaml.CSafeLoader)
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents_read += 1
                if self._documents_read > MAX_DOCUMENTS:
                    raise _fault(f"more than {MAX_DOCUMENTS} documents", event)
                self._anchors.clear()
                yield self._value(self._next(), 0)

    def _value(self, event: yaml.NodeEvent, depth: int) -> JsonValue:
        """Return the value that begins with an event, ``depth`` levels deep in its document."""
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(event.anchor or "")
            if known is None:
                raise _fault(f"there is no complete anchor {event.anchor!r} before", event)
            self._count(event, known.nodes, depth + known.levels)
            return known.value
        before, around, self._deepest = self._nodes, self._deepest, depth
        value: JsonValue
        if isinstance(event, yaml.ScalarEvent):
            self._count(event, 1 + len(event.value) // 100, depth)
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._count(event, 1, depth + 1)
            _require_tag(event.tag, "seq", event)
            value = [self._value(item, depth + 1) for item in self._until(yaml.SequenceEndEvent)]
        else:
            self._count(event, 1, depth + 1)
            _require_tag(cast("yaml.MappingStartEvent", event).tag, "map", event)
            value = self._mapping(depth + 1)
        if event.anchor is not None:
            levels = self._deepest - depth
            self._anchors[event.anchor] = _Anchored(value, self._nodes - before, levels)
        self._deepest = max(around, self._deepest)
        return value

    def _mapping(self, depth: int) -> dict[str, JsonValue]:
        """Return the mapping whose start was read. Keys stay text as written."""
        found: dict[str, JsonValue] = {}
        merged: dict[str, JsonValue] | None = None
        for event in self._until(yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _fault("a key must be text", event)
            self._count(event, 1 + len(event.value) // 100, depth)
            key = event.value
            is_merge = key == "<<" and event.implicit[0]
            if key in found or (is_merge and merged is not None):
                raise _fault(f"{key!r} is written twice", event)
            value = self._value(self._next(), depth)
            if is_merge:
                merged = _merged(value, event)
            else:
                found[key] = value
        return found if merged is None else {**merged, **found}

    def _next(self) -> yaml.NodeEvent:
        return cast("yaml.NodeEvent", next(self._events))

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.NodeEvent]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield cast("yaml.NodeEvent", event)

    def _count(self, event: yaml.Event, nodes: int, depth: int) -> None:
        self._nodes += nodes
        self._deepest = max(self._deepest, depth)
        if self._nodes > MAX_NODES:
            raise _fault(f"more than {MAX_NODES} values, with aliases expanded", event)
        if depth > MAX_DEPTH:
            raise _fault(f"nested more than {MAX_DEPTH} deep", event)


def _merged(value: JsonValue, event: yaml.Event) -> dict[str, JsonValue]:
    """Return what ``<<`` adds: of several mappings the first that has a key counts."""
    found: dict[str, JsonValue] = {}
    for one in reversed(value if isinstance(value, list) else [value]):
        if not isinstance(one, dict):
            raise _fault("'<<' takes a mapping or a sequence of mappings", event)
        found.update(one)
    return found


def _require_tag(tag: str | None, name: str, event: yaml.Event) -> None:
    if tag not in (None, "!", _PREFIX + name):
        raise _fault(f"tag {tag!r} is unknown here; allowed: !!{name}", event)


def _scalar(event: yaml.ScalarEvent) -> JsonValue:
    text, tag = event.value, event.tag
    try:
        if tag is None and event.implicit[0]:
            if _FIRST.match(text):
                for kind in _TYPES.values():
                    if kind.pattern.fullmatch(text):
                        return kind.read(text)
            return text
        if tag in (None, "!"):
            return text
        found = _TYPES.get(tag.removeprefix(_PREFIX))
        if found is None:
            allowed = ", ".join(f"!!{name}" for name in _TYPES)
            raise _fault(f"tag {tag!r} is unknown here; allowed: {allowed}", event)
        if not found.pattern.fullmatch(text):
            raise _fault(f"{text[:40]!r} is no !!{tag.removeprefix(_PREFIX)}", event)
        return found.read(text)
    except ValueError as error:  # not finite, or more digits than Python reads
        raise _fault(f"{text[:40]!r} is beyond the range of numbers", event) from error
