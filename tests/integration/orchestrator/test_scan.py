"""The search for open runs, when the bus does not answer it at first."""

from __future__ import annotations

import pytest

from penstock.contracts.errors import TransientError
from penstock_orchestrator import main
from penstock_orchestrator.engine.reconciler import Reconciler
from tests.integration.orchestrator.conftest import CreateWorld
from tests.support.waiting import eventually


async def test_scan_of_a_won_shard_is_repeated_until_it_succeeds(
    create_world: CreateWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    done: list[int] = []
    scan = Reconciler.scan

    async def scan_at_the_second_time(reconciler: Reconciler, shard: int) -> int:
        tried.append(shard)
        if tried.count(shard) == 1:
            raise TransientError("bus_unavailable", "no leader yet")
        found = await scan(reconciler, shard)
        done.append(shard)
        return found

    monkeypatch.setattr(main, "_SCAN_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(Reconciler, "scan", scan_at_the_second_time)
    engine = await (await create_world()).start_engine()

    await eventually(lambda: engine.leases.held and set(done) == set(engine.leases.held))
