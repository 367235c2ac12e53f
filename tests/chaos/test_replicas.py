"""Two of each service at work: what each engine did, and that one's death loses nothing."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.child import http_get
from penstock.stack import SERVICES
from tests.chaos.archive import Archive
from tests.chaos.blows import Blow, Striker
from tests.chaos.crowd import Crowd, Followers, client_of
from tests.chaos.figures import Figures
from tests.chaos.judgement import judge, report
from tests.chaos.rig import CROWD, SHARDS, Rig, Size, define
from tests.chaos.witness import Witness
from tests.support.postgres import create_database
from tests.support.waiting import eventually

ENGINES = ("engine", "engine-2")
EVERY_SECONDS = 0.5
DECISIONS = "penstock_engine_decisions_total"
ACKED = "penstock_bus_deliveries_totalack"
"""Name and outcome."""


class Counts:
    """What each replica says it did, over the deaths of its processes."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._ports = {name: rig.metrics_port(name) for name in ENGINES}
        self._latest: dict[tuple[str, int], dict[str, float]] = {}
        self.shards: dict[str, int] = {}

    async def keep(self) -> None:
        """Ask again and again; what a process said last before its death is kept."""
        while True:
            await self.ask()
            await asyncio.sleep(EVERY_SECONDS)

    async def ask(self) -> None:
        """Ask every engine once."""
        for name, port in self._ports.items():
            pid = self._rig.stack.state.processes[name].pid
            status, body = await asyncio.to_thread(http_get, port, "/metrics")
            if status != 200 or pid is None:
                continue
            found: dict[str, float] = defaultdict(float)
            for family in text_string_to_metric_families(body.decode()):
                for sample in family.samples:
                    if sample.labels.get("consumer", "engine").startswith("engine"):
                        found[sample.name + sample.labels.get("outcome", "")] += sample.value
            self._latest[name, pid] = found
            self.shards[name] = int(found["penstock_engine_shards"])

    def halved(self) -> bool:
        """Tell whether each engine has half of the shards."""
        return all(self.shards.get(name) == SHARDS // 2 for name in ENGINES)

    def total(self, name: str, metric: str) -> int:
        """Return what all processes of a replica did together."""
        return int(sum(c[metric] for (of, _), c in self._latest.items() if of == name))


@pytest.mark.timeout(900)
async def test_two_of_each_service_share_the_work_and_lose_nothing(
    tmp_path: Path, postgres_url: str, size: Size, figures: Figures
) -> None:
    node_record = f"{time.time_ns():x}"
    urls = {
        name: await create_database(postgres_url, f"{name}_{node_record}")
        for name in ("projector", "registry")
    }
    pairs = tuple(service.name for service in SERVICES)
    rig = Rig(tmp_path, size.ledger_concurrency, replicated=pairs, database_urls=urls)
    archive = Archive(urls["projector"])
    with rig.stack:
        async with client_of(rig.stack.url) as client, Witness(rig.settings) as witness:
            await define(client)
            counts = Counts(rig)
            counting = asyncio.create_task(counts.keep())
            await eventually(counts.halved, within=30)
            crowd = Crowd(client, witness, CROWD)
            striker = Striker(rig, witness, crowd, client, archive.position)
            await crowd.fill(size.runs // 2, within=120)
            followers = Followers(client)
            await followers.begin(crowd.accepted[: size.followed])
            began = time.time()
            await _work(witness, size.replica_seconds / 2)
            peaceful = {name: counts.total(name, DECISIONS) for name in ENGINES}
            for name in ("engine-2", "projector-2", "registry-2", "agent-runner-2"):
                await striker.strike(Blow(name, "kill"))
            await _work(witness, size.replica_seconds / 2)
            over = time.time()
            await crowd.close(within=300)
            await counts.ask()
            counting.cancel()
            transcripts = await followers.end()
            found = await judge(rig, crowd.accepted, transcripts, striker.havoc, archive)
    await archive.close()

    name = "two of each service"
    report(figures, name, found, striker.struck, witness, rig, (began, over))
    for engine in ENGINES:
        messages, decisions = counts.total(engine, ACKED), counts.total(engine, DECISIONS)
        figures.add(name, f"{engine}: inputs / decisions", f"{messages} / {decisions}")
    found.require_clean()
    assert len({run.run_id for run in crowd.accepted}) == len(crowd.accepted) == len(witness.ended)
    assert all(peaceful.values()), "one engine did nothing"


async def _work(witness: Witness, seconds: float) -> None:
    """Let the stack work; it must end runs meanwhile."""
    ended = len(witness.ended)
    await asyncio.sleep(seconds)
    assert len(witness.ended) > ended
