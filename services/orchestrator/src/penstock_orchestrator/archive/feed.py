"""The log as the projector reads it: the durable's messages, many at a time.

Deliveries may repeat and overtake one another (a process died, an ack was lost); ``Feed`` only
collects. Whoever reads from it compares sequences.
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
from penstock.contracts.errors import TransientError
from penstock.telemetry.logs import EventLog

_log = EventLog(__name__)

_EXPIRES_SECONDS: Final = 30
_HEARTBEAT_SECONDS: Final = 1
_SILENCE_SECONDS: Final = 3.5
_AGAIN_SECONDS: Final = 0.25
_NANO: Final = 1_000_000_000
_NOT_FOUND: Final = 404
_COMPLETED: Final = "Batch Completed"
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

    @property
    def stored_at(self) -> float | None:
        """When the server stored it, in seconds since 1970; known of delivered messages."""
        if not self.reply:
            return None
        tokens = self.reply.split(".")
        return int(tokens[7 if len(tokens) == 9 else 9]) / _NANO


class Feed:
    """Pulls from one durable without pause, and holds at most two batches."""

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
        self._full = asyncio.Event()
        self._doubt = asyncio.Event()
        self._credit = 0
        self._stopping = False
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
        """Stop pulling and wake up whoever waits in ``take``."""
        self._stopping = True
        self._arrived.set()
        self._full.set()
        if self._keeper is not None:
            self._keeper.cancel()
        if self._restart_pull in self._bus.on_reconnect:
            self._bus.on_reconnect.remove(self._restart_pull)
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._bus.nc.is_closed:
            # The server drops a pull in which nobody is interested any more.
            await self._bus.nc.unsubscribe_direct(subscription)

    async def take(self, flush_seconds: float) -> list[LogMessage]:
        """Return what has arrived, in order of sequence: at once if it is a full batch.

        Args:
            flush_seconds: How long to wait for more once there is something.

        Returns:
            Messages; none only after ``stop``.
        """
        await self._arrived.wait()
        if self._room and not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), flush_seconds)
        taken, self._buffer = self._buffer, []
        self._buffer_bytes = 0
        if not self._stopping:
            self._arrived.clear()
            self._full.clear()
        self._pull()
        taken.sort()
        return taken

    def acknowledge(self, message: LogMessage) -> None:
        """Tell the server that everything up to ``message`` is done."""
        if message.reply and not self._bus.nc.is_closed:
            self._bus.nc.publish_now(message.reply, "", b"+ACK", urgent=False)

    @property
    def _room(self) -> bool:
        """Whether what has arrived is less than a batch."""
        return len(self._buffer) < self._batch_size and self._buffer_bytes < BATCH_BYTES

    def _pull(self) -> None:
        if self._stopping or self._credit or not self._room:
            return
        self._credit = self._batch_size
        request = {
            "batch": self._batch_size,
            "max_bytes": BATCH_BYTES,
            "expires": _EXPIRES_SECONDS * _NANO,
            "idle_heartbeat": _HEARTBEAT_SECONDS * _NANO,
        }
        self._bus.nc.publish_now(self._next_subject, self._inbox, json.dumps(request).encode())

    def _restart_pull(self) -> None:
        """Whatever credit the server had is gone with the old connection."""
        self._credit = 0
        self._heard_at = self._loop.time()
        self._pull()

    def _on_message(self, subject: str, reply: str, body: bytes, headers: bytes | None) -> None:
        if not reply:
            self._on_status(headers)
            return
        # $JS.ACK.[domain.account.]stream.consumer.deliveries.seq.consumer_seq.time.pending
        tokens = reply.split(".")
        seq = int(tokens[5 if len(tokens) == 9 else 7])
        buffer = self._buffer
        buffer.append(LogMessage(seq, subject, body, reply))
        self._buffer_bytes += len(body)
        self._credit -= 1
        self._heard_at = self._loop.time()
        if len(buffer) == 1:
            self._arrived.set()
        if len(buffer) >= self._batch_size or self._buffer_bytes >= BATCH_BYTES:
            self._full.set()
        if self._credit <= 0:
            self._credit = 0
            self._pull()

    def _on_status(self, block: bytes | None) -> None:
        self._heard_at = self._loop.time()
        headers = parse_headers(block)
        status = headers.get("Status", "")
        reason = headers.get("Description", "")
        if status in ("", "100") or reason == _COMPLETED:
            return  # a heartbeat, or what the last message said already
        # The request ended: expired, full, leader changed, durable deleted.
        self._credit = 0
        if status == "408" or reason == _TOO_LARGE:
            self._pull()
        elif not self._stopping:
            _log.warning("projector.pull_ended", status=status, reason=reason)
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
                _log.warning("projector.durable_unavailable", reason=str(error))
        except TransientError as error:
            _log.warning("projector.durable_unavailable", reason=error.code)
        self._restart_pull()

    async def _recreate_durable(self) -> None:
        try:
            await self._recreate()
        except (JetStreamError, TransientError) as error:
            _log.warning("projector.durable_not_recreated", reason=str(error))
        else:
            _log.warning("projector.durable_recreated")
