"""Counts of the bus: plain integers on the hot path, metrics only when they are scraped.

Counting with a metric object takes a lock; adding to an integer does not. The collector turns the
integers into metrics at each scrape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(slots=True)
class WriterTally:
    """Outcomes of the messages that this process appended."""

    acknowledged: int = 0
    duplicate: int = 0
    fenced: int = 0
    failed: int = 0
    resent: int = 0


@dataclass(slots=True)
class ConsumerTally:
    """Outcomes of the messages of one durable consumer."""

    durable: str
    acked: int = 0
    nacked: int = 0
    dead: int = 0
    redelivered: int = 0
    in_flight: int = 0


WRITER: Final = WriterTally()
"""One per process, however many writers it has."""

_CONSUMERS: Final[dict[str, ConsumerTally]] = {}


def consumer_tally(durable: str) -> ConsumerTally:
    """Return the tally of a durable; it stays when a consumer is started anew."""
    return _CONSUMERS.setdefault(durable, ConsumerTally(durable))


class BusCollector(Collector):
    """Turns the tallies into metrics."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they stand."""
        published = CounterMetricFamily(
            "penstock_bus_published_messages", "Messages that the bus acknowledged"
        )
        published.add_metric([], WRITER.acknowledged)
        yield published
        refused = CounterMetricFamily(
            "penstock_bus_refused_messages",
            "Messages not stored: the subject was taken, the fence held, or it failed",
            labels=["reason"],
        )
        refused.add_metric(["duplicate"], WRITER.duplicate)
        refused.add_metric(["fenced"], WRITER.fenced)
        refused.add_metric(["failed"], WRITER.failed)
        yield refused
        resent = CounterMetricFamily(
            "penstock_bus_resent_messages", "Messages sent again for want of an acknowledgement"
        )
        resent.add_metric([], WRITER.resent)
        yield resent
        deliveries = CounterMetricFamily(
            "penstock_bus_deliveries",
            "Messages handled, by outcome",
            labels=["consumer", "outcome"],
        )
        redeliveries = CounterMetricFamily(
            "penstock_bus_redeliveries", "Messages that came more than once", labels=["consumer"]
        )
        in_flight = GaugeMetricFamily(
            "penstock_bus_in_flight_messages", "Messages in work", labels=["consumer"]
        )
        for tally in list(_CONSUMERS.values()):
            deliveries.add_metric([tally.durable, "ack"], tally.acked)
            deliveries.add_metric([tally.durable, "nak"], tally.nacked)
            deliveries.add_metric([tally.durable, "dead"], tally.dead)
            redeliveries.add_metric([tally.durable], tally.redelivered)
            in_flight.add_metric([tally.durable], tally.in_flight)
        yield deliveries
        yield redeliveries
        yield in_flight


REGISTRY.register(BusCollector())
