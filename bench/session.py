"""One stack under measurement: its start, then a workload at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.client import Client
from bench.figures import PEER, VARIANTS, Phase, Results, Row, figures, heading_of, measured
from bench.load import Outcome, closed_loop
from bench.machine import cpu_seconds, memory, quiet
from bench.options import ROOT, Options
from bench.profiler import recorded
from bench.stack import PenstockStack, backlog, penstock_stack, stored_facts
from bench.workloads import Workload, apply, first_run, runs_of
from penstock.bus.connection import Bus, connect
from penstock.settings import CoreSettings

WARM_UP_SECONDS: Final = 15.0
DRAIN_SECONDS: Final = 120.0
_SETTLE_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A running stack, a client of it, and a look at its bus; ``open_session`` makes one."""

    options: Options
    sync: str
    results: Results
    stack: PenstockStack
    client: Client
    bus: Bus
    settings: CoreSettings

    async def idle(self) -> None:
        """Add a row about the start, and about the memory one second after the first run."""
        start_cpu = sum(cpu_seconds(self.stack.processes()).values())
        await first_run(self.client)
        cold_start = time.perf_counter() - self.stack.started_at
        await asyncio.sleep(1.0)
        used = memory(self.stack.processes())
        row = self.heading("idle") | {
            "workers": 1,
            "ready_s": round(self.stack.ready_seconds, 2),
            "cold_start_s": round(cold_start, 2),
            "start_cpu_s": round(start_cpu, 2),
            "procs": len(used),
            "rss_mb": round(sum(process.rss_mb for process in used.values()), 1),
            "pss_mb": round(sum(process.pss_mb for process in used.values()), 1),
            "rss_mb_by_process": {name: process.rss_mb for name, process in used.items()},
            "pss_mb_by_process": {name: process.pss_mb for name, process in used.items()},
        }
        self.results.add(row)

    async def measure(self, workload: Workload) -> None:
        """Warm up, measure one phase on a quiet machine, add its row."""
        async with self._quiet():
            await self.warm_up(workload)
            row = await self.phase(workload, workload.name)
        self.results.add(row)

    async def warm_up(self, workload: Workload) -> None:
        """Do some runs outside the measurement."""
        # What fails here fails in the measured phase as well, and is counted there.
        run = runs_of(self.client, workload).run
        await closed_loop(run, workload.warm_up, workload.in_flight, max_seconds=WARM_UP_SECONDS)
        await self.drain(DRAIN_SECONDS)
        await asyncio.sleep(_SETTLE_SECONDS)

    async def phase(self, workload: Workload, name: str) -> Row:
        """Measure one phase and return its row, under ``name``."""
        runs = runs_of(self.client, workload)

        async def load() -> Outcome:
            return await closed_loop(runs.run, workload.runs, workload.in_flight)

        with self._profile(name):
            phase = await measured(load, self.stack.processes)
        row = self.heading(name) | figures(workload, phase) | runs.figures(phase.outcome.seconds)
        return row | await self._afterwards(phase)

    async def _afterwards(self, phase: Phase) -> Row:
        """Wait until nothing lags behind; what that costs belongs to the runs as well."""
        names = self.stack.processes()
        behind = await backlog(self.bus)
        before, begun = cpu_seconds(names), time.perf_counter()
        left = await self.drain(DRAIN_SECONDS)
        after, ended = cpu_seconds(names), time.perf_counter()
        cpu = sum(phase.cpu.values()) + sum(after.values()) - sum(before.values())
        return {
            "drained_cpu_s_per_1k_runs": round(1e3 * cpu / max(1, len(phase.outcome.latencies)), 3),
            "drain_s": round(ended - begun, 2),
            "backlog": behind,
            "backlog_left": left,
            "facts": await stored_facts(self.bus),
            "restarts": self.stack.restarts,
        }

    async def drain(self, within: float) -> dict[str, int]:
        """Wait until every durable has taken in the whole log; return the remaining lag."""
        deadline = time.monotonic() + within
        while waiting := await backlog(self.bus):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        return waiting

    # -- surroundings --------------------------------------------------------------------------

    def heading(self, workload: str) -> Row:
        """Return the keys that identify a row."""
        row = heading_of(PEER, VARIANTS[self.sync], workload, self.sync)
        return row if self.options.profile is None else row | {"profiled": self.options.profile}

    def _quiet(self) -> contextlib.AbstractAsyncContextManager[None]:
        return quiet(self.stack.processes, self.options.quiet_wait_seconds)

    def _profile(self, name: str) -> contextlib.AbstractContextManager[None]:
        process = self.options.profile
        if process is None:
            return contextlib.nullcontext()
        file = ROOT / "bench/out" / f"{process}-{name}-{VARIANTS[self.sync]}.folded"
        return recorded(self.stack.processes()[process], file)


@contextlib.asynccontextmanager
async def open_session(
    options: Options, sync: str, results: Results, data_dir: Path
) -> AsyncIterator[Session]:
    """Start a stack in an empty folder and apply the definitions; end all of it afterwards."""
    async with contextlib.AsyncExitStack() as opened:
        async with quiet(dict, options.quiet_wait_seconds):
            stack = opened.enter_context(penstock_stack(data_dir, durable=sync == "always"))
            client = await opened.enter_async_context(Client(stack.http_port))
            await apply(client)
            settings = CoreSettings(nats_url=stack.nats_url)
            bus = await connect(settings, name="bench")
            opened.push_async_callback(bus.close)
        yield Session(options, sync, results, stack, client, bus, settings)
