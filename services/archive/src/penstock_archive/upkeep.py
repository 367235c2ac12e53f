"""What the projector's process does beside projecting: retention, and finishing deletions."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from penstock.contracts.errors import PenstockError, TransientError
from penstock.telemetry.logs import EventLog
from penstock_archive.parts import Parts
from penstock_archive.rows import Key
from penstock_archive.settings import ArchiveSettings
from penstock_archive.store import Store

log = EventLog(__name__)

_EVERY_SECONDS: Final = 600.0
_AGAIN_SECONDS: Final = 15.0


class Upkeep:
    """Runs beside the projector; several at a time only repeat each other's work."""

    def __init__(self, settings: ArchiveSettings, parts: Parts, store: Store) -> None:
        """Prepare; ``start`` begins."""
        days = settings.archive_keep_days
        self._keep = timedelta(days=days) if days is not None else None
        self._parts = parts
        self._store = store
        self._late: dict[Key, int] = {}
        self._wanted = asyncio.Event()
        self._unfinished = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the tables exist, and the store is not in use yet.

        Raises:
            TransientError: ``archive_unavailable``.
        """
        if self._task is None:
            self._parts.ready.set()
            self._unfinished = await self._store.unfinished_deletions() > 0
            if self._unfinished or self._keep is not None:
                self._wanted.set()
            self._task = asyncio.create_task(self._run(), name="archive-upkeep")

    def hindered(self, error: TransientError) -> None:
        """Answer requests with this error until the archive is ready."""
        self._parts.hindrance = error

    async def stop(self) -> None:
        """Stop; the remaining work continues after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def forget_late(self, refused: dict[Key, int]) -> None:
        """Delete later facts of deleted runs from the log soon, each up to a sequence."""
        for key, seq in refused.items():
            self._late[key] = max(seq, self._late.get(key, 0))
        self._wanted.set()

    async def _run(self) -> None:
        while True:
            delay = _EVERY_SECONDS if self._keep is not None else None
            await self._wait(delay)
            self._wanted.clear()
            try:
                await self._work()
            except PenstockError as error:
                log.warning("archive.upkeep_waits", code=error.code, reason=error.message)
                await asyncio.sleep(_AGAIN_SECONDS)
                self._wanted.set()

    async def _wait(self, seconds: float | None) -> None:
        try:
            await asyncio.wait_for(self._wanted.wait(), seconds)
        except TimeoutError:
            return

    async def _work(self) -> None:
        eraser = (await self._parts.when_ready()).eraser
        if self._unfinished:
            count = await eraser.finish()
            self._unfinished = False
            log.info("archive.deletions_finished", runs=count)
        late = dict(self._late)
        await eraser.forget_late(late)
        for key, seq in late.items():
            if self._late.get(key) == seq:
                del self._late[key]
        if self._keep is not None:
            count = await eraser.retain(self._keep)
            if count:
                log.info("archive.old_runs_deleted", runs=count)
