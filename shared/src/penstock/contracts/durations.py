"""Durations: the one parser for documents, templates and command-line options."""

from __future__ import annotations

import re
from typing import Final

MAX_DURATION_SECONDS: Final = 366 * 86_400.0
"""The longest wait, timeout or interval that Penstock accepts."""
DURATION_FORMS: Final = "30s, 15m, 2h, 3d, 1h30m, PT1H30M, P2D or a number of seconds"
"""The accepted forms, as error messages and schemas list them."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|[smhdw])\s*")
_SHORT: Final = re.compile(rf"(?:{_PART.pattern})+")
_ISO: Final = re.compile(
    r"P(?=[0-9T])(?:([0-9]+)W)?(?:([0-9]+)D)?"
    r"(?:T(?=[0-9])(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+(?:\.[0-9]+)?)S)?)?"
)


def parse_duration(text: str) -> float | None:
    """Return a duration in seconds, or ``None`` if ``text`` is not a duration.

    Args:
        text: Units (``90s``, ``2 h``, ``1h30m``, ``500ms``), ISO 8601 (``PT1H30M``, ``P2D``) or a
            plain number of seconds (``30``). The result is not range-checked.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if (found := _ISO.fullmatch(text)) is not None:
        weeks, days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return weeks * 604_800 + days * 86_400 + hours * 3600 + minutes * 60 + seconds
    if _SHORT.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return None
