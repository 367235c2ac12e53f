"""The functions of expressions: one table of what each takes and gives, for run and check alike.

A function is called as ``f(x, y)`` or ``x.f(y)``. The table speaks of kinds of values; arguments
of wrong kinds never reach a function.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from penstock.expressions.conversions import CONVERSIONS
from penstock.expressions.lists import LISTS
from penstock.expressions.numbers import NUMBERS
from penstock.expressions.overloads import Overload, Table
from penstock.expressions.texts import TEXTS
from penstock.expressions.times import TIMES
from penstock.expressions.values import Evaluation, article, failed, kind_of

FUNCTIONS: Final[Table] = {**CONVERSIONS, **TIMES, **TEXTS, **LISTS, **NUMBERS}


def arity(name: str) -> tuple[int, int] | None:
    """Return how many arguments a function takes, least and most; none if there is no such."""
    overloads = FUNCTIONS.get(name)
    if overloads is None:
        return None
    least = min(len(overload.takes) for overload in overloads)
    return least, max(overload.most for overload in overloads)


@lru_cache(maxsize=4096)
def fitting(name: str, kinds: tuple[str, ...]) -> tuple[Overload, ...]:
    """List the overloads for arguments of these kinds; ``any`` fits whatever is wanted."""
    return tuple(overload for overload in FUNCTIONS[name] if overload.fits(kinds))


def no_overload(name: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    """Say why a function does not take such arguments, and what it takes."""
    given = ", ".join(article(kind) for kind in kinds)
    takes = "; ".join(f"{name}({overload})" for overload in FUNCTIONS[name])
    return f"{name}() does not take {given}", takes


def call(of: Evaluation, name: str, arguments: tuple[Any, ...]) -> Any:
    """Call a function.

    Raises:
        RejectedError: It does not take such arguments, or fails.
    """
    kinds = tuple(kind_of(argument) for argument in arguments)
    found = fitting(name, kinds)
    if not found:
        raise failed(*no_overload(name, kinds))
    return found[0].call(of, *arguments)
