"""What the projector costs: facts per second, and CPU per fact, on SQLite and PostgreSQL.

    python -m bench.projector [--facts 160000] [--postgres postgresql://...] [--parts]

Runs of three steps (8 facts) of which 64 are always open stand in a real log; the projector reads,
projects and acknowledges them as in production. With ``--parts`` the same rows are also
written by SQLAlchemy Core, to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop

from penstock.bus import topology
from penstock.bus.claims import Claims
from penstock.bus.client import header_block
from penstock.bus.connection import Bus, connect
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    StepKind,
    StepResult,
    StepScheduled,
    fact_bytes,
)
from penstock.contracts.ids import run_id_from, shard_of
from penstock.db import create_engine, upgrade
from penstock.embedded import NatsServer
from penstock.memory import settle
from penstock.settings import CoreSettings
from penstock_archive import statements
from penstock_archive.drivers import open_store
from penstock_archive.feed import Feed
from penstock_archive.projection import Projection, address
from penstock_archive.projector import Projector
from penstock_archive.rows import Addressed, Batch
from penstock_archive.store import Loaded, Position

FACTS_A_RUN = 8
OPEN_RUNS = 64
PACKAGE = "penstock_archive"
HEADERS = header_block({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})


def facts_of_run(number: int, shards: int) -> Iterator[tuple[str, RunFact]]:
    """Yield subject and fact of a workflow of three tool steps."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number, microseconds=137)
    run_id = run_id_from(int(at.timestamp() * 1000), number.to_bytes(10, "big"))
    prefix = subjects.run_prefix("default", shard_of(run_id, shards), run_id)
    yield (
        subjects.invoke(prefix),
        RunInvoked(
            occurred_at=at,
            name="three-steps",
            kind=DefinitionKind.WORKFLOW,
            version=3,
            plan_digest="d" * 64,
            input={"city": "Bern", "number": number},
        ),
    )
    for step in ("first", "second", "third"):
        suffix = subjects.step_suffix("tool", "http", step, 1)
        yield (
            subjects.out(prefix, len(step), suffix),
            StepScheduled(
                occurred_at=at,
                decision=Decision(cause_seq=number),
                node_id=step,
                name="lookup",
                input={"city": "Bern"},
                config={"method": "GET", "url": "https://example.com/{city}"},
                expires_at=at + timedelta(minutes=1),
            ),
        )
        yield (
            subjects.result(prefix, step, 1),
            StepResult(
                occurred_at=at,
                kind=StepKind.TOOL,
                name="lookup",
                status="succeeded",
                output={"temperature": 21.5, "wind": "weak", "text": "x" * 60},
                runner_id="tool-runner-1",
                started_at=at,
            ),
        )
    yield (
        subjects.out(prefix, 9, subjects.END_SUFFIX),
        RunEnded(
            occurred_at=at,
            decision=Decision(cause_seq=number),
            status=RunStatus.DONE,
            output={"temperature": 21.5},
        ),
    )


def interleaved(runs: int, shards: int) -> Iterator[tuple[str, bytes]]:
    """Yield subject and body of all facts, as they stand in a log with many runs open."""
    open_runs: list[Iterator[tuple[str, RunFact]]] = []
    number = 0
    while number < runs or open_runs:
        while len(open_runs) < OPEN_RUNS and number < runs:
            open_runs.append(facts_of_run(number, shards))
            number += 1
        for run in list(open_runs):
            if (found := next(run, None)) is None:
                open_runs.remove(run)
            else:
                yield found[0], fact_bytes(found[1])


async def fill(bus: Bus, runs: int, shards: int) -> None:
    """Publish all facts into the log."""
    done = asyncio.Event()
    acknowledged = 0

    def on_ack(_subject: str, _reply: str, _body: bytes, _headers: bytes | None) -> None:
        nonlocal acknowledged
        acknowledged += 1
        done.set()

    inbox = bus.nc.new_inbox()
    await bus.nc.subscribe_direct(inbox, on_ack)
    for sent, (subject, body) in enumerate(interleaved(runs, shards), 1):
        bus.nc.publish_now(subject, inbox, body, HEADERS)
        while sent - acknowledged > 500:
            done.clear()
            await done.wait()
    while acknowledged < runs * FACTS_A_RUN:
        done.clear()
        await done.wait()


async def project(bus: Bus, settings: CoreSettings, database: str, facts: int) -> None:
    """Run the projector over the whole log and print what it took."""
    feed = Feed(
        bus,
        subjects.RUNS,
        subjects.PROJECTOR,
        batch_size=2_000,
        recreate=lambda: topology.ensure(bus, settings),
    )
    claims = Claims(bus, settings.claim_threshold_bytes)
    store, watch = open_store(database), open_store(database)
    projector = Projector(bus, store, feed, LogReader(bus, claims), claims)
    wall, cpu = time.perf_counter(), time.process_time()
    running = asyncio.create_task(projector.run())
    while True:
        await asyncio.sleep(0.05)
        position = await watch.position(subjects.RUNS)
        if running.done():
            await running
        if position is not None and position.last_seq >= facts:
            break
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await projector.stop()
    await running
    await store.close()
    await watch.close()
    show(type(store).__name__, facts, wall, cpu)


def show(what: str, facts: int, wall: float, cpu: float) -> None:
    """Print one line of the table."""
    print(f"{what:32} {facts / wall:>10,.0f} facts/s {cpu / facts * 1e6:>8.1f} us CPU per fact")


def batches_of(received: list[Addressed], instant: Callable[[datetime], Any]) -> list[Batch]:
    """Return the rows of facts, 2,000 facts at a time, as if nothing were stored before."""
    projection = Projection(instant)
    batches = []
    for begin in range(0, len(received), 2_000):
        part = received[begin : begin + 2_000]
        projection.load(projection.missing(part), Loaded([], []))
        batches.append(projection.build(part, part[-1].seq))
        projection.committed(batches[-1])
    return batches


async def compare(facts: int, folder: Path) -> None:
    """Print what each part costs, without a bus, and SQLAlchemy beside the raw driver."""
    log = list(interleaved(facts // FACTS_A_RUN, 8))
    cpu = time.process_time()
    received = [address(seq, subject, body) for seq, (subject, body) in enumerate(log, 1)]
    show("  taking subjects apart", facts, 1, time.process_time() - cpu)
    store = open_store(f"sqlite:///{folder / 'raw.db'}")
    cpu = time.process_time()
    batches = batches_of(received, store.instant)
    show("  reading facts, building rows", facts, 1, time.process_time() - cpu)
    for name in ("raw.db", "core.db"):
        engine = create_engine(f"sqlite:///{folder / name}")
        await upgrade(engine, package=PACKAGE)
        await engine.dispose()
    await store.begin(subjects.RUNS, "now")
    reached, wall, cpu = 0, time.perf_counter(), time.process_time()
    for batch in batches:
        await store.commit(subjects.RUNS, batch, after=Position(reached, "now"))
        reached = batch.last_seq
    show("  sqlite3", facts, time.perf_counter() - wall, time.process_time() - cpu)
    await store.close()
    await compare_core(batches, facts, folder / "core.db")


async def compare_core(batches: list[Batch], facts: int, file: Path) -> None:
    """Write the same rows by SQLAlchemy Core."""
    from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415 - only to compare

    from penstock_archive.tables import Instant  # noqa: PLC0415 - only to compare

    engine = create_engine(f"sqlite:///{file}")
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        async with engine.begin() as connection:
            for change, rows in zip(statements.CHANGES, batch.parts(), strict=True):
                if not rows:
                    continue
                statement = insert(change.table).on_conflict_do_nothing()
                # Times are numbers already; SQLAlchemy would have to convert them as well.
                plain = [
                    {
                        column.name: (None if isinstance(column.type, Instant) else value)
                        if column.name not in ("occurred_at", "scheduled_at")
                        else datetime.fromtimestamp(value / 1e6, tz=UTC)
                        for column, value in zip(change.columns, row, strict=True)
                    }
                    for row in rows
                ]
                await connection.execute(statement, plain)
    show("  SQLAlchemy Core", facts, time.perf_counter() - wall, time.process_time() - cpu)
    await engine.dispose()


async def run(arguments: argparse.Namespace, url: str, folder: Path) -> None:
    """Fill a log once and project it into each database."""
    settings = CoreSettings(nats_url=url)
    bus = await connect(settings, name="bench-projector")
    await topology.ensure(bus, settings)
    runs = arguments.facts // FACTS_A_RUN
    facts = runs * FACTS_A_RUN
    await fill(bus, runs, settings.shards)
    databases = [f"sqlite:///{folder / 'archive.db'}"]
    databases += [arguments.postgres] if arguments.postgres else []
    for database in databases:
        engine = create_engine(database)
        await upgrade(engine, package=PACKAGE)
        await engine.dispose()
        await project(bus, settings, database, facts)
        await bus.api(f"CONSUMER.DELETE.{subjects.RUNS}.{subjects.PROJECTOR}")
        await topology.ensure(bus, settings)
    await bus.close()
    if arguments.parts:
        await compare(facts, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=160_000)
    parser.add_argument("--postgres", help="URL of an empty database")
    parser.add_argument("--parts", action="store_true", help="also what each part costs")
    arguments = parser.parse_args()
    settle()
    print(json.dumps({"sqlite": sqlite3.sqlite_version, "facts": arguments.facts}))
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder) / "nats") as server:
        uvloop.run(run(arguments, server.url, Path(folder)))


if __name__ == "__main__":
    main()
