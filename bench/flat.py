"""Does a full log cost more: W2 on a stack with a new log and on one whose log was filled.

Two stacks side by side, measured in turns, so that a slow minute of the machine hits both; the
one that is not measured is idle.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.figures import Results, Row
from bench.filler import Filler, read_history
from bench.machine import quiet
from bench.options import Options
from bench.session import Session, open_session
from bench.stack import stored_facts
from bench.workloads import WORKLOADS, Workload, first_run

TURNS: Final = 5
RUNS: Final = 2500
"""Of each phase: few enough that the new log stays small."""

FILL_DRAIN_SECONDS: Final = 1200.0


async def measure_flat(options: Options, sync: str, results: Results, folder: Path) -> None:
    """Add the rows of all phases, and one with the ratio of their medians."""
    workload = replace(WORKLOADS["W2"], runs=RUNS).scaled(options.scale)
    async with (
        open_session(options, sync, results, folder / "empty") as empty,
        open_session(options, sync, results, folder / "full") as full,
    ):
        filling = await _fill(full, round(options.facts * options.scale))
        rows = await _take_turns(options, empty, full, workload)
        facts = await stored_facts(full.bus)
    for row in (*rows[empty], *rows[full]):
        results.add(row)
    results.add(
        full.heading("flat") | _compare(rows[empty], rows[full]) | filling | {"facts": facts}
    )


async def _fill(session: Session, facts: int) -> Row:
    """Fill a log with copies of a run until it holds ``facts`` and everybody has read them."""
    history = await read_history(session.bus, session.settings, await first_run(session.client))
    missing = max(0, facts - await stored_facts(session.bus))
    begun = time.perf_counter()
    await Filler(session.bus, session.settings, history).fill(missing)
    filled = time.perf_counter()
    left = await session.drain(FILL_DRAIN_SECONDS)
    return {
        "fill_facts_s": round(missing / (filled - begun)),
        "fill_drain_s": round(time.perf_counter() - filled, 1),
        "fill_backlog_left": left,
    }


async def _take_turns(
    options: Options, empty: Session, full: Session, workload: Workload
) -> dict[Session, list[Row]]:
    rows: dict[Session, list[Row]] = {empty: [], full: []}

    def processes() -> dict[str, int]:
        named = {f"empty {name}": pid for name, pid in empty.stack.processes().items()}
        return named | full.stack.processes()

    async with quiet(processes, options.quiet_wait_seconds):
        for session in (empty, full):
            await session.warm_up(workload)
        for _ in range(TURNS):
            rows[empty].append(await empty.phase(workload, "flat-empty"))
            rows[full].append(await full.phase(workload, "flat-full"))
    return rows


def _compare(empty: Sequence[Row], full: Sequence[Row]) -> Row:
    before, after = _median(empty, "runs_s"), _median(full, "runs_s")
    return {
        "concurrency": empty[0]["concurrency"],
        "workers": 1,
        "errors": sum(int(row["errors"]) for row in (*empty, *full)),
        "empty_runs_s": before,
        "full_runs_s": after,
        "ratio": round(after / max(0.01, before), 3),
        "empty_cpu_s_per_1k_runs": _median(empty, "cpu_s_per_1k_runs"),
        "full_cpu_s_per_1k_runs": _median(full, "cpu_s_per_1k_runs"),
    }


def _median(rows: Sequence[Row], key: str) -> float:
    return statistics.median(float(row[key]) for row in rows)
