"""Overloads: the form of a function in the tables, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_ARGUMENTS = 64
"""Of a function that takes any number of them."""


@dataclass(frozen=True, slots=True)
class Overload:
    """What a function takes (kinds, or ``any``), the kind that it gives, and how."""

    takes: tuple[str, ...]
    gives: str
    call: Callable[..., Any]
    repeats: bool = False
    """Whether more arguments of the last kind may follow."""

    @property
    def most(self) -> int:
        """The largest number of arguments."""
        return MAX_ARGUMENTS if self.repeats else len(self.takes)

    def fits(self, kinds: tuple[str, ...]) -> bool:
        """Return whether it takes arguments of these kinds, of which ``any`` may be all."""
        if not len(self.takes) <= len(kinds) <= self.most:
            return False
        wanted = self.takes + self.takes[-1:] * (len(kinds) - len(self.takes))
        return all(
            want in ("any", kind) or kind == "any" for want, kind in zip(wanted, kinds, strict=True)
        )

    def __str__(self) -> str:
        """Show what it takes."""
        return ", ".join(self.takes) + (", ..." if self.repeats else "")


Table = dict[str, tuple[Overload, ...]]


def overloads(*rows: tuple[str, str, Callable[..., Any]]) -> tuple[Overload, ...]:
    """Return the overloads of a function.

    Args:
        rows: Kinds of the arguments, with ``*`` after the last one where it repeats; the kind of
            the value; and the function, which takes the evaluation first.
    """
    return tuple(
        Overload(tuple(takes.removesuffix("*").split()), gives, call, takes.endswith("*"))
        for takes, gives, call in rows
    )
