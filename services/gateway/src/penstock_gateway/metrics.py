"""The gateway's own metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

_RESPONSES: Final = Counter(
    "penstock_gateway_responses_total", "Answers by class of status", ["status"]
)
_RUNS: Final = Counter(
    "penstock_gateway_runs_total", "Requests that started a run, or found it started", ["outcome"]
)
STREAMS_OPEN: Final = Gauge("penstock_gateway_streams_open", "Event streams being served")
STREAM_REREADS: Final = Counter(
    "penstock_gateway_stream_rereads_total",
    "Times that the log was read again: a slow client or a new connection to the bus",
)

RESPONSES_BY_CLASS: Final = tuple(_RESPONSES.labels(f"{number}xx") for number in range(6))
"""By the first digit of the status."""
RUNS_STARTED: Final = _RUNS.labels("started")
RUNS_REPLAYED: Final = _RUNS.labels("replayed")
