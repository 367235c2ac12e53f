"""Leases on shards: which replica works where. For speed only; safety is the fence's.

Each engine records that it lives and takes its fair share of the shards; a dead engine's shards
are free again after the lease's time. An engine with more than its share gives back one at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, PenstockError
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

_MEMBERS: Final = subjects.member_lease_key("")


class ShardLeases:
    """Keeps this engine's leases; calls back when a shard is won or lost."""

    def __init__(
        self,
        bus: Bus,
        instance_id: str,
        *,
        shards: int,
        ttl_seconds: float,
        on_won: Callable[[int], Awaitable[None]],
        on_lost: Callable[[int], Awaitable[None]],
    ) -> None:
        """Prepare to compete for shards.

        Args:
            bus: An open connection.
            instance_id: This engine's name.
            shards: How many shards there are.
            ttl_seconds: Life of a lease; it is renewed every third of it.
            on_won: Called once the lease on a shard is held.
            on_lost: Called when it is no longer held; must stop work on the shard.
        """
        # Who waits for an answer as long as a lease lives loses it waiting.
        timeout_seconds = min(5.0, ttl_seconds / 2)
        self._bucket = Bucket(bus, subjects.LEASES, timeout_seconds=timeout_seconds)
        self._instance = instance_id
        self._shards = shards
        self._ttl = ttl_seconds
        self._on_won = on_won
        self._on_lost = on_lost
        self._held: dict[int, tuple[int, float]] = {}
        self._seen_at = [time.monotonic()] * shards
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> list[int]:
        """The shards whose lease is held."""
        return sorted(self._held)

    @property
    def abandoned(self) -> list[int]:
        """The shards that no engine has held for twice the time of a lease: their runs wait."""
        limit = time.monotonic() - 2 * self._ttl
        return [shard for shard, seen_at in enumerate(self._seen_at) if seen_at < limit]

    async def start(self) -> None:
        """Take free shards and keep them from now on."""
        await self._round()
        self._task = asyncio.create_task(self._keep(), name="leases")

    async def stop(self) -> None:
        """Give everything back, so that others need not wait."""
        if self._task is not None:
            self._task.cancel()
        await self._bucket.delete(subjects.member_lease_key(self._instance))
        for shard in list(self._held):
            await self._give_back(shard)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._ttl / 3)
            try:
                await self._round()
            except (PenstockError, JetStreamError) as error:
                # Whatever it is: an engine that stops renewing never gets a shard again.
                log.warning("leases.unreachable", error=str(error))
            else:
                continue
            await self._drop_outlived()

    async def _round(self) -> None:
        await self._bucket.put(
            subjects.member_lease_key(self._instance), b"{}", ttl_seconds=self._ttl
        )
        keys = set(await self._bucket.keys())
        members = max(1, sum(key.startswith(_MEMBERS) for key in keys))
        for shard in range(self._shards):
            if shard in self._held or subjects.shard_lease_key(shard) in keys:
                self._seen_at[shard] = time.monotonic()
        for shard in list(self._held):
            await self._renew(shard)
        share = -(-self._shards // members)
        if len(self._held) > share:
            await self._give_back(self.held[-1])
        elif len(self._held) < share:
            await self._take(share - len(self._held))

    async def _take(self, count: int) -> None:
        # Begin at an own offset, so that engines that start together seldom collide.
        offset = sum(self._instance.encode()) % self._shards
        for step in range(self._shards):
            shard = (offset + step) % self._shards
            if count <= 0 or shard in self._held:
                continue
            key = subjects.shard_lease_key(shard)
            try:
                revision = await self._bucket.create(
                    key, self._instance.encode(), ttl_seconds=self._ttl
                )
            except ConflictError:
                continue
            self._held[shard] = (revision, time.monotonic())
            count -= 1
            log.info("leases.won", shard=shard)
            await self._on_won(shard)

    async def _renew(self, shard: int) -> None:
        revision, _ = self._held[shard]
        try:
            revision = await self._bucket.update(
                subjects.shard_lease_key(shard),
                self._instance.encode(),
                revision,
                ttl_seconds=self._ttl,
            )
        except ConflictError as error:
            log.info("leases.taken", shard=shard, error=error.message)
        else:
            self._held[shard] = (revision, time.monotonic())
            return
        await self._lose(shard)

    async def _give_back(self, shard: int) -> None:
        await self._lose(shard)
        await self._bucket.delete(subjects.shard_lease_key(shard))

    async def _drop_outlived(self) -> None:
        for shard, (_, renewed_at) in list(self._held.items()):
            if time.monotonic() - renewed_at > self._ttl:
                await self._lose(shard)

    async def _lose(self, shard: int) -> None:
        if self._held.pop(shard, None) is None:
            return  # given back while its renewal was under way
        log.info("leases.lost", shard=shard)
        await self._on_lost(shard)
