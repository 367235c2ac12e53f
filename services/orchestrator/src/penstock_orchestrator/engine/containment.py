"""Containment: an error that one run causes is kept from all others."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from nats.errors import Error as NatsError

from penstock.bus.connection import JetStreamError
from penstock.contracts.errors import ConflictError, TransientError

OF_THE_BUS: Final = (TransientError, ConflictError, JetStreamError, NatsError, OSError)
"""Errors that say nothing about the run: its input is delivered again."""


class Containment:
    """A ``with`` block around work on one run; errors of the bus pass through it.

    Cancellation passes as well. The engine ends the run whose error this keeps.
    """

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: Exception | None = None
        """The error that the run has caused."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, OF_THE_BUS):
            return False
        self.error = error
        return True
