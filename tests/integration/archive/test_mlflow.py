"""The MLflow sink against a real MLflow server.

`PENSTOCK_TEST_MLFLOW` is the path of an `mlflow` executable; `make test-mlflow` makes one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.bus.connection import Bus
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import Decision, RunEnded, RunStatus, fact_bytes
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from penstock.sinks.process import run_mlflow_sink
from tests.integration.archive.test_keeping import create_run, forget, run_of
from tests.integration.archive.test_projector import free_port, publish
from tests.support.histories import START, Message
from tests.support.waiting import eventually

MLFLOW = os.environ.get("PENSTOCK_TEST_MLFLOW", "")

pytestmark = [
    pytest.mark.skipif(not MLFLOW, reason="PENSTOCK_TEST_MLFLOW names no mlflow executable"),
    pytest.mark.timeout(300),
]


class MlflowServer:
    """A tracking server on loopback, over a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            MLFLOW,
            "server",
            *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
            *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
        ]
        with (self.folder / "mlflow.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
            )

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    async def ready(self) -> bool:
        async with httpx.AsyncClient() as client:
            try:
                answer = await client.get(f"{self.url}/health", timeout=5)
            except httpx.TransportError:
                return False
            return answer.is_success

    async def runs(self, experiment: str) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=f"{self.url}/api/2.0/mlflow/") as client:
            found = await client.get(
                "experiments/get-by-name", params={"experiment_name": experiment}, timeout=30
            )
            if found.status_code == 404:
                return []
            body = {
                "experiment_ids": [found.json()["experiment"]["experiment_id"]],
                "max_results": 1000,
            }
            answer = await client.post("runs/search", json=body, timeout=30)
            listed: list[dict[str, Any]] = answer.json().get("runs", [])
            return listed

    async def wiped(self, experiment: str, run_id: str) -> None:
        """Take a run's end back, as if the sink had died in the middle."""
        run = _by_run(await self.runs(experiment))[run_id]
        async with httpx.AsyncClient(base_url=f"{self.url}/api/2.0/mlflow/") as client:
            body = {"run_id": run["info"]["run_id"], "status": "RUNNING"}
            (await client.post("runs/update", json=body, timeout=30)).raise_for_status()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def mlflow(folder: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(folder)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def sinking(server: NatsServer, mlflow: MlflowServer, experiment: str) -> AsyncIterator[None]:
    settings = CoreSettings(nats_url=server.url, ack_wait_seconds=2)
    until = asyncio.Event()
    running = asyncio.create_task(
        run_mlflow_sink(settings, url=mlflow.url, experiment=experiment, until=until)
    )
    try:
        yield
    finally:
        until.set()
        await running


def ended_as(name: str, status: Any) -> list[Message]:
    """A run of two nodes side by side that ended otherwise than well."""
    log = create_run(name, at=START)
    _, prefix = run_of(name)
    fact = RunEnded(
        occurred_at=START,
        decision=Decision(cause_seq=3),
        status=status,
        error=ErrorInfo(code="boom", message="it broke"),
    )
    return [*log[:-1], (subjects.out(prefix, 2, subjects.END_SUFFIX), fact_bytes(fact))]


def _by_run(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {_values(run, "tags")["penstock.run_id"]: run for run in runs}


def _values(run: dict[str, Any], part: str) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in run["data"].get(part, [])}


async def test_sink_writes_each_run_once_over_restarts_outages_and_half_written_runs(
    server: NatsServer, bus: Bus, mlflow: MlflowServer
) -> None:
    await eventually(mlflow.ready, within=120, every=0.5)
    await publish(bus, create_run("A", at=START, session_id="s1"))
    await publish(bus, ended_as("B", RunStatus.FAILED))
    async with sinking(server, mlflow, "first"):

        async def both() -> list[dict[str, Any]]:
            found = await mlflow.runs("first")
            assert len(found) == 2
            assert all(run["info"]["status"] != "RUNNING" for run in found)
            return found

        found = _by_run(await eventually(both, within=60, every=0.2))
        run_id = run_of("A")[0]
        done, failed = found[run_id], found[run_of("B")[0]]
        assert done["info"]["status"] == "FINISHED"
        assert done["info"]["end_time"] - done["info"]["start_time"] == 110
        assert failed["info"]["status"] == "FAILED"
        metrics = _values(done, "metrics")
        assert metrics["provider_openai_cost_usd"] == 0.25
        assert metrics["node_main_duration_ms"] == 80.0
        assert metrics["node_main_cost_usd"] == 0.25
        assert metrics["wall_ms"] == 110.0
        assert _values(done, "params")["name"] == "research"
        tags = _values(done, "tags")
        assert tags["penstock.session_id"] == "s1"
        info = json.loads(tags["penstock.bottleneck_info"])
        assert [node["node_id"] for node in info["bottlenecks"]] == ["main"]
        assert _values(failed, "tags")["penstock.error"] == "boom"

        # MLflow goes away while runs end; its SQLite file stays.
        await asyncio.to_thread(mlflow.stop)
        await publish(bus, ended_as("C", RunStatus.CANCELLED))

        async def delivered() -> bool:
            name = subjects.sink_consumer("mlflow")
            info = await bus.api(f"CONSUMER.INFO.{subjects.RUNS}.{name}")
            return bool(info["num_ack_pending"] == 1)

        await eventually(delivered)
        mlflow.start()

        async def third() -> dict[str, dict[str, Any]]:
            if not await mlflow.ready():
                return {}
            listed = _by_run(await mlflow.runs("first"))
            assert run_of("C")[0] in listed
            assert listed[run_of("C")[0]]["info"]["status"] == "KILLED"
            return listed

        await eventually(third, within=120, every=0.5)

    # A sink that died in the middle of a run, and has lost all it knew of the log.
    await mlflow.wiped("first", run_id)
    await bus.api(f"CONSUMER.DELETE.{subjects.RUNS}.{subjects.sink_consumer('mlflow')}")
    async with sinking(server, mlflow, "first"):

        async def finished() -> bool:
            listed = _by_run(await mlflow.runs("first"))
            return bool(listed[run_id]["info"]["status"] == "FINISHED")

        await eventually(finished, within=60, every=0.2)
    listed = await mlflow.runs("first")
    assert len(listed) == 3
    assert _values(_by_run(listed)[run_id], "metrics") == metrics


async def test_sink_leaves_out_runs_that_the_log_has_lost(
    server: NatsServer, bus: Bus, mlflow: MlflowServer
) -> None:
    await eventually(mlflow.ready, within=120, every=0.5)
    log = create_run("HALF", at=START)
    await publish(bus, log[1:])
    await publish(bus, create_run("GONE", at=START))
    await forget(bus, "GONE")
    await publish(bus, create_run("WHOLE", at=START))
    async with sinking(server, mlflow, "second"):

        async def there() -> bool:
            return [*_by_run(await mlflow.runs("second"))] == [run_of("WHOLE")[0]]

        await eventually(there, within=60, every=0.2)
