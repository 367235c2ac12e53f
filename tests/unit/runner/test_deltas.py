"""Pieces of text: complete, in order, in few batches."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from penstock.contracts.errors import TransientError
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import decode, encode
from penstock.runner import deltas
from penstock.runner.deltas import BATCH_CHARACTERS, BUFFER_CHARACTERS, DeltaStream


class Answer:
    data = b'{"stream":"DELTAS","seq":1}'


class FakeBus:
    """Stores batches, or fails so many times first."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.batches: list[DeltaBatch] = []
        self.sizes: list[int] = []
        self.open = 0
        self.most_open = 0
        self.gate: asyncio.Event | None = None

    async def request(self, subject: str, body: bytes, *, timeout_seconds: float) -> Answer:
        assert subject.startswith("delta.")
        assert timeout_seconds > 0
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.open -= 1
        if self.failures:
            self.failures -= 1
            raise TransientError("request_timeout", "lost")
        self.batches.append(decode(DeltaBatch, body))
        self.sizes.append(len(body))
        return Answer()

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch.texts]

    def assert_continuous(self) -> None:
        expected = 0
        for batch in self.batches:
            assert batch.first == expected
            expected += len(batch.texts)


def stream_on(bus: Any) -> DeltaStream:
    return DeltaStream(bus, "delta.t.0.r.s.1")


async def test_pieces_emitted_together_travel_together() -> None:
    bus = FakeBus()
    stream = stream_on(bus)
    pieces = [str(number) for number in range(200)]
    for piece in pieces:
        await stream.emit(piece)
    await stream.close()
    assert bus.texts == pieces
    assert len(bus.batches) == 1
    assert stream.count == 200
    bus.assert_continuous()


async def test_first_piece_does_not_wait_and_later_ones_are_spaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deltas, "PAUSE_SECONDS", 3600.0)
    bus = FakeBus()
    stream = stream_on(bus)
    stream._sent_at = -3600.0
    await stream.emit("a")
    for _ in range(10):
        await asyncio.sleep(0)
    assert bus.texts == ["a"]
    await stream.emit("b")
    for _ in range(10):
        await asyncio.sleep(0)
    assert bus.texts == ["a"]
    await stream.close()
    assert bus.texts == ["a", "b"]
    bus.assert_continuous()


async def test_batches_are_never_in_flight_together_and_keep_their_order() -> None:
    bus = FakeBus()
    stream = stream_on(bus)
    pieces = ["x" * 6000 + str(number) for number in range(100)]
    for piece in pieces:
        await stream.emit(piece)
    await stream.close()
    assert bus.texts == pieces
    assert bus.most_open == 1
    assert max(bus.sizes) < 128 * 1024
    bus.assert_continuous()


async def test_one_piece_too_large_for_a_message_is_divided() -> None:
    bus = FakeBus()
    stream = stream_on(bus)
    text = "\u0001" * (3 * BATCH_CHARACTERS + 5)
    await stream.emit(text)
    await stream.close()
    assert "".join(bus.texts) == text
    assert max(bus.sizes) < 128 * 1024
    assert stream.count == len(bus.texts) == 4


async def test_handler_faster_than_the_bus_waits() -> None:
    bus = FakeBus()
    bus.gate = asyncio.Event()
    stream = stream_on(bus)

    async def flood() -> None:
        for _ in range(30):
            await stream.emit("x" * BATCH_CHARACTERS)

    flooding = asyncio.create_task(flood())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not flooding.done()
    assert stream._size <= BUFFER_CHARACTERS + BATCH_CHARACTERS
    bus.gate.set()
    await flooding
    await stream.close()
    assert len(bus.texts) == 30


async def test_lost_answer_is_asked_for_again_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deltas, "RETRY_SECONDS", 0.0)
    bus = FakeBus(failures=3)
    stream = stream_on(bus)
    await stream.emit("a")
    await stream.emit("b")
    await stream.close()
    assert bus.texts == ["a", "b"]


async def test_bus_that_never_answers_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "GIVE_UP_SECONDS", 0.0)
    stream = stream_on(FakeBus(failures=1000))
    await stream.emit("a")
    with pytest.raises(TransientError):
        await stream.close()
    with pytest.raises(TransientError):
        await stream.emit("b")


async def test_abandoned_stream_sends_nothing_more() -> None:
    bus = FakeBus()
    stream = stream_on(bus)
    await stream.emit("a")
    stream.abandon()
    await stream.close()
    assert bus.texts == []


async def test_empty_text_is_no_piece() -> None:
    stream = stream_on(FakeBus())
    await stream.emit("")
    await stream.close()
    assert stream.count == 0


def test_batch_has_its_wire_form() -> None:
    assert json.loads(encode(DeltaBatch(first=2, texts=("a",))).decode()) == {
        "type": "delta",
        "first": 2,
        "texts": ["a"],
    }
