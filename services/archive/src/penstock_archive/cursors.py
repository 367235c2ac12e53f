"""Cursors of pages: where the next one begins, as text that clients pass back unread."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Any

from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock_archive.instants import from_micros


def pack(sort: str, *place: int | str) -> str:
    """Return the cursor behind a row.

    Args:
        sort: In which order the list is; a cursor is good for that order alone.
        place: What the row is sorted by.
    """
    text = json.dumps([sort, *place], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def unpack(cursor: str, sort: str, *kinds: type[int] | type[str]) -> list[Any]:
    """Return what ``pack`` was given.

    Args:
        cursor: As the client gave it.
        sort: The order that is asked for now.
        kinds: Types of the place's parts.

    Raises:
        RejectedError: ``invalid_cursor``.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise _refused(cursor) from error
    if (
        not isinstance(found, list)
        or len(found) != 1 + len(kinds)
        or found[0] != sort
        or any(type(part) is not kind for part, kind in zip(found[1:], kinds, strict=True))
        or any(isinstance(part, int) and abs(part) > 2**62 for part in found[1:])
    ):
        raise _refused(cursor)
    return found[1:]


def moment(micros: int, cursor: str) -> datetime:
    """Return the time in a cursor.

    Raises:
        RejectedError: ``invalid_cursor``: no calendar has it.
    """
    try:
        return from_micros(micros)
    except OverflowError as error:
        raise _refused(cursor) from error


def _refused(cursor: str) -> RejectedError:
    return RejectedError(
        "invalid_cursor",
        "cursor must be the next_cursor of an earlier page of the same list",
        details=(
            ErrorDetail(
                path="cursor",
                message=f"got {cursor[:40]!r}",
                allowed="next_cursor of a page in the same order",
            ),
        ),
    )
