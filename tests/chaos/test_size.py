"""Many runs in flight while everything is killed and stopped at random, and Postgres goes away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.chaos.archive import Archive
from tests.chaos.blows import Striker, plan_blows
from tests.chaos.crowd import Crowd, Followers, client_of
from tests.chaos.figures import Figures
from tests.chaos.judgement import judge, report
from tests.chaos.rig import CROWD, Rig, Size, chosen_seed, define
from tests.chaos.witness import Witness
from tests.support.postgres import StoppablePostgres, create_database, run_stoppable_postgres
from tests.support.waiting import eventually

NEEDS_POSTGRES = ("projector", "registry")


@pytest.fixture
def postgres() -> Iterator[StoppablePostgres]:
    """A server of this test's own, which it stops."""
    # Not below pytest's own folder: run by root, PostgreSQL works as another user.
    with (
        TemporaryDirectory(prefix="penstock-pg-", ignore_cleanup_errors=True) as directory,
        run_stoppable_postgres(Path(directory)) as server,
    ):
        yield server


@dataclass
class Outage:
    """What happened while Postgres was away."""

    down_at: float
    up_at: float
    caught_up_at: float


async def take_postgres_away(
    server: StoppablePostgres, archive: Archive, witness: Witness, seconds: float
) -> Outage:
    """Stop Postgres for a while; wait until the archive has what the log had by then."""
    down_at = time.time()
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)
    up_at, behind = time.time(), witness.last_seq

    async def caught_up() -> bool:
        return await archive.position() >= behind

    await eventually(caught_up, within=90, every=0.2)
    return Outage(down_at, up_at, time.time())


@pytest.mark.timeout(2400)
async def test_runs_survive_random_blows_and_postgres_away(
    tmp_path: Path, postgres: StoppablePostgres, size: Size, figures: Figures
) -> None:
    seed = chosen_seed()
    chance = random.Random(seed)
    urls = {name: await create_database(postgres.url, name) for name in NEEDS_POSTGRES}
    rig = Rig(tmp_path, size.ledger_concurrency, database_urls=urls)
    archive = Archive(urls["projector"])
    with rig.stack:
        async with client_of(rig.stack.url) as client, Witness(rig.settings) as witness:
            await define(client)
            crowd = Crowd(client, witness, CROWD)
            striker = Striker(rig, witness, crowd, client, archive.position)
            await crowd.fill(size.runs, within=120)
            followers = Followers(client)
            await followers.begin(crowd.accepted[: size.followed])
            blows = plan_blows(chance, rig.names, size.blows)
            began = time.time()
            in_flight = witness.open_runs
            outage: asyncio.Task[Outage] | None = None
            for number, blow in enumerate(blows):
                if number == size.blows // 4:
                    outage = asyncio.create_task(
                        take_postgres_away(postgres, archive, witness, size.postgres_down_seconds)
                    )
                if blow.target in NEEDS_POSTGRES and outage is not None and not outage.done():
                    # What needs Postgres cannot move without it: that is measured by itself.
                    await outage
                if blow.target == "gateway":
                    await followers.begin(crowd.accepted[-size.followed // 4 :])
                    await followers.begin_open(crowd.accepted)
                await striker.strike(blow)
            assert outage is not None
            away = await outage
            over = time.time()
            await crowd.close(within=300)
            transcripts = await followers.end()
            found = await judge(rig, crowd.accepted, transcripts, striker.havoc, archive)
        await archive.close()

    name = f"one server, seed {seed}"
    during = sum(away.down_at <= at <= away.up_at for at in witness.ended.values())
    figures.add(name, "in flight at the first blow", in_flight)
    report(figures, name, found, striker.struck, witness, rig, (began, over))
    figures.add(name, "Postgres away", f"{away.up_at - away.down_at:.1f} s")
    figures.add(name, "runs ended meanwhile", during)
    figures.add(name, "archive caught up after", f"{away.caught_up_at - away.up_at:.1f} s")
    found.require_clean()
    assert in_flight >= 0.9 * size.runs
    assert len({run.run_id for run in crowd.accepted}) == len(crowd.accepted) == len(witness.ended)
    assert during > 0, "no run ended without Postgres: no proof"
    assert any(transcript.connections > 1 for transcript in transcripts), "nobody was cut off"
    assert found.repetitions.total > 0, "nothing was ever repeated: no proof"
