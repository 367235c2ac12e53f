"""The projector between a real nats-server and real databases."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock import rpc
from penstock.bus.connection import Bus
from penstock.contracts import subjects
from penstock.contracts.archive import ListRuns, RunPage
from penstock.contracts.errors import TransientError
from penstock.contracts.facts import DefinitionKind, RunInvoked, fact_bytes
from penstock.contracts.messages import DeadLetter
from penstock.contracts.structs import decode
from penstock.db import create_engine
from penstock.embedded import NatsServer
from penstock_archive import tables
from penstock_archive.feed import BATCH_BYTES
from penstock_archive.main import serve
from penstock_archive.projector import LAG_MESSAGES, LAG_SECONDS
from penstock_archive.settings import ArchiveSettings
from tests.support.archived import assert_archived, rows_of
from tests.support.histories import START, Message, random_log
from tests.support.waiting import eventually


@asynccontextmanager
async def projecting(settings: ArchiveSettings) -> AsyncIterator[asyncio.Task[None]]:
    """Run the whole process's work in a task."""
    until = asyncio.Event()
    running = asyncio.create_task(serve(settings, until=until))
    try:
        yield running
    finally:
        until.set()
        await running


async def publish(bus: Bus, log: Sequence[Message]) -> None:
    for subject, body in log:
        while True:
            try:
                await bus.request(subject, body)
                break
            except TransientError:
                await asyncio.sleep(0.05)


async def assert_eventually_archived(
    engine: AsyncEngine, log: Sequence[Message], *, within: float = 30
) -> None:
    async def all_there() -> bool:
        try:
            rows = await rows_of(engine, tables.projection)
        except DBAPIError:
            return False  # no such table yet, or a SQLite file that is just being made
        return bool(rows) and rows[0]["last_seq"] >= len(log)

    await eventually(all_there, within=within)
    await assert_archived(engine, log)


async def test_projector_on_a_real_log_archives_what_the_log_says(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(1), 40)
    await publish(bus, log[:50])
    async with projecting(settings):
        await publish(bus, log[50:])
        await assert_eventually_archived(engine, log)


async def test_projector_acknowledges_batches_cumulatively(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(2), 30)
    await publish(bus, log)

    async def nothing_is_left() -> bool:
        info = await bus.api(f"CONSUMER.INFO.{subjects.RUNS}.{subjects.PROJECTOR}")
        return bool(
            info["ack_floor"]["stream_seq"] == len(log)
            and info["num_ack_pending"] == 0
            and info["num_pending"] == 0
        )

    async with projecting(settings):
        await assert_eventually_archived(engine, log)
        await eventually(nothing_is_left)


async def test_projector_killed_with_a_batch_in_hand_leaves_nothing_out(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(3), 30)
    await publish(bus, log)
    # A process that takes messages and dies: they stay with it for the whole of ack_wait.
    inbox = bus.nc.new_inbox()
    taken: list[str] = []
    subscription = await bus.nc.subscribe_direct(
        inbox, lambda subject, _reply, _body, _headers: taken.append(subject)
    )
    bus.nc.publish_now(
        f"$JS.API.CONSUMER.MSG.NEXT.{subjects.RUNS}.{subjects.PROJECTOR}",
        inbox,
        b'{"batch": 37, "expires": 1000000000}',
    )
    await eventually(lambda: len(taken) >= 37)
    await bus.nc.unsubscribe_direct(subscription)
    async with projecting(settings):
        await assert_eventually_archived(engine, log)


async def test_projector_restarted_goes_on_where_it_was(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(4), 30)
    third = len(log) // 3
    for part in (log[:third], log[third : 2 * third], log[2 * third :]):
        async with projecting(settings):
            await publish(bus, part)
    async with projecting(settings):
        await assert_eventually_archived(engine, log)


async def test_projector_whose_durable_was_deleted_makes_it_again(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(5), 20)
    half = len(log) // 2
    async with projecting(settings):
        await publish(bus, log[:half])
        await assert_eventually_archived(engine, log[:half])
        await bus.api(f"CONSUMER.DELETE.{subjects.RUNS}.{subjects.PROJECTOR}")
        await publish(bus, log[half:])
        await assert_eventually_archived(engine, log)


async def test_projector_of_large_facts_takes_them_in_batches_of_bounded_size(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = [
        (
            f"run.acme.0.R{number}.in.invoke",
            fact_bytes(
                RunInvoked(
                    occurred_at=START,
                    name="n",
                    kind=DefinitionKind.AGENT,
                    version=1,
                    plan_digest="d",
                    input="x" * 120_000,
                )
            ),
        )
        for number in range(200)
    ]
    assert sum(len(body) for _, body in log) > 2 * BATCH_BYTES
    await publish(bus, log)
    async with projecting(settings):
        await assert_eventually_archived(engine, log)


async def test_projector_over_a_restart_of_the_server_goes_on(
    server: NatsServer, bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(6), 20)
    half = len(log) // 2
    async with projecting(settings):
        await publish(bus, log[:half])
        await assert_eventually_archived(engine, log[:half])
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await eventually(lambda: bus.nc.is_connected)
        await publish(bus, log[half:])
        await assert_eventually_archived(engine, log)


async def test_projector_with_an_unreadable_message_keeps_it_as_a_dead_letter(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    await publish(bus, [("run.acme.0.R.in.invoke", b"\xff")])
    async with projecting(settings):

        async def letter() -> DeadLetter | None:
            info = await bus.api(f"STREAM.INFO.{subjects.DEAD}")
            if not info["state"]["messages"]:
                return None
            found = await bus.nc.jetstream().get_msg(subjects.DEAD, seq=1)
            return decode(DeadLetter, found.data or b"")

        found = await eventually(letter)
    assert found is not None
    assert found.subject == "run.acme.0.R.in.invoke"
    assert found.consumer == subjects.PROJECTOR
    assert found.stream_seq == 1


async def test_projector_with_postgres_away_waits_and_catches_up(
    bus: Bus, server: NatsServer, postgres_url: str, postgres_database: str, tmp_path: Path
) -> None:
    settings = ArchiveSettings.model_validate(
        {
            "nats_url": server.url,
            "data_dir": tmp_path,
            "database_url": postgres_database,
            "metrics_port": -1,
            "projector_flush_seconds": 0.02,
        }
    )
    log = random_log(random.Random(7), 20)
    half = len(log) // 2
    name = postgres_database.rpartition("/")[2].partition("?")[0]
    engine = create_engine(postgres_database)
    admin = await asyncpg.connect(postgres_url)
    try:
        async with projecting(settings) as running:
            await publish(bus, log[:half])
            await assert_eventually_archived(engine, log[:half])
            await engine.dispose()
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
            )
            await publish(bus, log[half:])
            await eventually(lambda: _unacknowledged(bus, len(log) - half))
            await eventually(lambda: LAG_MESSAGES._value.get() == len(log) - half)
            await eventually(lambda: lag_seconds() > 1)
            assert not running.done()
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            await assert_eventually_archived(engine, log)
            await eventually(lambda: LAG_MESSAGES._value.get() == 0)
            await eventually(lambda: lag_seconds() == 0)
    finally:
        await admin.close()
        await engine.dispose()


async def test_projector_without_a_database_stays_and_ends_when_told(
    bus: Bus, server: NatsServer, tmp_path: Path
) -> None:
    settings = ArchiveSettings.model_validate(
        {
            "nats_url": server.url,
            "data_dir": tmp_path,
            "database_url": f"postgresql://nobody@127.0.0.1:{free_port()}/nothing",
            "metrics_port": -1,
        }
    )

    async def refused() -> bool:
        try:
            await rpc.call(
                bus, "archive", "list_runs", ListRuns(tenant="acme"), RunPage, timeout_seconds=5
            )
        except TransientError as error:
            return error.code == "archive_unavailable"
        return False

    async with asyncio.timeout(20):
        async with projecting(settings) as running:
            await eventually(refused)
            assert not running.done()


def lag_seconds() -> float:
    (metric,) = LAG_SECONDS.collect()
    return metric.samples[0].value


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def _unacknowledged(bus: Bus, at_least: int) -> bool:
    info = await bus.api(f"CONSUMER.INFO.{subjects.RUNS}.{subjects.PROJECTOR}")
    return bool(info["num_ack_pending"] + info["num_pending"] >= at_least)


async def test_lag_of_an_idle_projector_is_zero(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(8), 5)
    await publish(bus, log)
    async with projecting(settings):
        await assert_eventually_archived(engine, log)
        await eventually(lambda: LAG_MESSAGES._value.get() == 0)
