"""Waiting runs: their memory and the engine's CPU, and the latency of other runs beside them.

    python -m bench.waiting --runs 20000 --seconds 150

Starts a stack, leaves runs at a wait for a signal, and then measures.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.client import Client
from bench.machine import cpu_seconds, memory
from bench.stack import PenstockStack, penstock_stack

_IN_FLIGHT: Final = 64
_PAUSE_SECONDS: Final = 0.1
_SETTLE_SECONDS: Final = 20.0
"""Longer than the engine keeps the states of waiting runs."""


def documents() -> list[dict[str, Any]]:
    """Return a workflow that waits for a signal, and one with one step."""

    def workflow(name: str, step: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "penstock/v1",
            "kind": "Workflow",
            "metadata": {"name": name},
            "spec": {"steps": [step]},
        }

    noop = {
        "apiVersion": "penstock/v1",
        "kind": "Tool",
        "metadata": {"name": "noop"},
        "spec": {"builtin": {}},
    }
    wait = workflow("bench-wait", {"id": "w", "wait": {"signal": {"name": "go"}, "timeout": "20d"}})
    return [noop, wait, workflow("bench-one", {"id": "s", "tool": "noop", "input": {"n": 1}})]


def measured(stack: PenstockStack) -> dict[str, int]:
    """Return the process ids of engine and bus."""
    processes = stack.processes()
    return {name: processes[name] for name in ("engine", "nats-server")}


async def start_runs(client: Client, runs: int) -> None:
    """Start waiting runs, some at a time."""
    for first in range(0, runs, _IN_FLIGHT):
        count = min(_IN_FLIGHT, runs - first)
        body = {"name": "bench-wait", "input": None}
        await asyncio.gather(*(client.call("POST", "/v1/runs", body) for _ in range(count)))


async def latencies(client: Client, seconds: float) -> list[float]:
    """Return the times of single runs in milliseconds, one at a time for so many seconds."""
    found: list[float] = []
    body = {"name": "bench-one", "input": None}
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        began = time.perf_counter()
        await client.call("POST", "/v1/runs", body, {"Prefer": "wait=30"})
        found.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(_PAUSE_SECONDS)
    return sorted(found)


async def engine_share(stack: PenstockStack, client: Client, seconds: float) -> float:
    """Print the latency of single runs, and return the engine's share of a core meanwhile."""
    before = cpu_seconds(measured(stack))["engine"]
    times = await latencies(client, seconds)
    share = 100 * (cpu_seconds(measured(stack))["engine"] - before) / seconds
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    print(f"  {len(times)} other runs: p50 {p50:.1f} ms, p99 {p99:.1f} ms; engine {share:.1f}%")
    return share


async def measure(stack: PenstockStack, runs: int, seconds: float) -> None:
    """Print the figures: before, and with the waiting runs, which start in two halves.

    Memory is the growth over the whole, and over the second half alone: that fits into what the
    evicted states of the first half have left free in the engine.
    """
    async with Client(stack.http_port) as client:
        await client.call("POST", "/v1/apply", {"documents": documents(), "publish": True})
        await latencies(client, 2)
        print("without waiting runs:")
        idle = await engine_share(stack, client, 30)
        empty = memory(measured(stack))
        await start_runs(client, runs // 2)
        await asyncio.sleep(_SETTLE_SECONDS)
        before = memory(measured(stack))
        await start_runs(client, runs - runs // 2)
        await asyncio.sleep(_SETTLE_SECONDS)
        after = memory(measured(stack))
        print(f"with {runs} waiting runs:")
        busy = await engine_share(stack, client, seconds)
    print(f"engine: {busy - idle:.1f}% of a core for the waiting runs")
    for name in after:
        whole = 1024 * (after[name].pss_mb - empty[name].pss_mb) / runs
        half = 1024 * (after[name].pss_mb - before[name].pss_mb) / (runs - runs // 2)
        print(f"{name}: {whole:.1f} KiB per waiting run, {half:.1f} of the second half")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=150.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="penstock-waiting-") as folder,
        penstock_stack(Path(folder), durable=False) as stack,
    ):
        asyncio.run(measure(stack, options.runs, options.seconds))


if __name__ == "__main__":
    main()
