"""The heartbeat: keeps this process listed in bucket ``runners``, from a separate thread.

A handler that blocks the event loop for a while does not make its runner look dead. One that
blocks it for longer than the TTL does: then nothing beats any more, and the entry expires.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from penstock.bus.connection import JetStreamError, connect
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError, TransientError
from penstock.contracts.runners import RunnerRecord, StepInWork
from penstock.settings import CoreSettings
from penstock.telemetry.logs import EventLog

Describe = Callable[[], Sequence[RunnerRecord]]
"""Says what this process runs; called in the heartbeat's thread, so it only reads."""

RETRY_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 2.0
"""Between heartbeats, one is sent so soon after the steps in work or their progress changed."""
STOP_SECONDS: Final = 10.0
FIRST_BEAT_SECONDS: Final = 30.0

log = EventLog(__name__)


class Heartbeat:
    """Beats for all runners of a process; start and stop it on the loop that it watches."""

    def __init__(self, settings: CoreSettings, describe: Describe) -> None:
        """Prepare the heartbeat.

        Args:
            settings: Where the bus is, TTL and period.
            describe: Says what to register.
        """
        self._settings = settings
        self._describe = describe
        self._watched: asyncio.AbstractEventLoop | None = None
        self._answered_at = 0.0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._stopping = False
        self._first: asyncio.Future[None] | None = None
        self._shown: list[tuple[StepInWork, ...]] = []

    async def start(self) -> None:
        """Register; returns after the first beat.

        Raises:
            TransientError: ``bus_unreachable`` or ``not_registered``.
        """
        self._watched = asyncio.get_running_loop()
        self._answered_at = time.monotonic()
        self._first = self._watched.create_future()
        self._thread = threading.Thread(
            target=self._run_thread, name="penstock-heartbeat", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.wait_for(self._first, FIRST_BEAT_SECONDS)
        except TimeoutError as error:
            raise TransientError(
                "not_registered", f"no heartbeat was taken within {FIRST_BEAT_SECONDS:g} s"
            ) from error

    def beat_now(self) -> None:
        """Beat without waiting for the next time, because something changed."""
        if self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def stop(self) -> None:
        """Deregister and end the thread."""
        if self._thread is None:
            return
        self._stopping = True
        self.beat_now()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        self._thread = None

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._main())
        except PenstockError as error:
            log.exception("runner.heartbeat_ended")
            self._report(error)

    def _report(self, error: PenstockError | None = None) -> None:
        """Report the outcome of the first beat to ``start``."""

        def settle() -> None:
            if self._first is not None and not self._first.done():
                if error is None:
                    self._first.set_result(None)
                else:
                    self._first.set_exception(error)

        if self._watched is not None and not self._watched.is_closed():
            self._watched.call_soon_threadsafe(settle)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        bus = await connect(self._settings, name=f"{self._settings.instance_id}-heartbeat")
        try:
            bucket = Bucket(bus, subjects.RUNNERS)
            while not self._stopping:
                self._wake.clear()
                self._probe()
                beaten = self._alive() and await self._beat(bucket)
                pause = self._settings.runner_heartbeat_seconds
                await self._pause(pause if beaten else min(RETRY_SECONDS, pause))
            await self._deregister(bucket)
        finally:
            await bus.close()

    async def _pause(self, seconds: float) -> None:
        """Wait until the next heartbeat is due, or the steps in work are others than shown."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            await self._sleep(min(rest, LOOK_SECONDS))
            if self._wake is None or self._wake.is_set() or self._shown != self._steps():
                return

    def _steps(self) -> list[tuple[StepInWork, ...]]:
        return [record.steps for record in self._describe()]

    async def _sleep(self, seconds: float) -> None:
        if self._wake is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)

    def _probe(self) -> None:
        if self._watched is not None and not self._watched.is_closed():
            self._watched.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._answered_at = time.monotonic()

    def _alive(self) -> bool:
        """Whether the watched loop has answered within the TTL (a probe is sent with each beat)."""
        silence = time.monotonic() - self._answered_at
        limit = self._settings.runner_ttl_seconds + self._settings.runner_heartbeat_seconds
        if silence > limit:
            log.error("runner.loop_frozen", silence_seconds=round(silence, 1))
            return False
        return True

    async def _beat(self, bucket: Bucket) -> bool:
        try:
            records = self._describe()
            self._shown = [record.steps for record in records]
            for record in records:
                await bucket.put(
                    _key(record),
                    record.model_dump_json().encode(),
                    ttl_seconds=self._settings.runner_ttl_seconds,
                )
        except (PenstockError, JetStreamError) as error:
            log.warning("runner.heartbeat_failed", reason=str(error))
            return False
        self._report()
        return True

    async def _deregister(self, bucket: Bucket) -> None:
        try:
            for record in self._describe():
                await bucket.delete(_key(record))
        except (PenstockError, JetStreamError) as error:
            # The entry expires by itself.
            log.warning("runner.not_deregistered", reason=str(error))


def _key(record: RunnerRecord) -> str:
    return subjects.runner_key(record.kind, record.queue, record.runner_id)
