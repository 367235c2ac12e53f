"""Regular expressions in time linear in the text: RE2's syntax, run by the Rust engine of ``cel``.

Python's own engine backtracks, so a pattern could hold up a whole process. What linear time leaves
over, the size of a pattern with its counted repetitions, is bounded here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from penstock.expressions.values import Evaluation, failed

MAX_PATTERN_CHARACTERS: Final = 500
MAX_PATTERN_UNITS: Final = 500_000
"""Largest work of compiling a pattern, in the units of an evaluation: about 0.2 s."""


@lru_cache(maxsize=1)
def _matcher() -> Any:
    import cel  # noqa: PLC0415 - 30 MB and 0.2 s that only regular expressions need

    return cel.compile("text.matches(pattern)")


_ATOM: Final = re.compile(
    r"""
    (?P<open>\((?:\?[^:)]*[:>])?) | (?P<close>\)) | (?P<or>\|)
    | \{(?P<least>\d{1,9})(?:,(?P<most>\d{0,9}))?\}
    | (?P<word>\\[pP](?:\{[^}]*\}|.) | \\[wWsSbB]
        | \[\^?\]?(?:[^\]\\]|\\.)*\\[pPwWsS](?:[^\]\\]|\\.)*\])
    | (?P<digit>\\[dD] | \[\^?\]?(?:[^\]\\]|\\.)*\\[dD](?:[^\]\\]|\\.)*\])
    | (?P<set>\[\^?\]?(?:\\.|[^\]\\])*\] | \.)
    | (?P<other>\\?.)
    """,
    re.VERBOSE | re.DOTALL,
)
_TOO_LARGE: Final = "the pattern {!r} is too large once its repetitions are written out"
_COMPILING: Final = {"word": 650, "digit": 60, "set": 8, "other": 1}
"""What compiling an atom costs, as measured, in units of 0.4 microseconds."""
_WIDTH: Final = {"word": 8, "digit": 8, "set": 8, "other": 1}
"""What matching an atom costs, for a hundred characters of text."""


@lru_cache(maxsize=1024)
def _estimate(pattern: str, *, compiling: bool) -> int:
    """Estimate a pattern's cost with its counted repetitions written out."""
    weights = _COMPILING if compiling else _WIDTH
    totals = [0]
    last = 0
    for found in _ATOM.finditer(pattern):
        kind = found.lastgroup or "other"
        if found["open"] is not None:
            totals.append(0)
            last = 0
            continue
        if found["close"] is not None:
            last = totals.pop() + 1 if len(totals) > 1 else 1
        elif found["least"] is not None:
            last *= max(int(found["least"]), int(found["most"] or 0), 1) - 1
        else:
            last = weights.get(kind, 1)
        totals[-1] += last
    return sum(totals) + 1


def matches(of: Evaluation, text: str, pattern: str) -> bool:
    """Return whether a pattern is found in a text: RE2's syntax, no look-around, no references.

    Raises:
        RejectedError: The pattern is none, or it is too much work.
    """
    check_pattern(pattern)
    of.spend(50 + _estimate(pattern, compiling=True))
    of.spend(len(text) * _estimate(pattern, compiling=False) // 100)
    return _found(text, pattern)


@lru_cache(maxsize=1024)
def check_pattern(pattern: str) -> None:
    """Check a pattern without a text.

    Raises:
        RejectedError: It is no pattern, or too large.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise failed(f"a pattern has at most {MAX_PATTERN_CHARACTERS} characters")
    if _estimate(pattern, compiling=True) > MAX_PATTERN_UNITS:
        raise failed(
            f"the pattern {pattern[:100]!r} is too large once its repetitions are written out"
        )
    _found("", pattern)


def _found(text: str, pattern: str) -> bool:
    try:
        return bool(_matcher().execute({"text": text, "pattern": pattern}))
    except (RuntimeError, ValueError) as error:
        if "size limit" in str(error):
            raise failed(_TOO_LARGE.format(pattern[:100])) from error
        reason = re.search(r"error: ([^\n]*?)\.? Check function", str(error))
        raise failed(
            f"the pattern {pattern[:100]!r} is not valid: {reason[1] if reason else 'see RE2'}"
        ) from error
