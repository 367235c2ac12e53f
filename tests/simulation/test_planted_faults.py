"""The simulation can fail: faults planted in the code under test are found within a few seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from penstock.bus import writer as writer_module
from penstock.bus.consumer import Delivery
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.reconciler import Reconciler
from penstock_orchestrator.engine.runs import RunTable, Slot
from tests.simulation.world import simulate

SEEDS = 900

pytestmark = pytest.mark.timeout(600)  # a busy machine takes its time


def assert_found(*signs: str) -> None:
    """Assert that one of the seeds fails, and says one of these."""
    said: list[str] = []
    for seed in range(SEEDS):
        said += simulate(seed).broken
        if any(sign in text for sign in signs for text in said):
            return
    raise AssertionError(f"{SEEDS} seeds did not find it; they found {said}")


def test_simulation_of_an_engine_that_acknowledges_first_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Engine.on_input
    working: set[asyncio.Task[None]] = set()

    async def acknowledged_first(self: Engine, delivery: Delivery) -> None:
        working.add(task := asyncio.create_task(real(self, delivery)))
        task.add_done_callback(working.discard)

    monkeypatch.setattr(Engine, "on_input", acknowledged_first)
    assert_found("acknowledged before")


def test_simulation_of_decisions_without_a_fence_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., bytes | None] = vars(writer_module)["append_headers"]

    def unfenced(_fence: str | None, *headers: dict[str, str] | None) -> bytes | None:
        return real(None, *headers)

    monkeypatch.setattr(writer_module, "append_headers", unfenced)
    assert_found("first message of decision")


def test_simulation_of_an_engine_that_keeps_its_state_after_a_conflict_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Engine._reload

    async def kept(self: Engine, slot: Slot, *, at_least_seq: int = 0) -> None:
        if slot.state is None and slot.run_id in seen:
            slot.state = seen[slot.run_id]
            return
        await real(self, slot, at_least_seq=at_least_seq)
        seen[slot.run_id] = slot.state

    seen: dict[str, Any] = {}
    monkeypatch.setattr(Engine, "_reload", kept)
    assert_found("a handler failed", "too_many_conflicts", "does not end")


def test_simulation_of_engines_without_a_reconciler_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scan(self: Reconciler, shard: int) -> int:
        return 0

    monkeypatch.setattr(Reconciler, "scan", scan)
    monkeypatch.setattr(RunTable, "due", lambda *_: [])
    monkeypatch.setattr(RunTable, "idle", lambda *_: [])
    assert_found("does not end", "engines keep runs")
