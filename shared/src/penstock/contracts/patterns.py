"""Regular expressions in time linear in the text: RE2's syntax, run by the Rust engine of ``cel``.

Python's own engine backtracks, so a pattern could hold up a whole process. What linear time leaves
over, the size of a pattern with its counted repetitions, is bounded here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from penstock.contracts.values import Evaluation, failed

MAX_PATTERN_CHARACTERS: Final = 500
MAX_PATTERN_SIZE: Final = 10_000
"""Largest pattern with its counted repetitions written out; the engine takes 0.2 s for it."""


@lru_cache(maxsize=1)
def _matcher() -> Any:
    import cel  # noqa: PLC0415 - 30 MB and 0.2 s that only regular expressions need

    return cel.compile("text.matches(pattern)")


_ATOM: Final = re.compile(
    r"""
    (?P<open>\((?:\?[^:)]*[:>])?) | (?P<close>\)) | (?P<or>\|)
    | \{(?P<least>\d{1,9})(?:,(?P<most>\d{0,9}))?\}
    | (?P<wide>\\[pP]\{[^}]*\}|\\[a-zA-Z].?|\[\^?\]?(?:\\.|[^\]\\])*\]|\.) | (?P<other>\\?.)
    """,
    re.VERBOSE | re.DOTALL,
)
_WIDE: Final = 8
"""A class of characters is so many times as large as a character, roughly."""


@lru_cache(maxsize=1024)
def _expanded(pattern: str) -> int:
    """Estimate how large a pattern is once its counted repetitions are written out."""
    totals = [0]
    last = 0
    for found in _ATOM.finditer(pattern):
        if found["open"]:
            totals.append(0)
            last = 0
            continue
        if found["close"] and len(totals) > 1:
            last = totals.pop() + 1
        elif found["least"]:
            last *= max(int(found["least"]), int(found["most"] or 0), 1) - 1
        else:
            last = _WIDE if found["wide"] else 1
        totals[-1] += last
    return sum(totals) + 1


def matches(of: Evaluation, text: str, pattern: str) -> bool:
    """Tell whether a pattern is found in a text: RE2's syntax, no look-around, no references.

    Raises:
        RejectedError: The pattern is none, or it is too much work.
    """
    check_pattern(pattern)
    size = _expanded(pattern)
    of.spend(100 + 20 * size + len(text) * size // 100)
    return _found(text, pattern)


@lru_cache(maxsize=1024)
def check_pattern(pattern: str) -> None:
    """Check a pattern without a text.

    Raises:
        RejectedError: It is no pattern, or too large.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise failed(f"a pattern has at most {MAX_PATTERN_CHARACTERS} characters")
    if _expanded(pattern) > MAX_PATTERN_SIZE:
        raise failed(
            f"the pattern {pattern[:100]!r} is too large once its repetitions are written out"
        )
    _found("", pattern)


def _found(text: str, pattern: str) -> bool:
    try:
        return bool(_matcher().execute({"text": text, "pattern": pattern}))
    except (RuntimeError, ValueError) as error:
        reason = re.search(r"error: ([^\n]*?)\.? Check function", str(error))
        raise failed(
            f"the pattern {pattern[:100]!r} is not valid: {reason[1] if reason else 'see RE2'}"
        ) from error
