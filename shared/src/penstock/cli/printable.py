"""Foreign text on a terminal: control characters are shown as escapes, and never act."""

from __future__ import annotations

import re
from typing import Final

_UNSAFE: Final = re.compile(
    # C0 without tab and line feed, DEL and C1; marks and overrides of direction; line and
    # paragraph separators; byte order mark; surrogates, which no encoding takes.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return a text whose control characters are escapes, as in JSON."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
