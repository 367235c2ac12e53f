"""How inputs and outputs of runs read as messages of a conversation."""

from __future__ import annotations

import json

from penstock.contracts.json import Json

_TEXT_FIELDS = ("message", "text", "content")


def user_text(value: Json) -> str:
    """Return the input or output of a run or node as the text of a message."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and len(value) == 1:
        for name in _TEXT_FIELDS:
            text = value.get(name)
            if isinstance(text, str):
                return text
    return json.dumps(value, ensure_ascii=False)
