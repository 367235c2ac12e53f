"""What was said in a session, as text; the same reading of an input as an agent's user message."""

from __future__ import annotations

import json

from pydantic import JsonValue


def user_text(value: JsonValue) -> str:
    """Return an input or output of a run as the text of a message."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for key in ("message", "text", "content"):
            text = value.get(key)
            if isinstance(text, str) and len(value) == 1:
                return text
    return json.dumps(value, ensure_ascii=False)
