"""Times on a command line: ISO 8601, or a time ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from penstock.cli.failure import MISUSED, CommandError, Finding

_AGO: Final = re.compile(r"^(\d{1,6})([smhdw])$")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def instant(text: str | None, *, option: str) -> datetime | None:
    """Return an aware time; ``None`` stays ``None``.

    Args:
        text: An ISO time (local unless it has an offset), or ``24h`` for a day ago.
        option: The option's name, for the error.

    Raises:
        CommandError: It is neither.
    """
    if text is None:
        return None
    if found := _AGO.match(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise CommandError(
            f"{option}: {text!r} is no time",
            findings=(Finding(option, "not a time", "2026-03-01T12:00, 2026-03-01, 30m, 24h, 7d"),),
            exit_code=MISUSED,
        ) from error
