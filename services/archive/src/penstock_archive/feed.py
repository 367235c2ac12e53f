"""The log as the projector reads it: the durable's messages, many at a time.

Deliveries may repeat and overtake one another (a process died, an ack was lost); ``Feed`` only
collects. Its readers compare sequences.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from nats.aio.subscription import Subscription

from penstock.bus.client import parse_headers
from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts.archive import RESTORED_HEADER
from penstock.contracts.errors import TransientError
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

_EXPIRES_SECONDS: Final = 30
_SILENCE_SECONDS: Final = 3.5
_AGAIN_SECONDS: Final = 0.25
_NANO: Final = 1_000_000_000
_HEARTBEAT: Final = _NANO
_BURST_SECONDS: Final = 2.0
_NOT_FOUND: Final = 404
_COMPLETED: Final = "Batch Completed"
_RESTORED: Final = f"\r\n{RESTORED_HEADER}:".encode()
_TOO_LARGE: Final = "Message Size Exceeds MaxBytes"

BATCH_BYTES: Final = 8 * 2**20
"""Of bodies in one batch. Facts of long conversations are large: memory must stay bounded."""


class LogMessage(NamedTuple):
    """A message of the log, as stored."""

    seq: int
    subject: str
    body: bytes
    reply: str = ""
    """Where to acknowledge it; empty where it was not delivered but read."""
    restored: bool = False
    """It was put back into the log from the archive."""


class Feed:
    """Pulls from one durable, and holds at most a batch."""

    def __init__(
        self,
        bus: Bus,
        stream: str,
        durable: str,
        *,
        batch_size: int,
        recreate: Callable[[], Awaitable[object]],
    ) -> None:
        """Create a feed; ``start`` it.

        Args:
            bus: An open connection.
            stream: The stream's name.
            durable: The durable's name; its acks are cumulative.
            batch_size: Messages to ask for at a time.
            recreate: Makes the durable again should it have vanished.
        """
        self._bus = bus
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._info_verb = f"CONSUMER.INFO.{stream}.{durable}"
        self._batch_size = batch_size
        self._recreate = recreate
        self._inbox = bus.nc.new_inbox()
        self._buffer: list[LogMessage] = []
        self._buffer_bytes = 0
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()
        self._doubt = asyncio.Event()
        self._credit = 0
        self._bursting = False
        self._behind = False
        self._stopping = False
        self._nudged = False
        self._loop = asyncio.get_running_loop()
        self._heard_at = 0.0
        self._subscription: Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to pull."""
        self._subscription = await self._bus.nc.subscribe_direct(self._inbox, self._on_message)
        self._bus.on_reconnect.append(self._restart_pull)
        self._restart_pull()
        self._keeper = asyncio.create_task(self._keep(), name="projector-feed")

    async def stop(self) -> None:
        """Stop pulling and wake up the reader in ``take``."""
        self._stopping = True
        self._arrived.set()
        self._ended.set()
        if self._keeper is not None:
            self._keeper.cancel()
        if self._restart_pull in self._bus.on_reconnect:
            self._bus.on_reconnect.remove(self._restart_pull)
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._bus.nc.is_closed:
            # The server drops a pull without a subscriber.
            await self._bus.nc.unsubscribe_direct(subscription)

    def nudge(self) -> None:
        """Wake up the reader in ``take``, so that it reads the tables again."""
        if not self._stopping:
            self._nudged = True
            self._arrived.set()

    async def take(self, flush_seconds: float) -> list[LogMessage]:
        """Return the gathered messages of the log, in order of sequence.

        The first message rings the doorbell; the others are left at the server for a while and
        fetched in one burst. Were each sent as it comes, each would wake up two processes.

        Args:
            flush_seconds: How long to let messages gather; not waited for while there is more
                than a batch.

        Returns:
            Messages; none only after ``stop`` or ``nudge``.
        """
        while not self._stopping:
            if not self._behind:
                await self._arrived.wait()
                if self._nudged:
                    self._nudged = False
                    if not self._buffer:
                        self._arrived.clear()
                        return []
                await self._wait_for_end(flush_seconds)
            self._burst()
            await self._wait_for_end(_BURST_SECONDS)
            taken, self._buffer = self._buffer, []
            self._behind = len(taken) >= self._batch_size or self._buffer_bytes >= BATCH_BYTES
            self._buffer_bytes = 0
            if not self._stopping:
                self._arrived.clear()
                self._ended.clear()
                if not self._behind:
                    self._ring()
            if taken:
                taken.sort()
                return taken
        return []

    async def _wait_for_end(self, seconds: float) -> None:
        """Wait until the burst is over, or the feed is stopped."""
        if not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), seconds)

    def acknowledge(self, message: LogMessage) -> None:
        """Acknowledge everything up to ``message``."""
        if message.reply and not self._bus.nc.is_closed:
            self._bus.nc.publish_now(message.reply, "", b"+ACK", urgent=False)

    def _ring(self) -> None:
        """Ask for one message, whenever it comes."""
        if not self._stopping and not self._credit and not self._buffer:
            self._request(1, expires=_EXPIRES_SECONDS * _NANO, idle_heartbeat=_HEARTBEAT)

    def _burst(self) -> None:
        """Ask for all that is there, up to a batch."""
        room = self._batch_size - len(self._buffer)
        if self._stopping or room <= 0 or self._buffer_bytes >= BATCH_BYTES:
            self._ended.set()
            return
        self._bursting = True
        self._request(room, no_wait=True, max_bytes=BATCH_BYTES)

    def _request(self, batch: int, **how: int) -> None:
        self._credit = batch
        request = json.dumps({"batch": batch, **how}).encode()
        self._bus.nc.publish_now(self._next_subject, self._inbox, request)

    def _end_burst(self) -> None:
        self._credit = 0
        if self._bursting:
            self._bursting = False
            self._ended.set()

    def _restart_pull(self) -> None:
        """Whatever credit the server had is gone with the old connection."""
        self._end_burst()
        self._credit = 0
        self._heard_at = self._loop.time()
        self._ring()

    def _on_message(self, subject: str, reply: str, body: bytes, headers: bytes | None) -> None:
        if not reply:
            self._on_status(headers)
            return
        # $JS.ACK.[domain.account.]stream.consumer.deliveries.seq.consumer_seq.time.pending
        tokens = reply.split(".")
        seq = int(tokens[5 if len(tokens) == 9 else 7])
        buffer = self._buffer
        restored = headers is not None and _RESTORED in headers
        buffer.append(LogMessage(seq, subject, body, reply, restored))
        self._buffer_bytes += len(body)
        self._credit -= 1
        self._heard_at = self._loop.time()
        if len(buffer) == 1:
            self._arrived.set()
        if self._credit <= 0:
            self._end_burst()

    def _on_status(self, block: bytes | None) -> None:
        self._heard_at = self._loop.time()
        headers = parse_headers(block)
        status = headers.get("Status", "")
        reason = headers.get("Description", "")
        if status in ("", "100") or reason == _COMPLETED:
            return  # a heartbeat, or a repeated status
        # The request ended: nothing more there, expired, too large, leader changed, deleted.
        self._end_burst()
        if status in ("404", "408") or reason == _TOO_LARGE:
            self._ring()
        elif not self._stopping:
            log.warning("projector.pull_ended", status=status, reason=reason)
            self._doubt.set()

    async def _keep(self) -> None:
        """See to a request that ended badly, or of which not even heartbeats come any more."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubt.wait(), 1.0)
            now = self._loop.time()
            if not self._bus.nc.is_connected:
                self._heard_at = now
            elif self._doubt.is_set() or (self._credit and now - self._heard_at > _SILENCE_SECONDS):
                await self._revive()
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _revive(self) -> None:
        self._doubt.clear()
        try:
            await self._bus.api(self._info_verb)
        except JetStreamError as error:
            if error.code == _NOT_FOUND:
                await self._recreate_durable()
            else:
                log.warning("projector.durable_unavailable", reason=str(error))
        except TransientError as error:
            log.warning("projector.durable_unavailable", reason=error.code)
        self._restart_pull()

    async def _recreate_durable(self) -> None:
        try:
            await self._recreate()
        except (JetStreamError, TransientError) as error:
            log.warning("projector.durable_not_recreated", reason=str(error))
        else:
            log.warning("projector.durable_recreated")
