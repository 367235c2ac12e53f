"""Cancel requests, known as soon as they are stored.

An engine's consumer delivers inputs in the order of the log, so behind a backlog a request to
cancel comes after decisions that it should have prevented. Live copies of these requests reach
the engine before that. Where it may have missed some (a shard that it has just leased, a
connection that was lost, a process that was stopped), it decides from the log itself.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nats.aio.subscription import Subscription

from penstock.bus.claims import CLAIM_MARK
from penstock.bus.client import parse_headers
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.reader import decode_entry
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, PenstockError
from penstock.runs.state import Entry
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

_BEAT_SECONDS: Final = 0.25
_STALL_SECONDS: Final = 0.5
"""A process whose event loop has been silent for so long may have inputs in its socket."""
_AGAIN_SECONDS: Final = 1.0
_KEPT: Final = 10_000
_ALL: Final = sys.maxsize


class Cancels:
    """The cancel requests that an engine's consumers have not delivered yet."""

    def __init__(self, bus: Bus, on_cancel: Callable[[Entry], None]) -> None:
        """Watch no shard yet.

        Args:
            bus: An open connection.
            on_cancel: Called with each request as it is stored, on the event loop.
        """
        self._bus = bus
        self._on_cancel = on_cancel
        self._subscriptions: dict[int, Subscription] = {}
        self.requests: OrderedDict[str, Entry] = OrderedDict()
        """By run, those that are stored and not delivered yet."""
        self._missed_until = _ALL
        self._search: asyncio.Task[None] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._beaten_at = 0.0
        self.generation = 0
        """Grows whenever requests may have been missed: states read before that are stale."""

    async def watch(self, shard: int) -> None:
        """Begin to collect the requests of a shard; call it before its inputs are delivered."""
        if self._beat is None:
            self._bus.on_reconnect.append(self._resume)
            self._listen()
        subject = subjects.live(subjects.cancels_filter(shard))
        self._subscriptions[shard] = await self._bus.nc.subscribe_direct(subject, self._on_copy)
        self._find_missed()

    async def forget(self, shard: int) -> None:
        """Stop collecting the requests of a shard that another engine leads now."""
        subscription = self._subscriptions.pop(shard, None)
        if subscription is not None:
            await self._bus.nc.unsubscribe_direct(subscription)
        for run_id, entry in list(self.requests.items()):
            if entry.subject.shard == shard:
                del self.requests[run_id]
        if not self._subscriptions and self._beat is not None:
            self._bus.on_reconnect.remove(self._resume)
            self._beat.cancel()
            self._beat = None

    def delivered(self, run_id: str) -> None:
        """Drop a request: the consumer has delivered it, or the run has ended."""
        self.requests.pop(run_id, None)

    def missed(self, seq: int) -> bool:
        """Return whether requests stored after an input at ``seq`` may have been missed."""
        if self._beat is None:
            return False  # an engine without consumers
        if asyncio.get_running_loop().time() - self._beaten_at > _STALL_SECONDS:
            self._resume()
        return seq <= self._missed_until

    def _on_copy(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        if body.startswith(CLAIM_MARK):
            return  # a large one: the consumer delivers it
        seq = int(parse_headers(headers).get("Nats-Sequence", 0))
        try:
            entry = decode_entry(subject[len(subjects.LIVE_PREFIX) :], seq, body)
        except InvariantError:
            return  # the consumer makes it a dead letter
        self.requests[entry.subject.run_id] = entry
        if len(self.requests) > _KEPT:
            self.requests.popitem(last=False)
        self._on_cancel(entry)

    # -- what may have been missed -----------------------------------------------------------

    def _listen(self) -> None:
        """Notice that the process was stopped: its inputs may be old, and more may follow them."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._beat is not None and now - self._beaten_at > _STALL_SECONDS:
            self._resume()
        self._beaten_at = now
        self._beat = loop.call_later(_BEAT_SECONDS, self._listen)

    def _resume(self) -> None:
        self._beaten_at = asyncio.get_running_loop().time()
        self.generation += 1
        self._find_missed()

    def _find_missed(self) -> None:
        """Find the end of the log: for runs with inputs after it, no request was missed."""
        self._missed_until = _ALL
        if self._search is not None:
            self._search.cancel()
        self._search = asyncio.create_task(self._find_end(), name="cancels-missed")

    async def _find_end(self) -> None:
        while self._subscriptions:
            try:
                info = await self._bus.api(f"STREAM.INFO.{subjects.RUNS}")
            except (PenstockError, JetStreamError) as error:
                log.debug("cancels.end_unknown", error=str(error))
            else:
                self._missed_until = int(info["state"]["last_seq"])
                return
            await asyncio.sleep(_AGAIN_SECONDS)
