"""What the engine's language costs: maps, timers, a second engine, the archive beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from bench.figures import Row
from bench.load import closed_loop, quantile
from bench.machine import cpu_seconds
from bench.session import DRAIN_SECONDS, Session
from bench.workloads import TIMER_SHAPES, WORKLOADS, Workload, runs_of
from penstock.bus.claims import Claims
from penstock.bus.reader import LogReader, Stored
from penstock.child import die_with_parent
from penstock.contracts import subjects
from penstock.contracts.ids import shard_of

MAP_ITEMS: Final = (1000, 2000, 5000, 10_000)
TIMERS: Final = 50_000
TIMER_LEAD_SECONDS: Final = 75.0
"""How long before the common moment the runs are started."""
TURNS: Final = 4
ARCHIVE_RUNS: Final = 3000
_END_SECONDS: Final = 300.0
_SAMPLE_SECONDS: Final = 0.2
_VERSION: Final = "penstock/v1"
_FRACTION: Final = re.compile(r"(\.\d{6})\d+")


def _workflow(name: str, step: dict[str, Any], output: str | None = None) -> dict[str, Any]:
    mapped = {"id": "each", "map": {"over": "input.items", "steps": [step]}}
    spec: dict[str, Any] = {"steps": [mapped], "output": output or "{{ steps.each.output }}"}
    spec["timeout_seconds"] = 3600
    return {
        "apiVersion": _VERSION,
        "kind": "Workflow",
        "metadata": {"name": name},
        "spec": spec,
    }


def documents() -> list[dict[str, Any]]:
    """Return the definitions that are measured here."""
    step = {"id": "work", "tool": "noop", "input": {"number": "{{ item }}"}}
    nap = {"id": "nap", "wait": {"until": "{{ input.until }}"}}
    return [
        _workflow("bench-map", step),
        _workflow("bench-timers", nap, "{{ size(steps.each.output) }}"),
    ]


@contextlib.asynccontextmanager
async def _ends(session: Session) -> AsyncIterator[Callable[[str], Awaitable[float]]]:
    """A client that waits for ends of runs on the bus; returns when each was published."""
    seen: dict[str, asyncio.Future[float]] = {}

    def of(run_id: str) -> asyncio.Future[float]:
        return seen.setdefault(run_id, asyncio.get_running_loop().create_future())

    async def note(message: Any) -> None:
        future = of(message.subject.split(".")[4])
        if not future.done():
            future.set_result(time.perf_counter())

    subscription = await session.bus.nc.subscribe(subjects.LIVE_ENDS, cb=note)

    async def wait(run_id: str) -> float:
        return await asyncio.wait_for(of(run_id), _END_SECONDS)

    try:
        yield wait
    finally:
        await subscription.unsubscribe()


async def _start(session: Session, name: str, given: dict[str, Any]) -> str:
    view = await session.client.call("POST", "/v1/runs", {"name": name, "input": given})
    return str(view["run_id"])


def _peak_mb(pid: int) -> float:
    """Return the most memory that a process has had resident, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024, 1)


async def measure_language(session: Session, workloads: tuple[str, ...], scale: float) -> None:
    """Add the rows of those workloads that are asked for."""
    await session.client.call("POST", "/v1/apply", {"documents": documents(), "publish": True})
    if "map" in workloads:
        await _map(session, scale)
    for shape, runs in TIMER_SHAPES.items():
        if shape in workloads:
            await _timers(session, shape, max(1, round(runs * scale)), round(TIMERS * scale))
    if "archive" in workloads:
        await _archive(session, scale)
    if "replicas" in workloads:
        await _replicas(session, scale)


# -- maps ----------------------------------------------------------------------------------------


async def _map(session: Session, scale: float) -> None:
    """Run maps over more and more items, one at a time."""
    seconds: dict[int, float] = {}
    async with _ends(session) as end_of:
        for items in (round(each * scale) for each in (MAP_ITEMS[0], *MAP_ITEMS)):
            pid = session.stack.processes()["engine"]
            before = cpu_seconds({"engine": pid})["engine"]
            begun = time.perf_counter()
            run_id = await _start(session, "bench-map", {"items": list(range(items))})
            took = await end_of(run_id) - begun
            cpu = cpu_seconds({"engine": pid})["engine"] - before
            right = await _map_is_right(session, run_id, items)
            seconds[items] = took
            row = session.heading("map") | {
                "items": items,
                "workers": 1,
                "errors": 0 if right else 1,
                "seconds": round(took, 3),
                "steps_s": round(items / took),
                "engine_cpu_us_per_item": round(1e6 * cpu / items),
                "engine_peak_mb": _peak_mb(pid),
            }
            session.results.add(row)
            await session.drain(DRAIN_SECONDS)
    small, large = min(seconds), max(seconds)
    session.results.add(
        session.heading("map-linear")
        | {
            "workers": 1,
            "errors": 0,
            "items": large,
            "ratio": round(seconds[large] / large / (seconds[small] / small), 2),
        }
    )


async def _map_is_right(session: Session, run_id: str, items: int) -> bool:
    view = await session.client.call("GET", f"/v1/runs/{run_id}", None)
    return bool(view["output"] == [{"number": number} for number in range(items)])


# -- timers --------------------------------------------------------------------------------------


async def _timers(session: Session, shape: str, runs: int, timers: int) -> None:
    """Let many waits come due at one moment; return how late each was settled."""
    lead = TIMER_LEAD_SECONDS
    due_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=lead)
    given = {"items": list(range(timers // runs)), "until": due_at.isoformat()}
    async with _ends(session) as end_of:
        begun = time.perf_counter()
        started: list[str] = []
        for first in range(0, runs, 32):
            starts = (
                _start(session, "bench-timers", given) for _ in range(first, min(first + 32, runs))
            )
            started += await asyncio.gather(*starts)
        await asyncio.gather(*(end_of(run_id) for run_id in started))
        took = time.perf_counter() - begun
    late, set_late = await _lateness(session, started)
    session.results.add(
        session.heading(shape)
        | {
            "workers": 1,
            "runs": runs,
            "timers": len(late),
            "errors": timers // runs * runs - len(late),
            "late_p50_s": round(quantile(late, 0.50), 3),
            "late_p99_s": round(quantile(late, 0.99), 3),
            "late_max_s": round(max(late, default=0.0), 3),
            "set_after_due": set_late,
            "seconds": round(took, 1),
        }
    )
    await session.drain(DRAIN_SECONDS)


async def _lateness(session: Session, run_ids: list[str]) -> tuple[list[float], int]:
    """Read from the logs how long after its moment each wait was settled, by the server's clock."""
    reader = LogReader(session.bus, Claims(session.bus, session.settings.claim_threshold_bytes))
    late: list[float] = []
    set_late = 0
    for run_id in run_ids:
        begun: dict[str, tuple[datetime, datetime]] = {}
        for message in await reader.stored(
            "default", shard_of(run_id, session.settings.shards), run_id
        ):
            stored_at = _stored_at(message)
            decision = getattr((await reader.entry(message)).fact, "decision", None)
            for node_record in decision.node_records if decision is not None else ():
                if node_record.kind != "wait":
                    continue
                if node_record.status == "open" and node_record.due_at is not None:
                    begun[node_record.record_id] = (stored_at, node_record.due_at)
                elif node_record.record_id in begun or node_record.due_at is not None:
                    set_at, due_at = begun.get(
                        node_record.record_id, (stored_at, node_record.due_at or stored_at)
                    )
                    late.append(max(0.0, (stored_at - due_at).total_seconds()))
                    set_late += set_at > due_at
    return late, set_late


def _stored_at(message: Stored) -> datetime:
    """Return when the server stored a message."""
    text = _FRACTION.sub(r"\1", message.headers["Nats-Time-Stamp"].replace("Z", "+00:00"))
    return datetime.fromisoformat(text)


# -- the archive beside the engine ---------------------------------------------------------------


async def _archive(session: Session, scale: float) -> None:
    """W2 with the projector at work and with it stopped, in turns; its lag meanwhile."""
    workload = replace(WORKLOADS["W2"], runs=ARCHIVE_RUNS).scaled(scale)
    await session.warm_up(workload)
    rates: dict[bool, list[float]] = {True: [], False: []}
    lags: list[float] = []
    for _ in range(TURNS):
        for at_work in (True, False):
            with _stopped(session, stopped=not at_work):
                sampler = asyncio.create_task(_sample_lag(session, lags if at_work else []))
                row = await _rate(session, workload)
                sampler.cancel()
            rates[at_work].append(row)
            await session.drain(DRAIN_SECONDS)
    beside, alone = (statistics.median(rates[at_work]) for at_work in (True, False))
    session.results.add(
        session.heading("archive")
        | {
            "workers": 1,
            "errors": 0,
            "runs_s": round(beside, 1),
            "runs_s_without": round(alone, 1),
            "cost_percent": round(100 * (1 - beside / alone), 1),
            "lag_p50_s": round(quantile(lags, 0.5), 3),
            "lag_p99_s": round(quantile(lags, 0.99), 3),
            "lag_max_s": round(max(lags, default=0.0), 3),
        }
    )


async def _rate(session: Session, workload: Workload) -> float:
    outcome = await closed_loop(
        runs_of(session.client, workload).run, workload.runs, workload.in_flight
    )
    if outcome.errors:
        raise RuntimeError(outcome.errors[0])
    return len(outcome.latencies) / outcome.seconds


@contextlib.contextmanager
def _stopped(session: Session, *, stopped: bool) -> Iterator[None]:
    pid = session.stack.processes()["projector"]
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if stopped:
            os.kill(pid, signal.SIGCONT)


async def _sample_lag(session: Session, lags: list[float]) -> None:
    port = session.stack.metrics_port("projector")
    async with httpx.AsyncClient() as client:
        while True:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
            lags += [
                float(line.split()[1])
                for line in answer.text.splitlines()
                if line.startswith("penstock_projector_lag_seconds ")
            ]
            await asyncio.sleep(_SAMPLE_SECONDS)


# -- a second engine -----------------------------------------------------------------------------


async def _replicas(session: Session, scale: float) -> None:
    """W2 with one engine and with two; what each has decided."""
    workload = replace(WORKLOADS["W2"], runs=ARCHIVE_RUNS).scaled(scale)
    await session.warm_up(workload)
    for engines in (1, 2, 1, 2):
        with _second_engine(session, wanted=engines == 2) as port:
            ports = [session.stack.metrics_port("engine"), *([port] if port else [])]
            if port:
                await _until_balanced(port)
            before = [await _decisions(each) for each in ports]
            rate = await _rate(session, workload)
            after = [await _decisions(each) for each in ports]
        session.results.add(
            session.heading("replicas")
            | {
                "workers": engines,
                "errors": 0,
                "runs_s": round(rate, 1),
                "decisions_by_engine": [
                    round(late - early) for early, late in zip(before, after, strict=True)
                ],
                "idle_cores": "none: load generator, server and all services share them",
            }
        )
        await session.drain(DRAIN_SECONDS)
        await asyncio.sleep(5)


@contextlib.contextmanager
def _second_engine(session: Session, *, wanted: bool) -> Iterator[int | None]:
    if not wanted:
        yield None
        return
    port = session.stack.metrics_port("engine") + 7
    environment = {
        **os.environ,
        "PENSTOCK_NATS_URL": session.stack.nats_url,
        "PENSTOCK_INSTANCE_ID": "bench-engine-2",
        "PENSTOCK_METRICS_PORT": str(port),
        "PENSTOCK_METRICS_HOST": "127.0.0.1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock_orchestrator"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - the bench has one thread
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


async def _until_balanced(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if await _metric(port, "penstock_engine_shards") >= 1:
                await asyncio.sleep(3)
                return
        await asyncio.sleep(0.3)
    raise RuntimeError("the second engine has taken no shard")


async def _decisions(port: int) -> float:
    return await _metric(port, "penstock_engine_decisions_total")


async def _metric(port: int, name: str) -> float:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in answer.text.splitlines()
        if line.startswith((f"{name} ", f"{name}{{"))
    ]
    return sum(values)


def show(row: Row) -> str:
    """Return a row of this module as one line for the table's foot."""
    hidden = {"ts", "peer", "variant", "workload", "durability", "workers", "versions"}
    said = {key: value for key, value in row.items() if key not in hidden}
    return f"{row['workload']}: " + json.dumps(said, ensure_ascii=False, default=str)
