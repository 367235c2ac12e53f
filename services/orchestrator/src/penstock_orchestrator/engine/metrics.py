"""What the engine counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import Counter, Gauge

ENGINE_DECISIONS: Final = Counter("penstock_engine_decisions_total", "Decisions published")
ENGINE_CONFLICTS: Final = Counter(
    "penstock_engine_conflicts_total", "Decisions refused because another engine had decided"
)
ENGINE_ENDED: Final = Counter("penstock_engine_runs_ended_total", "Runs ended", ["status"])
ENGINE_FAILED: Final = Counter(
    "penstock_engine_internal_errors_total", "Runs ended because the engine could not decide them"
)
ENGINE_TRIMMED: Final = Counter("penstock_engine_runs_trimmed_total", "Runs deleted from the log")
ENGINE_RUNS: Final = Gauge("penstock_engine_open_runs", "Runs at hand")
ENGINE_UNSERVED: Final = Gauge(
    "penstock_engine_unserved_steps", "Scheduled steps whose queue no runner serves", ["pool"]
)
ENGINE_SHARDS: Final = Gauge("penstock_engine_shards", "Shards whose lease this process holds")


def show_unserved(steps: Mapping[str, int]) -> None:
    """Show the scheduled steps of the pools without a runner; other pools are not listed."""
    ENGINE_UNSERVED.clear()
    for pool, count in steps.items():
        ENGINE_UNSERVED.labels(pool).set(count)
