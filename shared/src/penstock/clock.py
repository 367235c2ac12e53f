"""The bus's time: the one clock by which processes on different machines judge deadlines.

A machine's own clock may be minutes off. The connection to the bus measures how far, and
`now` and `epoch` correct for it; before the first connection they return the machine's time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

_offset_seconds = 0.0


def epoch() -> float:
    """Return the bus's time in seconds since 1970."""
    return time.time() + offset_seconds()


def now() -> datetime:
    """Return the bus's time, in UTC."""
    return datetime.fromtimestamp(epoch(), UTC)


def offset_seconds() -> float:
    """Return by how much the bus's clock is ahead of this machine's; negative where behind."""
    return _offset_seconds


def correct(offset_seconds: float) -> None:
    """Set by how much the bus's clock is ahead of this machine's."""
    global _offset_seconds  # noqa: PLW0603 - a process has one clock
    _offset_seconds = offset_seconds
