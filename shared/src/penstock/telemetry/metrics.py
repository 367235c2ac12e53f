"""Metrics that all services share, as module constants; a service's own stand in that service.

No label ever holds a run, a user or free text. Looking up a labelled child costs more than
counting, so the hot path takes its children once, from the cached functions at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from prometheus_client import Counter, Gauge, Histogram

DeliveryOutcome = Literal["ack", "nak", "term", "dead"]
StepOutcome = Literal["succeeded", "failed", "refused", "late"]

_FAST_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_WORK_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)

BUS_PUBLISHED: Final = Counter(
    "penstock_bus_published_messages_total", "Messages that the bus acknowledged"
)
BUS_REFUSED: Final = Counter(
    "penstock_bus_refused_messages_total",
    "Messages that the bus refused: duplicate, fence, or failed",
    ["reason"],
)
BUS_COMMIT_SECONDS: Final = Histogram(
    "penstock_bus_commit_seconds", "From publish to acknowledgement", buckets=_FAST_SECONDS
)
BUS_COMMIT_MESSAGES: Final = Histogram(
    "penstock_bus_commit_messages",
    "Messages per commit",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
BUS_RECONNECTS: Final = Counter("penstock_bus_reconnects_total", "Reconnections to the bus")
BUS_DELIVERIES: Final = Counter(
    "penstock_bus_deliveries_total",
    "Messages handled, by what became of them",
    ["consumer", "outcome"],
)
BUS_REDELIVERIES: Final = Counter(
    "penstock_bus_redeliveries_total", "Messages that came more than once", ["consumer"]
)
BUS_IN_FLIGHT: Final = Gauge("penstock_bus_in_flight_messages", "Messages in work", ["consumer"])
BUS_HANDLING_SECONDS: Final = Histogram(
    "penstock_bus_handling_seconds", "From delivery to ack", ["consumer"], buckets=_FAST_SECONDS
)
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
class ConsumerMetrics:
    """The children of one consumer."""

    acked: Counter
    nacked: Counter
    terminated: Counter
    dead: Counter
    redelivered: Counter
    in_flight: Gauge
    handling_seconds: Histogram


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The children of one runner queue."""

    succeeded: Counter
    failed: Counter
    refused: Counter
    late: Counter
    seconds: Histogram


@cache
def consumer_metrics(consumer: str) -> ConsumerMetrics:
    """Return the metrics of one consumer; durable names only, their number is bounded."""

    def outcome(value: DeliveryOutcome) -> Counter:
        return BUS_DELIVERIES.labels(consumer, value)

    return ConsumerMetrics(
        acked=outcome("ack"),
        nacked=outcome("nak"),
        terminated=outcome("term"),
        dead=outcome("dead"),
        redelivered=BUS_REDELIVERIES.labels(consumer),
        in_flight=BUS_IN_FLIGHT.labels(consumer),
        handling_seconds=BUS_HANDLING_SECONDS.labels(consumer),
    )


@cache
def step_metrics(kind: str, queue: str) -> StepMetrics:
    """Return the metrics of the steps of one runner queue."""

    def outcome(value: StepOutcome) -> Counter:
        return RUNNER_STEPS.labels(kind, queue, value)

    return StepMetrics(
        succeeded=outcome("succeeded"),
        failed=outcome("failed"),
        refused=outcome("refused"),
        late=outcome("late"),
        seconds=RUNNER_STEP_SECONDS.labels(kind, queue),
    )
