"""Metrics that all services share, as module constants; a service's own stand in that service.

No label ever holds a run, a user or free text. Looking up a labelled child costs more than
counting, so the hot path takes its children once, from the cached functions at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from prometheus_client import Counter, Gauge, Histogram

StepOutcome = Literal["succeeded", "failed", "unknown", "throttled", "refused", "late"]

_FAST_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_WORK_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)

BUS_COMMIT_SECONDS: Final = Histogram(
    "penstock_bus_commit_seconds",
    "From publish to acknowledgement, of group commits and canaries",
    buckets=_FAST_SECONDS,
)
BUS_COMMIT_MESSAGES: Final = Histogram(
    "penstock_bus_commit_messages",
    "Messages per group commit",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
CLOCK_OFFSET_SECONDS: Final = Gauge(
    "penstock_bus_clock_offset_seconds",
    "By how much the bus's clock is ahead of this machine's; deadlines follow the bus's",
)
BUS_RECONNECTS: Final = Counter("penstock_bus_reconnects_total", "Reconnections to the bus")
RUNNER_STEPS: Final = Counter(
    "penstock_runner_steps_total", "Steps by outcome", ["kind", "queue", "outcome"]
)
RUNNER_STEP_SECONDS: Final = Histogram(
    "penstock_runner_step_seconds", "Time in the handler", ["kind", "queue"], buckets=_WORK_SECONDS
)
LOOP_LAG_SECONDS: Final = Gauge(
    "penstock_loop_lag_seconds", "How late the event loop was at its last tick"
)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The children of one runner queue."""

    succeeded: Counter
    failed: Counter
    unknown: Counter
    throttled: Counter
    refused: Counter
    late: Counter
    seconds: Histogram


@cache
def step_metrics(kind: str, queue: str) -> StepMetrics:
    """Return the metrics of the steps of one runner queue."""

    def outcome(value: StepOutcome) -> Counter:
        return RUNNER_STEPS.labels(kind, queue, value)

    return StepMetrics(
        succeeded=outcome("succeeded"),
        failed=outcome("failed"),
        unknown=outcome("unknown"),
        throttled=outcome("throttled"),
        refused=outcome("refused"),
        late=outcome("late"),
        seconds=RUNNER_STEP_SECONDS.labels(kind, queue),
    )
