"""The workloads: definitions applied beforehand, what one run is, and how it is known to be right.

Each answer is checked in full, for a fast wrong answer is no figure.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bench.client import Client
from bench.load import RunFailedError, quantile

FAN_OUT: Final = 100
DELTAS: Final = 200
TIMER_SHAPES: Final = {"timers": 5, "timers-apart": 5000}
"""Among how many runs the timers are spread."""
LANGUAGE: Final = ("map", *TIMER_SHAPES, "archive", "replicas")
"""What ``bench.language`` measures."""
_TOOL: Final = "noop"
_VERSION: Final = "penstock/v1"
_INDEX: Final = re.compile(rb'"index":(\d+)')
_DELTA_EVENT: Final = b"event: agent_stream_delta"
_LAST_EVENT: Final = b"event: run_done"


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop over one definition."""

    name: str
    definition: str
    in_flight: int
    steps: int
    """Of one run."""
    runs: int
    warm_up: int

    def scaled(self, scale: float) -> Workload:
        """Return it with another number of runs."""
        return Workload(
            self.name,
            self.definition,
            self.in_flight,
            self.steps,
            max(1, round(self.runs * scale)),
            max(1, round(self.warm_up * scale)),
        )


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload("W1", "bench-one", in_flight=1, steps=1, runs=1000, warm_up=50),
        Workload("W2", "bench-three", in_flight=64, steps=3, runs=10_000, warm_up=500),
        Workload("W2@256", "bench-three", in_flight=256, steps=3, runs=10_000, warm_up=500),
        Workload("W3", "bench-fan", in_flight=4, steps=FAN_OUT, runs=300, warm_up=8),
        Workload("W4", "bench-stream", in_flight=20, steps=1, runs=600, warm_up=20),
    )
}


def documents() -> list[dict[str, Any]]:
    """Return the definitions that the workloads run."""
    number = {"number": "{{ input.number }}"}
    three = [{"id": f"s{n}", "tool": _TOOL, "input": number} for n in (1, 2, 3)]
    fan = [
        {"id": f"s{n}", "tool": _TOOL, "input": number, "depends_on": []} for n in range(FAN_OUT)
    ]
    joined = [f"{{{{ steps.s{n}.output.number }}}}" for n in range(FAN_OUT)]
    script = {"turns": [{"deltas": [f"piece {n} " for n in range(DELTAS)]}]}
    return [
        _document("Tool", _TOOL, {"builtin": {}}),
        _document("Workflow", "bench-one", {"steps": three[:1]}),
        _document("Workflow", "bench-three", {"steps": three}),
        _document("Workflow", "bench-fan", {"steps": fan, "output": joined}),
        _document("Agent", "bench-stream", {"model": "scripted/bench", "script": script}),
    ]


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": _VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


async def apply(client: Client) -> None:
    """Store and publish the definitions.

    Raises:
        RuntimeError: They were refused.
    """
    await client.call("POST", "/v1/apply", {"documents": documents(), "publish": True})


async def first_run(client: Client) -> str:
    """Do one run of three steps; return its id.

    Raises:
        RuntimeError: It did not end well.
    """
    body = {"name": WORKLOADS["W2"].definition, "input": {"number": 0}}
    view = await client.call("POST", "/v1/runs", body, {"Prefer": "wait=30"})
    if view["status"] != "done":
        raise RuntimeError(f"the first run: {view}")
    return str(view["run_id"])


class Runs(Protocol):
    """Does the runs of one phase."""

    async def run(self, number: int) -> None:
        """Do one run.

        Raises:
            OSError: No connection, or it broke.
            RunFailedError: The answer is not what it must be.
        """

    def figures(self, seconds: float) -> dict[str, float]:
        """Return the figures of this kind of workload beyond the others, of a phase so long."""


def runs_of(client: Client, workload: Workload) -> Runs:
    """Return the runs of a workload, with no figures yet."""
    if workload.name == "W4":
        return StreamingRuns(client, workload)
    return WaitingRuns(client, workload)


class WaitingRuns:
    """Runs that are waited for, with their output in the answer."""

    def __init__(self, client: Client, workload: Workload) -> None:
        """Run the workload's definition."""
        self._client = client
        self._definition = workload.definition.encode()
        self._request = client.prepare("POST", "/v1/runs", {"Prefer": "wait=30"})
        self._right = _is_joined if workload.steps == FAN_OUT else _is_echoed

    async def run(self, number: int) -> None:
        """Do one run; its output must be what it was given."""
        body = b'{"name":"%b","input":{"number":%d}}' % (self._definition, number)
        answer = await self._client.send(self._request(body))
        if answer.status != 200 or not self._right(answer.body, number):
            raise RunFailedError(f"{answer.status} {answer.body[:200]!r}")

    def figures(self, seconds: float) -> dict[str, float]:  # noqa: ARG002 - see Runs
        """Return nothing more."""
        return {}


def _is_echoed(body: bytes, number: int) -> bool:
    return b'"status":"done"' in body and b'"output":{"number":%d}' % number in body


def _is_joined(body: bytes, number: int) -> bool:
    view = json.loads(body)
    return bool(view["status"] == "done" and view["output"] == [number] * FAN_OUT)


class StreamingRuns:
    """Runs whose events are read as they come; counts them and times the first."""

    def __init__(self, client: Client, workload: Workload) -> None:
        """Run the workload's agent."""
        self._client = client
        self._request = client.prepare("POST", "/v1/runs", {"Accept": "text/event-stream"})
        self._body = json.dumps({"name": workload.definition, "input": "go"}).encode()
        self._events = 0
        self._first_seconds: list[float] = []

    async def run(self, _number: int) -> None:
        """Do one run; each piece of text must come once and in its place."""
        started = time.perf_counter()
        first: list[float] = []
        parts: list[bytes] = []

        def take(data: bytes) -> None:
            parts.append(data)
            if not first and _DELTA_EVENT in data:
                first.append(time.perf_counter() - started)

        answer = await self._client.send(self._request(self._body), take)
        stream = b"".join(parts)
        indexes = [int(index) for index in _INDEX.findall(stream)]
        if answer.status != 200 or indexes != list(range(DELTAS)) or _LAST_EVENT not in stream:
            raise RunFailedError(f"{answer.status}, {len(indexes)} pieces: {stream[-200:]!r}")
        self._events += len(indexes)
        self._first_seconds += first

    def figures(self, seconds: float) -> dict[str, float]:
        """Return events per second, and the time from the request to the first piece of text."""
        return {
            "events_s": round(self._events / seconds, 1),
            "ttfe_p50_ms": round(1e3 * quantile(self._first_seconds, 0.50), 2),
            "ttfe_p99_ms": round(1e3 * quantile(self._first_seconds, 0.99), 2),
        }
