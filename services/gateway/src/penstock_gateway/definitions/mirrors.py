"""Buckets mirrored in memory, so that requests need no read: versions in force, keys, webhooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from pydantic import ValidationError

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.kv_watch import KvChange, Watch
from penstock.telemetry.logs import EventLog

ValueT = TypeVar("ValueT")

log = EventLog(__name__)


class Mirror(Generic[ValueT]):
    """One bucket as a dict that follows it."""

    def __init__(
        self,
        bus: Bus,
        bucket: str,
        convert: Callable[[bytes], ValueT],
        *,
        removed: Callable[[], None] | None = None,
    ) -> None:
        """Name the bucket; ``start`` fills the dict.

        Args:
            bus: The connection.
            bucket: Name of the bucket.
            convert: Reads a stored value; raises ``ValidationError`` if it is malformed.
            removed: Called after a key was removed.
        """
        self._bucket = Bucket(bus, bucket)
        self._convert = convert
        self._removed = removed
        self._watch: Watch | None = None
        self.values: dict[str, ValueT] = {}

    async def start(self) -> None:
        """Fill the dict and follow the bucket until ``stop``.

        Raises:
            JetStreamError: There is no such bucket.
            TransientError: The server did not answer.
        """
        self._watch = await self._bucket.watch(">", self._on_change)
        await self._watch.ready()

    async def stop(self) -> None:
        """Stop following the buckets."""
        if self._watch is not None:
            await self._watch.stop()
            self._watch = None

    async def refresh(self, key: str) -> ValueT | None:
        """Read one key from the bucket itself, for those who must not be a moment late."""
        entry = await self._bucket.get(key)
        if entry is None:
            self.values.pop(key, None)
        else:
            self._on_change(KvChange(key, entry.value, entry.revision, "put"))
        return self.values.get(key)

    def _on_change(self, change: KvChange) -> None:
        if change.value is None:
            self.values.pop(change.key, None)
            if self._removed is not None:
                self._removed()
            return
        try:
            self.values[change.key] = self._convert(change.value)
        except ValidationError:
            log.exception("mirror.unreadable_value", bucket=self._bucket.name, key=change.key)
