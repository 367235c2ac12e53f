"""Numbers: functions of expressions on numbers, and the least and greatest of several values."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, trunc
from typing import Any, Final

from penstock.expressions.lists import comparable
from penstock.expressions.overloads import Overload, Table, overloads
from penstock.expressions.values import Evaluation, checked, failed, truncated


def _extreme(name: str, choose: Callable[[list[Any]], Any]) -> tuple[Overload, ...]:
    def extreme(of: Evaluation, *given: Any) -> Any:
        items = given[0] if isinstance(given[0], list) else list(given)
        if not items:
            raise failed(f"{name}() of an empty list")
        return choose(comparable(of, items, name))

    return overloads(("list", "any", extreme), ("number*", "number", extreme))


def _round(_: Evaluation, value: Any) -> int:
    """Return the nearest integer; halves are rounded away from zero."""
    cut = trunc(value)
    # Exact, while `value + 0.5` may be rounded itself.
    if abs(value - cut) >= 0.5:
        cut += 1 if value > 0 else -1
    return int(checked(cut))


def _sign(_: Evaluation, value: Any) -> Any:
    return type(value)((value > 0) - (value < 0))


NUMBERS: Final[Table] = {
    "min": _extreme("min", min),
    "max": _extreme("max", max),
    "math.least": _extreme("math.least", min),
    "math.greatest": _extreme("math.greatest", max),
    "math.abs": overloads(("number", "number", lambda _, x: checked(abs(x)))),
    "math.ceil": overloads(("number", "number", lambda _, x: checked(ceil(x)))),
    "math.floor": overloads(("number", "number", lambda _, x: checked(floor(x)))),
    "math.round": overloads(("number", "number", _round)),
    "math.sign": overloads(("number", "number", _sign)),
    "math.trunc": overloads(("number", "number", lambda _, x: truncated(x))),
}
