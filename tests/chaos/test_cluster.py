"""Three servers, streams of three replicas: leaders killed, then cut off, under load."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.archive import Archive
from tests.chaos.blows import (
    PATIENCE_SECONDS,
    UNDER_WAY_SECONDS,
    Blow,
    Striker,
    Struck,
    announce,
    plan_blows,
)
from tests.chaos.crowd import Crowd, Followers, client_of
from tests.chaos.figures import Figures, spread
from tests.chaos.judgement import judge, report
from tests.chaos.rig import CROWD, Rig, Size, chosen_seed, define
from tests.chaos.verdict import Span
from tests.chaos.witness import Witness
from tests.support.cluster import Cluster, Node
from tests.support.waiting import eventually

DEAD_SECONDS = 3.0
ISOLATED_SECONDS = 12.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster") as running:
        yield running


class NodeStriker:
    """Deals blows to the servers of the cluster; waits until runs move and the server is back."""

    def __init__(self, cluster: Cluster, striker: Striker) -> None:
        self._cluster = cluster
        self._striker = striker
        self.rejoined_seconds: list[float] = []

    async def strike(self, blow: Blow) -> None:
        """Hit the server that has the role of ``blow.target``: ``RUNS leader``, ..."""
        node = await self._node(blow.target)
        blow = Blow(f"{node.name}, {blow.target}", blow.kind, blow.seconds)
        announce(blow)
        at = time.time()
        struck = Struck(blow, at, 0, at)
        if blow.kind == "kill":
            node.kill()
        else:
            await asyncio.to_thread(self._cluster.isolate, node)
        moving = asyncio.create_task(self._moves(struck))
        await asyncio.sleep(blow.seconds)
        if blow.kind == "kill":
            node.start()
        else:
            await asyncio.to_thread(self._cluster.heal, node)
        back_at = time.time()
        await moving
        await eventually(
            lambda: asyncio.to_thread(lambda: self._cluster.healthy),
            within=PATIENCE_SECONDS,
            every=0.2,
        )
        self.rejoined_seconds.append(time.time() - back_at)
        self._striker.havoc.bus.append(Span(at, time.time()))
        self._striker.struck.append(struck)

    async def _moves(self, struck: Struck) -> None:
        since = struck.at + UNDER_WAY_SECONDS
        moved_at = await eventually(
            lambda: self._striker.everything_since(since), within=PATIENCE_SECONDS, every=0.1
        )
        assert moved_at is not None
        struck.recovered_at = moved_at

    async def _node(self, role: str) -> Node:
        leader = await eventually(
            lambda: asyncio.to_thread(self._cluster.stream_leader), within=30, every=0.2
        )
        assert leader is not None
        if role == "RUNS leader":
            return leader
        if role == "RUNS follower":
            return next(node for node in self._cluster.nodes if node is not leader)
        meta = await eventually(
            lambda: asyncio.to_thread(self._cluster.meta_leader), within=30, every=0.2
        )
        assert meta is not None
        return meta


def plan_round(chance: random.Random, services: list[str], *, full: bool) -> list[Blow]:
    """Return the blows of one round: the servers in order, a service between two of them."""
    servers = [
        Blow("RUNS leader", "kill", DEAD_SECONDS),
        Blow("RUNS leader", "isolate", ISOLATED_SECONDS),
    ]
    if full:
        servers += [
            Blow("meta leader", "kill", DEAD_SECONDS),
            Blow("RUNS follower", "isolate", ISOLATED_SECONDS),
            Blow("meta leader", "isolate", ISOLATED_SECONDS),
        ]
    others = plan_blows(chance, services, len(servers))
    return [blow for pair in zip(servers, others, strict=True) for blow in pair]


@pytest.mark.timeout(1800)
async def test_runs_survive_a_cluster_losing_leaders_and_links(
    tmp_path: Path, cluster: Cluster, size: Size, figures: Figures
) -> None:
    seed = chosen_seed()
    chance = random.Random(seed)
    print(f"partition by {cluster.partition}")  # noqa: T201 - which of both it was
    rig = Rig(
        tmp_path,
        size.ledger_concurrency,
        nats_url=cluster.url,
        streams_replicas=len(cluster.nodes),
    )
    rig.stack.start(within=120)
    archive = Archive(f"sqlite:///{rig.stack.state.data_dir}/archive.db")
    try:
        async with client_of(rig.stack.url) as client, Witness(rig.settings) as witness:
            await define(client)
            crowd = Crowd(client, witness, CROWD)
            striker = Striker(rig, witness, crowd, client, archive.position)
            nodes = NodeStriker(cluster, striker)
            await crowd.fill(size.cluster_runs, within=120)
            followers = Followers(client)
            await followers.begin(crowd.accepted[: size.followed])
            in_flight, began = witness.open_runs, time.time()
            services = [name for name in rig.names if name != "nats-server"]
            for _ in range(size.cluster_rounds):
                for blow in plan_round(chance, services, full=size.cluster_rounds > 1):
                    if blow.target in services:
                        await striker.strike(blow)
                    else:
                        await nodes.strike(blow)
            over = time.time()
            await crowd.close(within=300)
            transcripts = await followers.end()
            found = await judge(rig, crowd.accepted, transcripts, striker.havoc, archive)
    finally:
        await archive.close()
        rig.stack.stop()

    name = f"three servers, seed {seed}"
    figures.add(name, "partition by", cluster.partition)
    figures.add(name, "in flight at the first blow", in_flight)
    report(figures, name, found, striker.struck, witness, rig, (began, over))
    figures.add(name, "servers up to date after p50 / p99 / max", spread(nodes.rejoined_seconds))
    found.require_clean()
    assert len({run.run_id for run in crowd.accepted}) == len(crowd.accepted) == len(witness.ended)
