"""The work of checking a value against a JSON Schema, counted before it is done.

The library reads a schema behind each reference again, unless the reference closes a circle, so
that few lines may stand for any number of checks. Errors are collected without that exception:
a value in alternatives of alternatives has as many as there are ways through them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

MAX_SPREAD: Final = 10_000
"""Most checks of one part of a value that a schema may ask for."""
_CHARACTERS_OF_A_CHECK: Final = 100
"""A text of so many characters is as much work as one more value."""

_ESCAPE: Final = re.compile(rb"%([0-9a-fA-F]{2})")
_IN_PLACE: Final = ("not", "if", "then", "else")
_IN_PLACE_LISTS: Final = ("allOf", "anyOf", "oneOf")
_OF_MEMBERS: Final = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_OF_ITEMS: Final = ("items", "contains", "unevaluatedItems")
_MEMBERS, _ITEMS = object(), object()
"""Places of members and items under any name or index."""

Counts = dict[int, int]
"""How often each subschema, by its identity, is applied to one value."""


class _Part:
    """What all parts of a value are asked that come to the same subschemas."""

    __slots__ = ("checks", "counts", "inner", "named", "work")

    def __init__(self, counts: Counts, work: int) -> None:
        self.counts = counts
        self.checks = sum(counts.values())
        self.work = work
        """Its checks, and the parts of values that they compare it with."""
        self.named: set[object] = set()
        self.inner: dict[object, _Part] = {}


class SchemaWork:
    """A schema whose keywords have their right types, and whose references lead to places."""

    def __init__(self, schema: Any) -> None:
        """Look through a schema, which must not change from here on."""
        self._whole = schema
        self._schemas: dict[int, Any] = {}
        self._anchors = dict(_anchors(schema))
        self._circles: set[int] = set()
        """Subschemas that a circle of references comes back to."""
        self._together: dict[int, Counts] = {}
        self._pieces: dict[int, Counts] = {}
        self._inner: dict[int, dict[object, list[int]]] = {}
        self._spreads: dict[int, int] = {}
        self._open: set[int] = set()
        self._compared: dict[int, int] = {}
        self.spread = self._spread_of(self._known(schema))
        """How often one part of a value is checked at most."""
        self.most = self.spread * (1 + max(map(self._comparisons, list(self._schemas))))
        """Work for one part of a value at most."""

    def exceeds(self, value: Any, limit: int) -> bool:
        """Return whether checking a value takes more than so many checks."""
        total = 0
        for part, item in self._parts(value, circles_once=True):
            total += part.work * (1 + _length(item))
            if total > limit:
                return True
        return False

    def repeats(self, value: Any, limit: int) -> bool:
        """Return whether a part of a value may have more than so many errors."""
        if not self._circles and self.spread <= limit:
            return False
        return any(part.checks > limit for part, _ in self._parts(value, circles_once=False))

    def _parts(self, value: Any, *, circles_once: bool) -> Iterator[tuple[_Part, Any]]:
        """Yield the checks of each part of a value, and the part."""
        parts: dict[tuple[tuple[int, int], ...], _Part] = {}

        def part_of(asked: Counts) -> _Part:
            # Items of a list are mostly asked the same.
            key = tuple(asked.items())
            if key not in parts:
                counts = self._once(asked) if circles_once else self._all(asked)
                work = sum(times * (1 + self._comparisons(one)) for one, times in counts.items())
                parts[key] = _Part(counts, work)
            return parts[key]

        waiting = [(value, part_of({self._known(self._whole): 1}))]
        while waiting:
            item, part = waiting.pop()
            yield part, item
            places: Iterable[tuple[object, Any]]
            if isinstance(item, Mapping):
                places, others = item.items(), _MEMBERS
            elif isinstance(item, list):
                places, others = enumerate(item), _ITEMS
            else:
                continue
            if not part.named:
                part.named = {at for key in part.counts for at in self._places(key)}
            for at, one in places:
                place = at if at in part.named else others
                if place not in part.inner:
                    part.inner[place] = part_of(self._at(part.counts, place, others))
                waiting.append((one, part.inner[place]))

    def _comparisons(self, key: int) -> int:
        """Return the parts of objects and lists that a subschema compares a value with."""
        if key not in self._compared:
            schema = self._schemas[key]
            values = []
            if isinstance(schema, Mapping):
                values = [*schema.get("enum", ()), schema.get("const")]
            composed = (value for value in values if isinstance(value, Mapping | list))
            self._compared[key] = sum(size for value in composed for size in _sizes(value))
        return self._compared[key]

    def _all(self, asked: Counts) -> Counts:
        """Return how often each subschema is applied beside those that are asked for."""
        counts: Counts = defaultdict(int)
        for key, times in asked.items():
            for inner, more in self._applied(key, self._together).items():
                counts[inner] += times * more
        return counts

    def _once(self, asked: Counts) -> Counts:
        """Return the same where those of circles are applied once, however often they are met."""
        counts: Counts = defaultdict(int)
        circles = {key for key in asked if key in self._circles}
        waiting = [*((key, 1) for key in circles)]
        waiting += [(key, times) for key, times in asked.items() if key not in circles]
        while waiting:
            key, times = waiting.pop()
            for inner, more in self._applied(key, self._pieces).items():
                if inner == key or inner not in self._circles:
                    counts[inner] += times * more
                elif inner not in circles:
                    circles.add(inner)
                    waiting.append((inner, 1))
        return counts

    def _at(self, counts: Counts, at: object, others: object) -> Counts:
        found: Counts = defaultdict(int)
        for key, times in counts.items():
            places = self._places(key)
            for place in {at, others}:
                for inner in places.get(place, ()):
                    found[inner] += times
        return found

    def _spread_of(self, key: int) -> int:
        if key in self._spreads:
            return self._spreads[key]
        if key in self._open:
            self._circles.add(key)
            return 1
        self._open.add(key)
        applied = self._applied(key, self._together)
        at: dict[object, int] = defaultdict(int)
        for inner, times in applied.items():
            for place, schemas in self._places(inner).items():
                at[place] += times * sum(map(self._spread_of, schemas))
        others = max(at.pop(_MEMBERS, 0), at.pop(_ITEMS, 0))
        self._open.discard(key)
        found = max(sum(applied.values()), others + max(at.values(), default=0))
        self._spreads[key] = found
        return found

    def _applied(self, key: int, known: dict[int, Counts]) -> Counts:
        """Return the subschemas that are applied to the same value, the schema itself included.

        Args:
            key: The schema.
            known: Earlier results: ``_together``, or ``_pieces``, which end at circles.
        """
        if key in known:
            return known[key]
        known[key] = {}  # of a circle in one place, the rest is nothing
        found: Counts = defaultdict(int, {key: 1})
        for schema in self._beside(self._schemas[key]):
            if known is self._pieces and schema in self._circles:
                found[schema] += 1
                continue
            for inner, times in self._applied(schema, known).items():
                found[inner] += times
        known[key] = found
        return found

    def _beside(self, schema: Any) -> Iterator[int]:
        if not isinstance(schema, Mapping):
            return
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in schema:
                yield self._known(self._target(schema[keyword]))
        for keyword in _IN_PLACE:
            if keyword in schema:
                yield self._known(schema[keyword])
        for keyword in _IN_PLACE_LISTS:
            yield from map(self._known, schema.get(keyword, ()))
        yield from map(self._known, schema.get("dependentSchemas", {}).values())

    def _places(self, key: int) -> dict[object, list[int]]:
        """Return the subschemas of members and items, by their names and indexes."""
        if key in self._inner:
            return self._inner[key]
        schema = self._schemas[key]
        found = self._inner[key] = {}
        if not isinstance(schema, Mapping):
            return found
        for name, member in schema.get("properties", {}).items():
            found[name] = [self._known(member)]
        for index, item in enumerate(schema.get("prefixItems", ())):
            found[index] = [self._known(item)]
        members = [*schema.get("patternProperties", {}).values()]
        members += [schema[keyword] for keyword in _OF_MEMBERS if keyword in schema]
        items = [schema[keyword] for keyword in _OF_ITEMS if keyword in schema]
        found[_MEMBERS] = [self._known(one) for one in members]
        found[_ITEMS] = [self._known(one) for one in items]
        return found

    def _target(self, reference: str) -> Any:
        """Return the subschema behind a reference."""
        written = reference.partition("#")[2].encode(errors="replace")
        fragment = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), written).decode(
            errors="replace"
        )
        if fragment and not fragment.startswith("/"):
            return self._anchors.get(fragment)
        return at_pointer(self._whole, fragment)

    def _known(self, schema: Any) -> int:
        self._schemas[id(schema)] = schema
        return id(schema)


def _anchors(schema: Any) -> Iterator[tuple[str, Any]]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := part.get(keyword), str):
                    yield name, part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def at_pointer(whole: object, pointer: str) -> Any:
    """Return the part of a schema at a JSON pointer; ``None`` if there is none."""
    found = whole
    if pointer and not pointer.startswith("/"):
        return None
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def _sizes(value: Any) -> Iterator[int]:
    """Yield the size of each part of a value: 1, and more for a long text."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        yield 1 + _length(item)
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def larger(value: Any, limit: int) -> bool:
    """Return whether a value has more than so many parts, long texts counted as several."""
    return any(size > limit for size in accumulate(_sizes(value)))


def _length(item: Any) -> int:
    return len(item) // _CHARACTERS_OF_A_CHECK if isinstance(item, str) else 0
