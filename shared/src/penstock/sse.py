"""Server-sent events from bytes (WHATWG HTML, section 9.2), without I/O.

The same reader serves blocking and asynchronous clients, and leaves the caller in charge of how
many bytes of a foreign server it accepts: httpx-sse splits lines inside its HTTP response.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class SseEvent(NamedTuple):
    """One event; ``id`` is empty if the event carries none."""

    name: str
    data: str
    id: str


class SseReader:
    """Reads the events of one stream; it keeps an unfinished event, so the caller bounds bytes."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._begun = False
        self._cr = False
        self._fields = {"event": "message", "id": ""}
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[SseEvent]:
        """Yield the events that ``chunk`` completes."""
        if self._cr:  # CR and LF of one line end may arrive in two chunks
            chunk = chunk.removeprefix(b"\n")
        self._cr = chunk.endswith(b"\r")
        for piece in chunk.splitlines(keepends=True):
            line = piece.rstrip(b"\r\n")
            self._line += line
            if len(line) < len(piece):
                text = self._line.decode("utf-8", "replace")
                self._line.clear()
                if not self._begun:
                    text = text.removeprefix("\ufeff")
                    self._begun = True
                yield from self._read(text)

    def _read(self, line: str) -> Iterator[SseEvent]:
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif name in self._fields:
                self._fields[name] = value.removeprefix(" ")
            return
        if self._data:
            yield SseEvent(self._fields["event"], "\n".join(self._data), self._fields["id"])
        self._fields = {"event": "message", "id": ""}
        self._data = []
