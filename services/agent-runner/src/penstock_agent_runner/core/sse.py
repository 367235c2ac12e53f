"""Reads server-sent events line by line (WHATWG HTML, section 9.2)."""

from __future__ import annotations


class EventParser:
    """Puts lines together to events; ids, retry times and comments are left out."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []

    def line(self, line: str) -> tuple[str, str] | None:
        """Take one line without its end; return name and data where it ends an event."""
        if not line:
            name, data = self._name or "message", self._data
            self._name, self._data = "", []
            return (name, "\n".join(data)) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None
