"""The projector over a log in memory and a SQLite file: nothing is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, TransientError
from penstock.contracts.facts import DefinitionKind, RunInvoked, fact_bytes
from penstock.contracts.messages import Claim
from penstock.contracts.structs import decode, encode
from penstock.db import create_engine
from penstock_archive import reports, tables
from penstock_archive.drivers import open_store
from penstock_archive.feed import Feed
from penstock_archive.projector import Projector
from penstock_archive.store import Store
from tests.support.archived import assert_archived, rows_of
from tests.support.histories import START, Message, random_log
from tests.support.waiting import eventually
from tests.unit.archive.fakes import FakeFeed, FakeLog, FlakyStore

CANCEL = b'{"type":"run.cancel_requested","occurred_at":"%b"}'
STATE = (
    b'{"type":"run.state","occurred_at":"2026-01-01T00:00:00Z",'
    b'"decision":{"cause_seq":1,"manifest":["nonsense"]}}'
)
STEP = (
    b'{"type":"step.scheduled","occurred_at":"2026-01-01T00:00:00Z","node_id":"n",'
    b'"name":"n","expires_at":"2026-01-01T00:00:00Z"}'
)


class FakeClaims:
    """Objects by digest."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = objects or {}
        self.missed: set[str] = set()
        """As of the real ones, an object is lost only some time after it was missing."""

    async def unpack(self, body: bytes) -> bytes:
        digest = decode(Claim, body).sha256
        if digest in self.objects:
            return self.objects[digest]
        if digest in self.missed:
            raise InvariantError("object_lost", "not there")
        self.missed.add(digest)
        raise TransientError("object_missing", "not there")


@asynccontextmanager
async def open_archive(folder: Path) -> AsyncIterator[tuple[Store, AsyncEngine]]:
    url = f"sqlite:///{folder / 'archive.db'}"
    engine = create_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(tables.METADATA.create_all)
    store = open_store(url)
    try:
        yield store, engine
    finally:
        await store.close()
        await engine.dispose()


def create_projector(
    log: FakeLog, feed: FakeFeed, store: Any, claims: FakeClaims | None = None
) -> Projector:
    return Projector(
        cast(Bus, log),
        cast(Store, store),
        cast(Feed, feed),
        cast(LogReader, log),
        cast(Claims, claims or FakeClaims()),
        batch_size=10,
        retry_seconds=0.0,
    )


async def project(
    log: FakeLog, store: Any, rng: random.Random, claims: FakeClaims | None = None
) -> FakeFeed:
    """Project until all of the log has been delivered and the projector rests."""
    feed = FakeFeed(log, rng)
    projector = create_projector(log, feed, store, claims)
    running = asyncio.create_task(projector.run())

    async def done() -> bool:
        return running.done() or (feed.exhausted and await reached(store, log.last_seq))

    await eventually(done, within=30, every=0)
    await projector.stop()
    await running
    return feed


@pytest.mark.parametrize("seed", range(25))
async def test_projection_of_any_history_equals_the_fold(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    log = random_log(rng, rng.randint(1, 8))
    async with open_archive(tmp_path) as (store, engine):
        await project(FakeLog(log), store, rng)
        await assert_archived(engine, log)


@pytest.mark.parametrize("seed", range(10))
async def test_profiles_of_runs_of_many_facts_are_stored_until_the_next_fact(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "STORED_FACTS", 0)
    rng = random.Random(2_000 + seed)
    log = random_log(rng, rng.randint(1, 8))
    async with open_archive(tmp_path) as (store, engine):
        for length in (len(log) // 2, len(log) - 1, len(log)):
            await project(FakeLog(log[:length]), store, rng)
            await assert_archived(engine, log[:length])
        ended = [row for row in await rows_of(engine, tables.runs) if row["ended_at"] is not None]
        assert all(row["profile"] is not None for row in ended if row["seq"] is not None)


@pytest.mark.parametrize("seed", range(25))
async def test_projection_with_failures_before_and_after_commits_equals_the_fold(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(1_000 + seed)
    log = random_log(rng, rng.randint(1, 8))
    async with open_archive(tmp_path) as (store, engine):
        await project(FakeLog(log), FlakyStore(store, rng, chance=0.2), rng)
        await assert_archived(engine, log)


async def reached(store: Any, seq: int) -> bool:
    position = await store.position(subjects.RUNS)
    return position is not None and position.last_seq >= seq


async def test_projector_begun_anew_after_a_crash_reads_what_was_delivered_to_the_dead(
    tmp_path: Path,
) -> None:
    log = random_log(random.Random(1), 5)
    fake = FakeLog(log)
    fake.delivered = len(log)  # to a process that died before it committed anything
    async with open_archive(tmp_path) as (store, engine):
        feed = FakeFeed(fake, random.Random(2))
        feed._next = len(log) + 1
        projector = create_projector(fake, feed, store)
        running = asyncio.create_task(projector.run())
        await eventually(lambda: reached(store, len(log)), every=0)
        await projector.stop()
        await running
        await assert_archived(engine, log)


async def test_projector_with_holes_in_the_log_goes_on(tmp_path: Path) -> None:
    log = random_log(random.Random(3), 5)
    holes = [2, 3, 4, 9, len(log) // 2]
    async with open_archive(tmp_path) as (store, engine):
        await project(FakeLog(log, holes=holes), store, random.Random(4))
        found = [row["seq"] for row in await rows_of(engine, tables.facts)]
        assert found == [seq for seq in range(1, len(log) + 1) if seq not in holes]


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("run.acme.0.R.in.invoke", b"no json"),
        ("run.acme.0.R.in.invoke", b"{}"),
        ("run.acme.0.R.in.invoke", CANCEL % b"2026-01-01T00:00:00Z"),
        ("run.acme.0.R.in.cancel", CANCEL % b"2026-01-01T00:00:00"),
        ("run.acme.0.R.in.cancel", CANCEL % b"yesterday"),
        ("run.acme.0.R.in.cancel", CANCEL % b"\xff"),
        ("run.acme.0.R.in.cancel", CANCEL % b'2026-01-01T00:00:00Z","reason":"\\ud800'),
        ("run.acme.0.R.what.is.this", b"{}"),
        ("run.acme.x.R.in.cancel", b"{}"),
        ("run.acme", b""),
        ("run.acme.0.R.out.1.state", STATE),
        ("run.acme.0.R.out.1.step.wizard.q.s.1", STEP),
    ],
)
async def test_projector_with_an_unreadable_message_buries_it_and_goes_on(
    tmp_path: Path, subject: str, body: bytes
) -> None:
    log = random_log(random.Random(5), 2)
    log.insert(3, (subject, body))
    fake = FakeLog(log)
    async with open_archive(tmp_path) as (store, engine):
        await project(fake, store, random.Random(6))
        assert {letter.stream_seq for letter in fake.letters} == {4}
        assert fake.letters[0].subject == subject
        assert fake.letters[0].error.code == "not_projectable"
        assert len(await rows_of(engine, tables.facts)) == len(log) - 1


async def test_projector_with_a_value_that_no_column_holds_buries_that_fact_alone(
    tmp_path: Path,
) -> None:
    log = random_log(random.Random(7), 3)
    poison = RunInvoked(
        occurred_at=START,
        name="n",
        kind=DefinitionKind.AGENT,
        version=2**70,
        plan_digest="d",
    )
    log.insert(5, ("run.acme.0.POISON.in.invoke", fact_bytes(poison)))
    fake = FakeLog(log)
    async with open_archive(tmp_path) as (store, engine):
        await project(fake, store, random.Random(8))
        assert {letter.stream_seq for letter in fake.letters} == {6}
        assert len(await rows_of(engine, tables.facts)) == len(log) - 1


async def test_projector_with_a_claim_archives_the_whole_body(tmp_path: Path) -> None:
    subject, body = _large_fact()
    claim = Claim(sha256="a" * 64, size_bytes=len(body))
    fake = FakeLog([(subject, encode(claim))])
    async with open_archive(tmp_path) as (store, engine):
        await project(fake, store, random.Random(9), FakeClaims({"a" * 64: body}))
        facts = await rows_of(engine, tables.facts)
        runs = await rows_of(engine, tables.runs)
    assert facts[0]["body"].encode() == body
    assert runs[0]["input"] is None, "large inputs are in facts alone"


async def test_projector_with_a_lost_claim_buries_the_fact(tmp_path: Path) -> None:
    subject, body = _large_fact()
    claim = Claim(sha256="b" * 64, size_bytes=len(body))
    fake = FakeLog([(subject, encode(claim))])
    async with open_archive(tmp_path) as (store, engine):
        await project(fake, store, random.Random(9))
        assert [letter.stream_seq for letter in fake.letters] == [1]
        assert await rows_of(engine, tables.facts) == []


async def test_projector_takes_a_result_with_a_lost_claim_for_an_unreadable_one(
    tmp_path: Path,
) -> None:
    claim = Claim(sha256="b" * 64, size_bytes=5)
    subject = "run.acme.0.RUN.in.result.a.1"
    fake = FakeLog([(subject, encode(claim))])
    async with open_archive(tmp_path) as (store, engine):
        await project(fake, store, random.Random(9))
        facts = await rows_of(engine, tables.facts)
        kept = await rows_of(engine, tables.claims)
    assert fake.letters == []
    assert [fact["body"].encode() for fact in facts] == [encode(claim)]
    assert kept == []


async def test_projector_on_the_archive_of_another_stream_refuses(tmp_path: Path) -> None:
    async with open_archive(tmp_path) as (store, _):
        await store.begin(subjects.RUNS, "2020-01-01T00:00:00Z")
        fake = FakeLog([])
        projector = create_projector(fake, FakeFeed(fake, random.Random(1)), store)
        with pytest.raises(InvariantError, match="archive_of_another_stream"):
            await projector.run()


async def test_projector_of_a_log_that_lost_its_end_refuses(tmp_path: Path) -> None:
    log = random_log(random.Random(16), 3)
    async with open_archive(tmp_path) as (store, _):
        await project(FakeLog(log), store, random.Random(17))
        shorter = FakeLog(log[:-5])
        projector = create_projector(shorter, FakeFeed(shorter, random.Random(1)), store)
        with pytest.raises(InvariantError, match="archive_ahead_of_log"):
            await projector.run()


async def test_projector_beside_another_one_never_writes_twice(tmp_path: Path) -> None:
    log = random_log(random.Random(10), 8)
    async with open_archive(tmp_path) as (store, engine):
        other = open_store(f"sqlite:///{tmp_path / 'archive.db'}")
        await asyncio.gather(
            project(FakeLog(log), store, random.Random(11)),
            project(FakeLog(log), other, random.Random(12)),
        )
        await other.close()
        await assert_archived(engine, log)


async def test_projector_acknowledges_nothing_that_is_not_committed(tmp_path: Path) -> None:
    log = random_log(random.Random(13), 4)
    fake = FakeLog(log)
    async with open_archive(tmp_path) as (store, _):
        feed = FakeFeed(fake, random.Random(14))
        away = FlakyStore(store, random.Random(15), chance=1.0)
        projector = create_projector(fake, feed, away)
        running = asyncio.create_task(projector.run())
        await eventually(lambda: away.asked >= 5, every=0)
        await projector.stop()
        await running
        assert feed.acknowledged == 0
        assert away.commits == 0


def _large_fact() -> Message:
    fact = RunInvoked(
        occurred_at=START,
        name="n",
        kind=DefinitionKind.AGENT,
        version=1,
        plan_digest="d",
        input="x" * 200_000,
    )
    return "run.acme.0.LARGE.in.invoke", fact_bytes(fact)
