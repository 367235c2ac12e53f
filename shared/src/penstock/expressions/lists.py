"""Lists: functions of expressions on lists, and the sizes of all that has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from penstock.expressions.overloads import Table, overloads
from penstock.expressions.values import Evaluation, article, checked, failed, kind_of, whole


def _flatten(of: Evaluation, items: list[Any]) -> list[Any]:
    found: list[Any] = []
    of.spend(len(items))
    for item in items:
        inner = item if isinstance(item, list) else [item]
        of.spend(len(inner))
        found += inner
    return found


def _key(of: Evaluation, value: Any) -> Any:
    of.spend(1)
    kind = kind_of(value)
    if kind == "list":
        return kind, tuple(_key(of, item) for item in value)
    if kind == "map":
        return kind, frozenset((name, _key(of, item)) for name, item in value.items())
    return kind, value


def _distinct(of: Evaluation, items: list[Any]) -> list[Any]:
    return list({_key(of, item): item for item in reversed(items)}.values())[::-1]


def comparable(of: Evaluation, items: list[Any], function: str) -> list[Any]:
    """Return a list whose elements have an order among them.

    Raises:
        RejectedError: They have none.
    """
    of.spend(2 * len(items))
    kinds = {kind_of(item) for item in items}
    if len(kinds) > 1 or not kinds <= {"number", "string", "timestamp", "duration"}:
        known = ", ".join(sorted(kinds))
        raise failed(f"{function}() takes values of one kind that can be ordered, not {known}")
    return items


def _sort(of: Evaluation, items: list[Any]) -> list[Any]:
    of.spend(8 * len(items))
    return sorted(comparable(of, items, "sort"))


def _sum(of: Evaluation, items: list[Any]) -> Any:
    of.spend(len(items))
    total: Any = 0
    for item in items:
        if kind_of(item) != "number":
            raise failed(f"sum() takes numbers, and there is {article(kind_of(item))}")
        total = checked(total + item)
    return total


def _slice(of: Evaluation, items: list[Any], start: Any, end: Any) -> list[Any]:
    first, last = whole(start), whole(end)
    if not 0 <= first <= last <= len(items):
        raise failed(f"slice({first}, {last}) of a list of {len(items)}")
    of.spend(last - first)
    return items[first:last]


def _end_of(name: str, index: int) -> Callable[..., Any]:
    def end(_: Evaluation, items: list[Any]) -> Any:
        if not items:
            raise failed(f"{name}() of an empty list")
        return items[index]

    return end


def _range(of: Evaluation, count: Any) -> list[int]:
    size = whole(count)
    if size < 0:
        raise failed(f"{size} is below zero")
    of.spend(size)
    return list(range(size))


def _reverse(of: Evaluation, items: Any) -> Any:
    of.spend(len(items))
    return items[::-1]


LISTS: Final[Table] = {
    "size": overloads(
        *((kind, "number", lambda _, x: len(x)) for kind in ("string", "list", "map", "bytes"))
    ),
    "flatten": overloads(("list", "list", _flatten)),
    "distinct": overloads(("list", "list", _distinct)),
    "sort": overloads(("list", "list", _sort)),
    "reverse": overloads(("list", "list", _reverse), ("string", "string", _reverse)),
    "slice": overloads(("list number number", "list", _slice)),
    "first": overloads(("list", "any", _end_of("first", 0))),
    "last": overloads(("list", "any", _end_of("last", -1))),
    "sum": overloads(("list", "number", _sum)),
    "lists.range": overloads(("number", "list", _range)),
}
