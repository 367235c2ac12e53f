"""Masks: keep secrets out of all text that leaves a process.

A mask knows values and the ways in which they are usually written: as they are, escaped in JSON,
percent-encoded, by ``repr``, in base 64. Each is replaced by ``[secret]``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

from msgspec import structs

from penstock.contracts.errors import ErrorDetail, ErrorInfo
from penstock.contracts.json import Json
from penstock.expressions.secrets import MASK

_LEFT_IN_QUERIES: Final = "/?:@!$&'()*+,;=-._~"


class Mask:
    """Replaces some values wherever they stand."""

    __slots__ = ("_pattern", "_shown", "_written", "values")

    def __init__(self, values: Iterable[str], shown: str = MASK) -> None:
        """Create a mask.

        Args:
            values: What to hide; empty ones are left out.
            shown: Replaces them.
        """
        self._shown = shown
        self.values = frozenset(value for value in values if value)
        written = {form for value in self.values for form in _forms(value)}
        self._written = tuple(sorted(written, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._written)) or r"(?!)")

    def text(self, text: str) -> str:
        """Return ``text`` without the values."""
        return self._pattern.sub(lambda _: self._shown, text)

    def value(self, value: Json) -> Json:
        """Return a JSON value without them, keys and numbers included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, int | float) and str(value) in self.values:
            return self._shown
        return value

    def info(self, error: ErrorInfo) -> ErrorInfo:
        """Return a failure without them."""
        return structs.replace(
            error,
            code=self.text(error.code),
            message=self.text(error.message),
            details=tuple(
                ErrorDetail(
                    path=self.text(detail.path),
                    message=self.text(detail.message),
                    allowed=None if detail.allowed is None else self.text(detail.allowed),
                )
                for detail in error.details
            ),
        )

    def held(self, text: str) -> int:
        """Return the index from which an unfinished text may hold the beginning of a value."""
        start = len(text)
        longest = len(self._written[0]) if self._written else 0
        for place in range(max(0, len(text) - longest), len(text)):
            rest = text[place:]
            if any(len(form) > len(rest) and form.startswith(rest) for form in self._written):
                start = place
                break
        for found in self._pattern.finditer(text):
            if found.start() < start < found.end():
                return found.start()
        return start


class MaskedStream:
    """Masks text that comes in pieces, also where a value is spread over several."""

    __slots__ = ("_mask", "_rest")

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._rest = ""

    def take(self, piece: str) -> str:
        """Take a piece; return what can be shown by now, which may be nothing."""
        text = self._rest + piece
        start = self._mask.held(text)
        self._rest = text[start:]
        return self._mask.text(text[:start])

    def end(self) -> str:
        """Return the remaining text."""
        text, self._rest = self._rest, ""
        return self._mask.text(text)


def _forms(value: str) -> set[str]:
    raw = value.encode("utf-8", "surrogateescape")
    return {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        quote(raw),
        quote(raw, safe=""),
        quote(raw, safe=_LEFT_IN_QUERIES),
        quote_plus(raw),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
    }
