"""Tenants whose expressions cost much take turns."""

from __future__ import annotations

from penstock_orchestrator.core.walk import MOST_WORK
from penstock_orchestrator.engine.shares import WorkShares


def test_light_decisions_owe_nothing() -> None:
    shares: WorkShares[str] = WorkShares()
    for _ in range(1000):
        shares.spend("acme", MOST_WORK // 20)
    assert shares.debts == {}
    assert shares.pop() is None


def test_tenants_that_owe_are_decided_in_turn_and_their_runs_first_come_first_served() -> None:
    shares: WorkShares[str] = WorkShares()
    for tenant in ("acme", "globex"):
        shares.spend(tenant, MOST_WORK)
    for waiting in ("a1", "a2", "a3", "a1"):
        shares.wait("acme", waiting)
    shares.wait("globex", "g1")

    order: list[str] = []
    while (run := shares.pop()) is not None:
        order.append(run)
        shares.spend("acme" if run.startswith("a") else "globex", MOST_WORK)

    assert order == ["a1", "g1", "a2", "a3"]


def test_tenant_that_owes_more_waits_while_another_is_decided() -> None:
    shares: WorkShares[str] = WorkShares()
    shares.spend("acme", 4 * MOST_WORK)
    assert shares.debts["acme"] == 4 * MOST_WORK
    shares.spend("globex", MOST_WORK)
    shares.wait("acme", "a")
    for waiting in ("g1", "g2", "g3"):
        shares.wait("globex", waiting)

    order: list[str] = []
    while (run := shares.pop()) is not None:
        order.append(run)
        if run != "a":
            shares.spend("globex", MOST_WORK)

    assert order == ["g1", "g2", "g3", "a"]
    assert "acme" not in shares.debts


def test_run_that_is_dropped_is_not_decided() -> None:
    shares: WorkShares[str] = WorkShares()
    shares.spend("acme", MOST_WORK)
    shares.wait("acme", "a")
    shares.drop("acme", "a")
    shares.drop("acme", "never queued")
    assert shares.pop() is None
