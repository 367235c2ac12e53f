"""What the scheduler counts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

SCHEDULES_KNOWN: Final = Gauge("penstock_schedule_known", "Schedules in force, of all shards")
SCHEDULES_FIRED: Final = Counter("penstock_schedule_fired_total", "Ticks that started a run")
SCHEDULES_FAILED: Final = Counter(
    "penstock_schedule_failed_total", "Ticks that could start nothing", ["code"]
)
SCHEDULES_LEFT_OUT: Final = Counter(
    "penstock_schedule_left_out_total", "Missed ticks that the policy left out"
)
SCHEDULES_LATENESS: Final = Histogram(
    "penstock_schedule_lateness_seconds",
    "Time from when a run should start until it was in the log",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600),
)
