"""Leases on shards against a real server, with what dead engines leave behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from penstock import clock
from penstock.bus.connection import Bus, connect
from penstock.bus.kv import Bucket
from penstock.bus.topology import ensure
from penstock.child import free_ports, http_get
from penstock.contracts import subjects
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from penstock_orchestrator.engine.leases import ShardLeases
from tests.integration.orchestrator.conftest import CreateWorld, engine_process
from tests.support.waiting import eventually

SHARDS = 8
GHOST_TTL_SECONDS = 600.0


async def _ignored(_shard: int) -> None:
    """Take no notice of a shard that was won or lost."""


def leases_of(bus: Bus, instance: str, *, ttl_seconds: float = 3) -> ShardLeases:
    return ShardLeases(
        bus, instance, shards=SHARDS, ttl_seconds=ttl_seconds, on_won=_ignored, on_lost=_ignored
    )


@pytest.fixture
async def bus(create_nats_server: Callable[..., NatsServer]) -> AsyncIterator[Bus]:
    settings = CoreSettings(nats_url=create_nats_server().url, shards=SHARDS)
    bus = await connect(settings, name="test")
    await ensure(bus, settings)
    before = clock.offset_seconds()
    yield bus
    clock.correct(before)
    await bus.close()


async def leave_behind(bus: Bus) -> None:
    """Write what three dead engines held, and let its time pass without the server ending it."""
    bucket = Bucket(bus, subjects.LEASES)
    for number in range(3):
        key = subjects.member_lease_key(f"dead-{number}")
        await bucket.put(key, b"{}", ttl_seconds=GHOST_TTL_SECONDS)
    for shard in range(0, SHARDS, 2):
        key = subjects.shard_lease_key(shard)
        await bucket.put(key, b"dead-0", ttl_seconds=GHOST_TTL_SECONDS)
    clock.correct(clock.offset_seconds() + GHOST_TTL_SECONDS + 5)


async def test_engine_takes_every_shard_of_dead_engines_that_the_server_kept(bus: Bus) -> None:
    await leave_behind(bus)
    leases = leases_of(bus, "living")

    await leases.start()

    assert leases.held == list(range(SHARDS))
    await leases.stop()


async def test_shard_of_a_living_engine_is_not_taken(bus: Bus) -> None:
    bucket = Bucket(bus, subjects.LEASES)
    await bucket.put(subjects.shard_lease_key(3), b"other", ttl_seconds=GHOST_TTL_SECONDS)
    leases = leases_of(bus, "living")

    await leases.start()

    assert leases.held == [shard for shard in range(SHARDS) if shard != 3]
    assert leases.abandoned == []
    await leases.stop()


async def test_shard_that_no_engine_holds_is_reported(bus: Bus) -> None:
    await Bucket(bus, subjects.LEASES).put(subjects.member_lease_key("idle"), b"{}")
    leases = leases_of(bus, "living", ttl_seconds=1)

    await leases.start()

    assert len(leases.held) == SHARDS // 2
    free = [shard for shard in range(SHARDS) if shard not in leases.held]
    await eventually(lambda: leases.abandoned == free)
    held = await asyncio.gather(*(_take(bus, shard) for shard in free))
    assert all(held)
    await eventually(lambda: leases.abandoned == [])
    await leases.stop()


async def test_readiness_fails_while_a_shard_has_no_holder(create_world: CreateWorld) -> None:
    world = await create_world()
    port = free_ports(1)[0]

    async def readiness() -> tuple[int, str]:
        status, body = await asyncio.to_thread(http_get, port, "/readyz")
        return status, str(json.loads(body).get("reason")) if status else ""

    async with engine_process(world, "engine-1", metrics_port=port):
        await eventually(_answers(readiness, 200, "None"))
        # An engine that is counted and takes nothing: half of the two shards are without a holder.
        bucket = Bucket(world.bus, subjects.LEASES)
        await bucket.put(subjects.member_lease_key("idle"), b"{}")

        await eventually(_answers(readiness, 503, "no engine holds shard 1"))

        await bucket.delete(subjects.member_lease_key("idle"))
        await eventually(_answers(readiness, 200, "None"))


def _answers(
    readiness: Callable[[], Awaitable[tuple[int, str]]], status: int, reason: str
) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        found = await readiness()
        return found[0] == status and reason in found[1]

    return holds


async def _take(bus: Bus, shard: int) -> int:
    return await Bucket(bus, subjects.LEASES).create(subjects.shard_lease_key(shard), b"other")
