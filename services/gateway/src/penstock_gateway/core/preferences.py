"""Headers and query parameters of requests for runs: wait, form of the reply, page, cursor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.runs.events import EventType
from penstock.runs.views import StepWindow

_WAIT: Final = re.compile(rb"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_WHOLE: Final = re.compile(rb"(?:^|[,;\s])return\s*=\s*\"?representation", re.IGNORECASE)
_EVENT_STREAM: Final = b"text/event-stream"
_JSON: Final = b"application/json"
_WEIGHT: Final = re.compile(rb"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
CURSOR_PATTERN: Final = "^[0-9]{0,19}$"
_CURSOR: Final = re.compile(r"[0-9]{1,19}")
KEY_PATTERN: Final = "^[!#-~]([ -~]{0,253}[!-~])?$"
"""Of an idempotency key."""
_PASSED: Final = re.compile(r"[0-9]{1,4}")
_PAGE_SIZE: Final = re.compile(r"[0-9]{1,4}")
_STEP_CURSOR: Final = re.compile(r"([0-9]{1,9})\.([A-Za-z0-9_-]{1,64})")
IDEMPOTENCY_KEY_LENGTH: Final = 255
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
STEPS_SHOWN: Final = 250
"""Steps of a run in one reply, unless the client asks for another number."""


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Check the names of the query parameters of a request.

    Raises:
        RejectedError: ``invalid_request``, with the known names.
    """
    names = sorted(known)
    if unknown := [name for name in given if name not in names]:
        raise RejectedError(
            "invalid_request",
            f"there is no parameter {unknown[0][:80]!r} here",
            details=tuple(
                ErrorDetail(
                    path=f"query.{name[:80]}",
                    message="no such parameter",
                    allowed=", ".join(names),
                )
                for name in unknown
            ),
        )


def wait_seconds(prefer: bytes | None, limit: float) -> float | None:
    """Return the seconds of ``Prefer: wait=N`` (RFC 7240), at most ``limit``; else ``None``."""
    if prefer is None or (found := _WAIT.search(prefer)) is None:
        return None
    return min(float(found[1]), limit)


def wants_representation(prefer: bytes | None) -> bool:
    """Return whether a ``Prefer`` header has ``return=representation`` (RFC 7240)."""
    return prefer is not None and _WHOLE.search(prefer) is not None


def wants_events(accept: bytes | None) -> bool:
    """Return whether an ``Accept`` header prefers the event stream to JSON.

    By their weights (RFC 9110); of the same weight, by their order. Only named forms count.
    """
    if accept is None or _EVENT_STREAM not in (accept := accept.lower()):
        return False
    events = _weight(accept, _EVENT_STREAM)
    json = _weight(accept, _JSON)
    if events != json:
        return events > json
    # Equal above 0 only if both are named.
    return events > 0 and accept.find(_EVENT_STREAM) < accept.find(_JSON)


def _weight(accept: bytes, form: bytes) -> float:
    """Return the weight of a form from 0 to 1; 0 if it is not named."""
    for item in accept.split(b","):
        name, *parameters = item.split(b";")
        if name.strip() == form:
            weights = [one for one in map(bytes.strip, parameters) if one[:2] == b"q="]
            found = _WEIGHT.fullmatch(weights[0][2:]) if weights else None
            return float(found[0]) if found else 1.0
    return 0.0


def cursor(last_event_id: str | None, after: str | None) -> int:
    """Return the stream sequence after which a client wants events; 0 for all.

    Args:
        last_event_id: The header that browsers send when they connect again; it wins.
        after: The query parameter.

    Raises:
        RejectedError: ``invalid_cursor`` if it is not a sequence.
    """
    name, value = ("Last-Event-ID", last_event_id) if last_event_id else ("after", after)
    if not value:
        return 0
    if not _CURSOR.fullmatch(value):
        raise RejectedError(
            "invalid_cursor",
            f"{name} must be the id of an event",
            details=(
                ErrorDetail(path=name, message=f"got {value[:40]!r}", allowed="a whole number"),
            ),
        )
    return int(value)


def event_place(last_event_id: str | None, after: str | None) -> tuple[int, int]:
    """Return ``cursor``, and how many events of the next fact the client has as well.

    A page may end between the events of one fact; its ``next_cursor`` is then ``SEQUENCE.COUNT``.

    Raises:
        RejectedError: ``invalid_cursor``.
    """
    sequence_, dot, passed = (after or "").partition(".")
    if last_event_id or not dot or not _PASSED.fullmatch(passed):
        return cursor(last_event_id, after), 0
    return cursor(None, sequence_), int(passed)


def step_window(limit: str | None, cursor: str | None) -> StepWindow:
    """Return the page of steps that a client asks for.

    Raises:
        RejectedError: ``invalid_request`` for the limit, ``invalid_cursor``.
    """
    size = page_size(limit, path="steps_limit", default=STEPS_SHOWN)
    if not cursor:
        return StepWindow(size)
    found = _STEP_CURSOR.fullmatch(cursor)
    if found is None:
        detail = ErrorDetail(
            path="steps_cursor", message=f"got {cursor[:80]!r}", allowed="a `next_steps_cursor`"
        )
        raise RejectedError(
            "invalid_cursor", "steps_cursor is not the cursor of a page", details=(detail,)
        )
    return StepWindow(size, (int(found[1]), found[2]))


def page_size(limit: str | None, *, path: str = "limit", default: int = DEFAULT_PAGE) -> int:
    """Return the number of items of a page.

    Raises:
        RejectedError: ``invalid_request``.
    """
    if not limit:
        return default
    if not _PAGE_SIZE.fullmatch(limit) or not 1 <= int(limit) <= MAX_PAGE:
        detail = ErrorDetail(path=path, message=f"got {limit[:20]!r}", allowed=f"1 to {MAX_PAGE}")
        raise RejectedError("invalid_request", f"{path} is out of range", details=(detail,))
    return int(limit)


def sequence(text: str | None, *, path: str) -> int | None:
    """Return a place in the log; ``None`` where none is given.

    Raises:
        RejectedError: ``invalid_sequence``.
    """
    if not text:
        return None
    if not _CURSOR.fullmatch(text) or int(text) < 1:
        raise RejectedError(
            "invalid_sequence",
            f"{path} must be a sequence of the log",
            details=(
                ErrorDetail(path=path, message=f"got {text[:40]!r}", allowed="a whole number"),
            ),
        )
    return int(text)


def flag(text: str | None, *, path: str) -> bool:
    """Return ``true`` or ``false`` as a parameter says; ``False`` where it is not given.

    Raises:
        RejectedError: ``invalid_request``.
    """
    if text not in (None, "", "true", "false"):
        raise RejectedError(
            "invalid_request",
            f"{path} is either true or false",
            details=(ErrorDetail(path=path, message=f"got {text[:40]!r}", allowed="true, false"),),
        )
    return text == "true"


def event_types(types: str | None) -> frozenset[EventType] | None:
    """Return the types of ``?types=a,b``; ``None`` for all.

    Raises:
        RejectedError: ``invalid_event_type``.
    """
    if not types:
        return None
    found = set()
    for name in types.split(","):
        try:
            found.add(EventType(name.strip()))
        except ValueError as error:
            raise RejectedError(
                "invalid_event_type",
                f"there is no event type {name.strip()[:40]!r}",
                details=(
                    ErrorDetail(
                        path="types",
                        message=f"got {name.strip()[:40]!r}",
                        allowed=", ".join(EventType),
                    ),
                ),
            ) from error
    return frozenset(found)


def idempotency_key(value: bytes | None) -> str | None:
    """Return the ``Idempotency-Key`` header as text (a quoted string loses its quotes).

    Raises:
        RejectedError: ``invalid_idempotency_key`` if it is empty, too long or not ASCII.
    """
    if value is None:
        return None
    key = value.decode("latin-1").strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > IDEMPOTENCY_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise RejectedError(
            "invalid_idempotency_key",
            "Idempotency-Key must be 1 to 255 printable ASCII characters",
            details=(
                ErrorDetail(
                    path="Idempotency-Key",
                    message=f"got {len(key)} characters",
                    allowed="1 to 255 printable ASCII characters",
                ),
            ),
        )
    return key
