"""The parser's shortcut gives what nats-py's parser gives, however the bytes are cut."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.bus.parser import HotParser

Seen = tuple[str, str, bytes, bytes | None]

WIRE = (
    b"INFO {}\r\n"
    b"MSG run.a 1 5\r\nhello\r\n"
    b"MSG run.b 1 _INBOX.x 0\r\n\r\n"
    b"HMSG run.c 1 $JS.ACK.1 18 23\r\nNATS/1.0\r\nA: b\r\n\r\nworld\r\n"
    b"MSG other 2 3\r\nabc\r\n"
    b"PING\r\n"
    b"HMSG run.d 1 16 16\r\nNATS/1.0 404\r\n\r\n\r\n"
    b"MSG run.e 1 4\r\n\r\n\r\n\r\n"
    b"+OK\r\n"
    b"MSG run.f 1 2\r\nok\r\n"
)
EXPECTED: list[Seen] = [
    ("run.a", "", b"hello", None),
    ("run.b", "_INBOX.x", b"", None),
    ("run.c", "$JS.ACK.1", b"world", b"NATS/1.0\r\nA: b\r\n\r\n"),
    ("run.d", "", b"", b"NATS/1.0 404\r\n\r\n"),
    ("run.e", "", b"\r\n\r\n", None),
    ("run.f", "", b"ok", None),
]


class FakeClient:
    """Takes what the parser does not hand over itself."""

    def __init__(self) -> None:
        self.direct: list[Seen] = []
        self.ordinary: list[bytes] = []
        self.pings = 0

    def hand_over(self, subject: str, reply: str, body: bytes, headers: bytes | None) -> None:
        self.direct.append((subject, reply, body, headers))

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        if sid == 1:
            self.hand_over(bytes(subject).decode(), bytes(reply).decode(), data, headers or None)
        else:
            self.ordinary.append(data)

    async def _process_ping(self) -> None:
        self.pings += 1

    async def _process_info(self, info: dict[str, object]) -> None:
        assert info == {}


def parsed(chunks: list[bytes]) -> FakeClient:
    client = FakeClient()
    parser = HotParser(client, {1: client.hand_over})

    async def feed() -> None:
        for chunk in chunks:
            await parser.parse(chunk)

    asyncio.run(feed())
    return client


@given(st.lists(st.integers(0, len(WIRE)), max_size=12))
def test_parser_gives_every_message_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WIRE)]
    chunks = [WIRE[a:b] for a, b in pairwise(edges)]

    client = parsed(chunks)

    assert client.direct == EXPECTED
    assert client.ordinary == [b"abc"]
    assert client.pings == 1


def test_reset_forgets_half_a_message() -> None:
    client = FakeClient()
    parser = HotParser(client, {1: client.hand_over})

    async def feed() -> None:
        await parser.parse(b"MSG run.a 1 5\r\nhel")
        parser.reset()
        await parser.parse(b"MSG run.f 1 2\r\nok\r\n")

    asyncio.run(feed())

    assert client.direct == [EXPECTED[-1]]
