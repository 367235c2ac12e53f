"""The raw limit: the hops of a run with bare nats-py, without HTTP, models, plans or an archive.

Client, engine and runner are a process each; server and stream are configured as Penstock's own.
Each workload is measured twice: with single publishes, and with atomic batches.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Literal

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from bench.figures import RAW_PEER, VARIANTS, Results, figures, heading_of, measured
from bench.load import Outcome, Run, RunFailedError, closed_loop
from bench.machine import quiet
from bench.options import ROOT, Options
from bench.raw_log import Publisher, RefusedError, open_client
from bench.raw_process import KIND, QUEUE, SHARD, fact, ready_subject
from bench.workloads import WORKLOADS, Workload
from penstock.bus import topology
from penstock.bus.connection import connect
from penstock.child import die_with_parent
from penstock.contracts import subjects
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from penstock_gateway.runs.start import new_run_id

Publishes = Literal["single", "batch"]
PUBLISHES: Final[tuple[Publishes, ...]] = ("single", "batch")
TENANT: Final = "bench"
COMPARED: Final = ("W1", "W2", "W2@256")
READY_SECONDS: Final = 20
WARM_UP_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5


async def measure_raw(options: Options, sync: str, results: Results, data_dir: Path) -> None:
    """Add a row for each way to publish and each workload that is compared with it."""
    names = [name for name in COMPARED if name in options.workloads] or COMPARED
    for publishes in PUBLISHES:
        folder = data_dir / publishes
        async with raw_system(folder, durable=sync == "always", publishes=publishes) as system:
            for name in names:
                workload = WORKLOADS[name].scaled(options.scale)
                async with quiet(system.processes, options.quiet_wait_seconds):
                    await _measure(system, workload, results, sync=sync, publishes=publishes)


async def _measure(
    system: RawSystem, workload: Workload, results: Results, *, sync: str, publishes: Publishes
) -> None:
    run = system.run_of(workload.steps)
    await closed_loop(run, workload.warm_up, workload.in_flight, max_seconds=WARM_UP_SECONDS)

    async def load() -> Outcome:
        return await closed_loop(run, workload.runs, workload.in_flight)

    phase = await measured(load, system.processes)
    variant = f"{VARIANTS[sync]}-{publishes}"
    results.add(heading_of(RAW_PEER, variant, workload.name, sync) | figures(workload, phase))


class RawSystem:
    """A running trio of server, engine and runner with this process as the client."""

    def __init__(self, client: Client, publisher: Publisher, processes: dict[str, int]) -> None:
        """Use ``RawSystem.open``."""
        self._client = client
        self._publisher = publisher
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._pids = processes

    def processes(self) -> dict[str, int]:
        """Return the measured variants."""
        return self._pids

    async def start(self) -> None:
        """Listen to the ends of runs."""
        await self._client.subscribe(subjects.LIVE_ENDS, cb=self._on_end)

    def run_of(self, steps: int) -> Run:
        """Return a function that does one run of so many steps."""
        body = fact(steps)

        async def run(_number: int) -> None:
            run_id = new_run_id()
            ended = self._ends[run_id] = asyncio.get_running_loop().create_future()
            prefix = subjects.run_prefix(TENANT, SHARD, run_id)
            try:
                await self._publisher.append(subjects.invoke(prefix), body)
                await ended
            except RefusedError as error:
                raise RunFailedError(str(error)) from error
            finally:
                self._ends.pop(run_id, None)

        return run

    async def _on_end(self, message: Msg) -> None:
        subject = subjects.parse_fact(message.subject.removeprefix(subjects.LIVE_PREFIX))
        ended = self._ends.get(subject.run_id)
        if ended is not None and not ended.done():
            ended.set_result(None)


@asynccontextmanager
async def raw_system(
    directory: Path, *, durable: bool, publishes: Publishes
) -> AsyncIterator[RawSystem]:
    """Start a server with an empty log, and the two processes; end all of it afterwards."""
    server = NatsServer(directory, durable=durable, monitor_port=0, die_with_parent=True)
    with _running(server):
        await _prepare(server.url)
        client = await open_client(server.url)
        try:
            with _processes(("engine", "runner"), server.url, publishes, directory) as pids:
                for role in pids:
                    await _wait_ready(client, role)
                publisher = await Publisher(client, batches=publishes == "batch").start()
                system = RawSystem(client, publisher, {"nats-server": server.pid or 0, **pids})
                await system.start()
                yield system
        finally:
            await client.close()


@contextmanager
def _running(server: NatsServer) -> Iterator[None]:
    # Blocks the loop while it starts: nothing else runs on it yet.
    with server:
        yield


async def _prepare(url: str) -> None:
    """Make the stream and the two durables exactly as Penstock would, for one shard."""
    settings = CoreSettings(nats_url=url, shards=1)
    bus = await connect(settings, name="bench-raw")
    stream = next(s for s in topology.stream_table(settings) if s["name"] == subjects.RUNS)
    await bus.api(f"STREAM.CREATE.{subjects.RUNS}", stream)
    engine = next(
        config
        for _, config in topology.consumer_table(settings)
        if config["durable_name"] == subjects.engine_consumer(SHARD)
    )
    await topology.ensure_consumer(bus, subjects.RUNS, engine)
    await topology.ensure_runner_consumer(bus, settings, KIND, QUEUE)
    await bus.close()


@contextmanager
def _processes(
    roles: Iterable[str], url: str, publishes: Publishes, directory: Path
) -> Iterator[dict[str, int]]:
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for role in roles:
            with (directory / f"{role}.log").open("ab") as log:
                started[role] = subprocess.Popen(
                    [sys.executable, "-m", "bench.raw_process", role, url, publishes],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent(),  # noqa: PLW1509 - the bench has one thread
                )
        yield {role: process.pid for role, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _wait_ready(client: Client, role: str) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                await client.request(ready_subject(role), timeout=1)
            except (NoRespondersError, NatsTimeoutError):
                await asyncio.sleep(0.05)
            else:
                return
