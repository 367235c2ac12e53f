"""Containment: an error of code that may raise anything is kept from the code around it."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, Self, TypeVar

E = TypeVar("E", bound=BaseException)


class Containment(Generic[E]):
    """A ``with`` block that ends with the first error of one kind, and keeps that error."""

    __slots__ = ("_kind", "_passing", "error")

    def __init__(self, kind: type[E], *, passing: tuple[type[BaseException], ...] = ()) -> None:
        """Prepare the block.

        Args:
            kind: Errors to keep; all others pass.
            passing: Kinds of these that pass as well.
        """
        self._kind = kind
        self._passing = passing
        self.error: E | None = None
        """The error that ended the block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, self._kind) or isinstance(error, self._passing):
            return False
        self.error = error
        return True
