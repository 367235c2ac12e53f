"""Times as SQLite keeps them: microseconds since 1970, exact and cheap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(at: datetime) -> int:
    """Return an aware time as microseconds since 1970."""
    since = at - _EPOCH  # its parts are faster than a division
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    """Return the UTC time that ``to_micros`` made a number of."""
    return _EPOCH + timedelta(microseconds=micros)
