"""Error families: an error's class says what the consumer does next, its code what happened.

No decision depends on an error's text. HTTP status codes live in the gateway alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import ClassVar, Final

from msgspec.structs import force_setattr

from penstock.contracts.structs import WireStruct

MAX_CODE_CHARACTERS: Final = 100
MAX_MESSAGE_CHARACTERS: Final = 4_000
MAX_DETAILS_CHARACTERS: Final = 100_000
"""Of all findings together."""

THROTTLED: Final = "rate_limited"
"""Code of an attempt that a rate limit refused before it began."""


class ErrorFamily(StrEnum):
    """How a caller has to handle an error."""

    REJECTED = "rejected"
    """Record the failure; a retry would fail again."""
    TRANSIENT = "transient"
    """Try again later."""
    CONFLICT = "conflict"
    """Another process was first: reload and decide again."""
    INVARIANT = "invariant"
    """Must not happen: stop, keep the message as a dead letter, call a person."""


class ErrorDetail(WireStruct):
    """One finding: its path, the problem, and the allowed values."""

    path: str
    message: str
    allowed: str | None = None


def finding(path: str, message: str, allowed: str | None = None) -> ErrorDetail:
    """Return one finding; see `ErrorDetail`."""
    return ErrorDetail(path=path, message=message, allowed=allowed)


class ErrorInfo(WireStruct):
    """A failure as data, as it stands in facts and replies.

    Its text is bounded, whoever wrote it, so that lists of runs have room for each: what is too
    long is cut, findings beyond the limit are left out.
    """

    code: str
    message: str
    family: ErrorFamily = ErrorFamily.REJECTED
    retry_after_seconds: float | None = None
    details: tuple[ErrorDetail, ...] = ()

    def __post_init__(self) -> None:
        """Bound the text, and replace U+0000, which databases do not store."""
        force_setattr(self, "code", _bounded(self.code, MAX_CODE_CHARACTERS))
        force_setattr(self, "message", _bounded(self.message, MAX_MESSAGE_CHARACTERS))
        if self.details:
            force_setattr(self, "details", tuple(_first(self.details)))


def _bounded(text: str, characters: int) -> str:
    if len(text) > characters:
        text = f"{text[: characters - 3]}..."
    return text.replace("\0", "\ufffd")


def _first(details: Iterable[ErrorDetail]) -> Iterator[ErrorDetail]:
    size = 0
    for detail in details:
        size += len(detail.path) + len(detail.message) + len(detail.allowed or "")
        if size > MAX_DETAILS_CHARACTERS:
            return
        yield detail


class PenstockError(Exception):
    """Base of the four families; raise one of those."""

    family: ClassVar[ErrorFamily]

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: tuple[ErrorDetail, ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        """Create the error.

        Args:
            code: Stable snake_case name of what happened.
            message: One sentence for people.
            details: Single findings with their paths.
            retry_after_seconds: Earliest sensible retry, in seconds, where the source gave one.
        """
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details
        self.retry_after_seconds = retry_after_seconds

    def info(self) -> ErrorInfo:
        """Return the error as data."""
        return ErrorInfo(
            code=self.code,
            message=self.message,
            family=self.family,
            retry_after_seconds=self.retry_after_seconds,
            details=self.details,
        )


class RejectedError(PenstockError):
    """The request itself is wrong: record the failure, never retry."""

    family = ErrorFamily.REJECTED


class TransientError(PenstockError):
    """It may work later: try again, not before ``retry_after_seconds`` if that is given."""

    family = ErrorFamily.TRANSIENT


class ConflictError(PenstockError):
    """Another process was first: reload, then decide again."""

    family = ErrorFamily.CONFLICT


class InvariantError(PenstockError):
    """Something that must not happen did: dead-letter the message and call a person."""

    family = ErrorFamily.INVARIANT


_CLASSES: dict[ErrorFamily, type[PenstockError]] = {
    cls.family: cls for cls in (RejectedError, TransientError, ConflictError, InvariantError)
}


def error_from(info: ErrorInfo) -> PenstockError:
    """Rebuild the exception that ``info`` was made from (used by request/reply clients)."""
    return _CLASSES[info.family](
        info.code,
        info.message,
        details=info.details,
        retry_after_seconds=info.retry_after_seconds,
    )
