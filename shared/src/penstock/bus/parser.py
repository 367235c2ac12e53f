"""A short way through nats-py's parser for messages of direct subscriptions.

It takes whole messages off the bytes just read and hands them over at once; whatever else comes
(other subscriptions, PING, INFO, errors) goes to nats-py's own parser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nats.protocol.parser import Parser

DirectHandler = Callable[[str, str, bytes, bytes | None], None]
"""Called with subject, reply, body and raw header block, inside the read loop: must not block."""


class HotParser(Parser):
    """nats-py's parser with a shortcut."""

    def __init__(self, nc: object, direct: Mapping[int, DirectHandler]) -> None:
        """Parse for ``nc``; messages whose subscription id is in ``direct`` go there."""
        self._direct = direct
        self._tail = b""
        super().__init__(nc)

    def reset(self) -> None:
        """Drop unparsed bytes of the previous connection."""
        self._tail = b""
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        """Parse the bytes just read."""
        if self.buf:
            # nats-py's parser is in the middle of something.
            await super().parse(data)
            return
        if self._tail:
            data, self._tail = self._tail + data, b""
        position, more = self._dispatch(data)
        if position == len(data):
            return
        if more:
            self._tail = data[position:]
        else:
            await super().parse(data[position:])

    def _dispatch(self, data: bytes) -> tuple[int, bool]:
        """Hand over whole messages; return how far it came, and whether more bytes are needed."""
        direct = self._direct
        position, end = 0, len(data)
        while position < end:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                return position, True
            head = data[position:line_end].split(b" ")
            start = line_end + 2
            if head[0] == b"MSG":
                handler = direct.get(int(head[2]))
                stop = start + int(head[-1])
                body_at = start
            elif head[0] == b"HMSG":
                handler = direct.get(int(head[2]))
                stop = start + int(head[-1])
                body_at = start + int(head[-2])
            else:
                return position, False
            if handler is None:
                return position, False
            if stop + 2 > end:
                return position, True
            reply = head[3].decode() if len(head) == (5 if body_at == start else 6) else ""
            headers = data[start:body_at] if body_at != start else None
            handler(head[1].decode(), reply, data[body_at:stop], headers)
            position = stop + 2
        return position, False
