"""The registry as its own process."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import psutil

from penstock.bus.connection import Bus
from penstock.contracts.errors import TransientError
from penstock.contracts.rpc import ListRunners, Runners
from penstock.embedded import NatsServer
from penstock.rpc import call
from tests.support.waiting import eventually

CPU_SECONDS = 2.0


async def test_process_starts_answers_and_ends_clean(
    nats_server: NatsServer, bus: Bus, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock_registry",
        env={
            **os.environ,
            "PENSTOCK_NATS_URL": nats_server.url,
            "PENSTOCK_DATA_DIR": str(tmp_path),
        },
        stderr=asyncio.subprocess.PIPE,
    )

    async def answers() -> Runners:
        assert process.returncode is None
        try:
            return await call(bus, "registry", "list_runners", ListRunners(tenant="t"), Runners)
        except TransientError as error:
            raise AssertionError(error.code) from error

    try:
        await eventually(answers)
        used = psutil.Process(process.pid).cpu_times()
        assert used.user + used.system < CPU_SECONDS
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in errors.decode().splitlines()]
    assert events[-1] == "registry.ending"
    assert (tmp_path / "registry.db").exists()


async def test_process_without_a_usable_database_ends_with_an_error(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock_registry",
        env={
            **os.environ,
            "PENSTOCK_NATS_URL": nats_server.url,
            "PENSTOCK_DATABASE_URL": "postgresql://127.0.0.1:1/none",
        },
        stderr=asyncio.subprocess.PIPE,
    )

    _, errors = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    assert "database_unavailable" in errors.decode()
