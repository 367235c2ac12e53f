"""Regular expressions by RE2: in time linear in the text, and bounded in memory.

Python's own engine backtracks, so a pattern could hold up a whole process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from penstock.expressions.values import Evaluation, failed

MAX_PATTERN_CHARACTERS: Final = 500
MAX_PATTERN_BYTES: Final = 1 << 20
"""Memory of a compiled pattern. Compiling takes 0.1 s at most."""

_UNITS_PER_INSTRUCTION: Final = 2
"""What compiling one instruction costs, as measured, in the units of an evaluation."""
_UNITS_OF_TOO_LARGE: Final = 100_000


class _Pattern:
    """A compiled pattern, or the reason why there is none."""

    def __init__(self, pattern: str) -> None:
        import re2  # noqa: PLC0415 - only expressions with patterns need it

        options = re2.Options()
        options.log_errors = False
        options.max_mem = MAX_PATTERN_BYTES
        self.fault = ""
        self.units = _UNITS_OF_TOO_LARGE
        self._compiled: Any = None
        try:
            self._compiled = re2.compile(pattern, options)
        except re2.error as error:
            self.fault = error.args[0].decode("utf-8", "replace")
        except UnicodeEncodeError:
            self.fault = "half of a surrogate pair"
        else:
            self.units = _UNITS_PER_INSTRUCTION * int(self._compiled.programsize)

    def found_in(self, text: str) -> bool:
        return self._compiled.search(text.encode("utf-8", "replace").decode()) is not None


_patterns = lru_cache(maxsize=1024)(_Pattern)


def matches(of: Evaluation, text: str, pattern: str) -> bool:
    """Return whether a pattern is found in a text: RE2's syntax, no look-around, no references.

    Raises:
        RejectedError: The pattern is none, or it is too much work.
    """
    _check_length(pattern)
    compiled = _patterns(pattern)
    of.spend(50 + compiled.units)
    _check(pattern, compiled)
    of.spend(len(text) * compiled.units // 200)
    return compiled.found_in(text)


def check_pattern(pattern: str) -> None:
    """Check a pattern without a text.

    Raises:
        RejectedError: It is no pattern, or too large.
    """
    _check_length(pattern)
    _check(pattern, _patterns(pattern))


def _check_length(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise failed(f"a pattern has at most {MAX_PATTERN_CHARACTERS} characters")


def _check(pattern: str, compiled: _Pattern) -> None:
    if compiled.fault:
        raise failed(f"the pattern {pattern[:100]!r} is not valid: {compiled.fault[:200]}")
