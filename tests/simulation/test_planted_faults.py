"""The simulation can fail: faults planted in the code under test are found within a few seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from penstock.bus import writer as writer_module
from penstock.bus.consumer import Delivery
from penstock.bus.records import Record
from penstock.contracts.facts import StepScheduled
from penstock_orchestrator.core.decisions import Repair
from penstock_orchestrator.engine import engine as engine_module
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.reconciler import Reconciler
from penstock_orchestrator.engine.runs import RunTable, Slot
from tests.simulation.world import Verdict, simulate

SEEDS = 150

pytestmark = pytest.mark.timeout(600)  # a busy machine takes its time


def first_failure() -> Verdict:
    """Return the first of the seeds that fails."""
    for seed in range(SEEDS):
        verdict = simulate(seed)
        if not verdict.ok:
            return verdict
    raise AssertionError(f"{SEEDS} seeds found nothing")


def test_simulation_of_an_engine_that_acknowledges_first_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Engine.on_input
    working: set[asyncio.Task[None]] = set()

    async def acknowledged_first(self: Engine, delivery: Delivery) -> None:
        working.add(task := asyncio.create_task(real(self, delivery)))
        task.add_done_callback(working.discard)

    monkeypatch.setattr(Engine, "on_input", acknowledged_first)
    verdict = first_failure()
    assert any("acknowledged before" in text for text in verdict.broken), verdict.broken


def test_simulation_of_decisions_without_a_fence_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., bytes | None] = vars(writer_module)["header_bytes"]

    def unfenced(record: Record, extra: dict[str, str] | None = None) -> bytes | None:
        return real(replace(record, fence=None), extra)

    monkeypatch.setattr(writer_module, "header_bytes", unfenced)
    verdict = first_failure()
    assert any("first message of decision" in text for text in verdict.broken), verdict.broken


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
    assert first_failure().broken


def test_simulation_of_repairs_by_the_clock_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., list[Repair]] = vars(engine_module)["repair"]

    def later(at: datetime) -> datetime:
        return at + timedelta(seconds=1)

    def drawn_anew(*given: Any) -> list[Repair]:
        found = []
        for missing in real(*given):
            outputs = tuple(
                replace(output, fact=output.fact.model_copy(update={"expires_at": later(at)}))
                for output in missing.outputs
                if isinstance(output.fact, StepScheduled)
                for at in [output.fact.expires_at]
            )
            found.append(Repair(missing.number, outputs))
        return found

    monkeypatch.setattr(engine_module, "repair", drawn_anew)
    verdict = first_failure()
    assert any("repaired differently" in text for text in verdict.broken), verdict.broken


def test_simulation_of_engines_without_a_reconciler_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scan(self: Reconciler, shard: int) -> int:
        return 0

    monkeypatch.setattr(Reconciler, "scan", scan)
    monkeypatch.setattr(RunTable, "due", lambda *_: [])
    assert first_failure().broken
