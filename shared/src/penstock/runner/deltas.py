"""Text as it comes: pieces collected into batches, sent in order, one batch at a time.

Nothing is lost and the index has no gaps: the next batch leaves only when the one before is
acknowledged, and a step's result only when all of its batches are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from penstock.contracts.errors import TransientError
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import encode
from penstock.masks import Mask, MaskedStream

PAUSE_SECONDS: Final = 0.025
"""Least time between two batches: shorter than a reader can perceive."""
BATCH_CHARACTERS: Final = 20_000
"""Keeps a batch below 128 KiB for any characters (at most 6 bytes each, escaped)."""
BUFFER_CHARACTERS: Final = 8 * BATCH_CHARACTERS
"""A handler that is faster than the bus waits when this much is unsent."""
GIVE_UP_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 0.2

ANSWER_SECONDS: Final = 5.0


class Reply(Protocol):
    """A reply on the bus."""

    @property
    def data(self) -> bytes:
        """The body."""


class Requester(Protocol):
    """The bus, as far as text is sent over it."""

    async def request(
        self, subject: str, body: bytes = b"", *, timeout_seconds: float = 5.0
    ) -> Reply:
        """Send a request and return its reply."""


class DeltaStream:
    """The pieces of text of one attempt."""

    __slots__ = (
        "_buffer",
        "_bus",
        "_failure",
        "_loop",
        "_masked",
        "_on_emit",
        "_sending",
        "_sent",
        "_sent_at",
        "_size",
        "_subject",
        "_timer",
        "count",
    )

    def __init__(
        self,
        bus: Requester,
        subject: str,
        *,
        mask: Mask | None = None,
        on_emit: Callable[[], None] | None = None,
    ) -> None:
        """Prepare the stream.

        Args:
            bus: Takes the batches.
            subject: Theirs; a stream of the bus keeps it.
            mask: Hides secrets in the text.
            on_emit: Called for every piece that is given.
        """
        self._masked = None if mask is None else MaskedStream(mask)
        self._on_emit = on_emit
        self._bus = bus
        self._subject = subject
        self._loop = asyncio.get_running_loop()
        self._buffer: list[str] = []
        self._size = 0
        self._sent = 0
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None
        self._failure: TransientError | None = None
        self.count = 0
        """How many pieces were emitted so far."""

    async def emit(self, text: str) -> None:
        """Add text; waits only where the bus cannot keep up.

        Raises:
            TransientError: An earlier batch could not be delivered.
        """
        if not text:
            return
        if self._on_emit is not None:
            self._on_emit()
        if self._masked is not None and not (text := self._masked.take(text)):
            return
        if not text.isascii():
            # Half of a surrogate pair has no form in JSON.
            text = text.encode("utf-8", "replace").decode()
        await self._add(text)

    async def _add(self, text: str) -> None:
        if len(text) <= BATCH_CHARACTERS:
            self._buffer.append(text)
            self.count += 1
        else:
            starts = range(0, len(text), BATCH_CHARACTERS)
            self._buffer.extend(text[start : start + BATCH_CHARACTERS] for start in starts)
            self.count += len(starts)
        self._size += len(text)
        if self._timer is None:
            self._schedule()
        while self._size > BUFFER_CHARACTERS and self._failure is None:
            await self._step()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Send the remaining deltas without a pause; returns when everything is acknowledged.

        Raises:
            TransientError: It could not be delivered.
        """
        if self._masked is not None and (text := self._masked.end()):
            await self._add(text)
        while (self._buffer or self._sending is not None) and self._failure is None:
            await self._step()
        self._unschedule()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Drop unsent text: no run waits for this step any more."""
        self._buffer.clear()
        self._size = 0
        self._unschedule()

    def _schedule(self) -> None:
        if self._timer is None and self._sending is None and self._failure is None:
            pause = self._sent_at + PAUSE_SECONDS - self._loop.time()
            self._timer = self._loop.call_later(max(0.0, pause), self._start)

    def _unschedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        """Begin to send one batch, unless one is under way or there is none."""
        self._unschedule()
        if self._sending is None and self._buffer:
            self._sending = self._loop.create_task(self._deliver())

    async def _step(self) -> None:
        """Wait until the batch under way, or the next one, is delivered."""
        self._start()
        if self._sending is not None:
            await asyncio.wait((self._sending,))

    async def _deliver(self) -> None:
        texts = self._take()
        body = encode(DeltaBatch(first=self._sent, texts=texts))
        give_up_at = self._loop.time() + GIVE_UP_SECONDS
        while True:
            try:
                await self._publish(body)
                break
            except TransientError as error:
                if self._loop.time() >= give_up_at:
                    self._failure = error
                    break
            await asyncio.sleep(RETRY_SECONDS)
        self._sent += len(texts)
        self._sent_at = self._loop.time()
        self._sending = None
        if self._buffer:
            self._schedule()

    async def _publish(self, body: bytes) -> None:
        reply = await self._bus.request(self._subject, body, timeout_seconds=ANSWER_SECONDS)
        if b'"error"' in reply.data:
            raise TransientError("delta_refused", f"{self._subject}: {reply.data[:200]!r}")

    def _take(self) -> tuple[str, ...]:
        """Remove one batch from the buffer: all of it, or as much as one message may hold."""
        size = number = 0
        for text in self._buffer:
            if number and size + len(text) > BATCH_CHARACTERS:
                break
            size += len(text)
            number += 1
        texts = tuple(self._buffer[:number])
        del self._buffer[:number]
        self._size -= size
        return texts
