"""Runner pools: how many steps each can execute at a time, from the runners' heartbeats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from pydantic import ValidationError

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.kv_watch import KvChange, Watch
from penstock.contracts import subjects
from penstock.contracts.runners import RunnerRecord
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)


class PoolWatch:
    """Watches the bucket of live runners."""

    def __init__(self, bus: Bus, resize: Callable[[str, int], None]) -> None:
        """Call ``resize`` with a pool and its slots whenever they change."""
        self._bucket = Bucket(bus, subjects.RUNNERS)
        self._resize = resize
        self._runners: dict[str, tuple[str, int]] = {}
        self._watch: Watch | None = None

    async def start(self) -> None:
        """Start the watch.

        Raises:
            TransientError: The server did not answer.
            JetStreamError: There is no such bucket.
        """
        self._watch = await self._bucket.watch(">", self._on_change)

    async def stop(self) -> None:
        """Stop the watch."""
        if self._watch is not None:
            await self._watch.stop()

    def _on_change(self, change: KvChange) -> None:
        before = self._runners.pop(change.key, None)
        if change.value is not None:
            try:
                runner = RunnerRecord.model_validate_json(change.value)
            except ValidationError:
                log.warning("pools.unreadable_runner", key=change.key)
                return
            slots = 0 if runner.draining else runner.concurrency
            self._runners[change.key] = (f"{runner.kind}.{runner.queue}", slots)
        after = self._runners.get(change.key)
        if before == after:
            return
        sizes: defaultdict[str, int] = defaultdict(int)
        for pool, slots in self._runners.values():
            sizes[pool] += slots
        for changed in {entry[0] for entry in (before, after) if entry is not None}:
            self._resize(changed, sizes[changed])
