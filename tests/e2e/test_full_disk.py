"""A local stack whose disk is full: it refuses at once, lives, and recovers by itself."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.installation import ENV
from tests.support.waiting import eventually

SIZE_MIB = 64
DEFINITION = """
apiVersion: penstock/v1
kind: Workflow
metadata: {name: echo}
spec:
  steps:
    - {id: same, transform: "{{ input }}"}
"""


@dataclass
class SmallDisk:
    """A stack on a file system of its own, which only its processes see."""

    process: subprocess.Popen[bytes]
    folder: Path
    """The file system, as this process reaches it."""
    log: Path

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "data" / "stack.json").read_bytes())
        return found

    def says(self, text: str) -> bool:
        return text in self.log.read_text(encoding="utf-8")

    def fill(self) -> None:
        with (self.folder / "filling").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        (self.folder / "filling").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(disk)]
    if subprocess.run([*unshare, *mount], check=False, capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    penstock = [sys.executable, "-m", "penstock", "--data-dir", str(disk / "data")]
    dev = shlex.join([*penstock, "dev", "--port", "0", "--nats-port", "0"])
    log = tmp_path / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*unshare, "sh", "-c", f"{shlex.join(mount)} && exec {dev}"],
            env={**os.environ, **ENV},
            stdout=output,
            stderr=output,
        )
    try:
        yield SmallDisk(process, Path(f"/proc/{process.pid}/root{disk}"), log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def start_run(client: httpx.AsyncClient) -> httpx.Response:
    body = {"name": "echo", "input": {"n": 1}}
    return await client.post("/v1/runs", json=body, headers={"Prefer": "wait=20"})


async def test_full_disk_is_refused_survived_and_left_behind(small_disk: SmallDisk) -> None:
    await eventually(lambda: small_disk.says("Penstock is ready"), within=120)
    async with httpx.AsyncClient(base_url=small_disk.state["url"], timeout=60) as client:
        yaml = {"Content-Type": "application/yaml"}
        applied = await client.post("/v1/apply", content=DEFINITION, headers=yaml)
        applied.raise_for_status()
        assert (await start_run(client)).json()["status"] == "done"

        small_disk.fill()
        await eventually(lambda: small_disk.says("is full: no run is accepted"), within=60)
        refused = await start_run(client)
        assert (refused.status_code, refused.json()["code"]) == (507, "log_full")

        # A process that dies now cannot start, and the stack waits for room.
        registry = small_disk.state["processes"]["registry"]["pid"]
        os.kill(registry, signal.SIGKILL)
        await eventually(lambda: small_disk.says("registry ended with SIGKILL"))
        await asyncio.sleep(3)
        assert small_disk.process.poll() is None

        small_disk.make_room()
        await eventually(lambda: small_disk.says("the disk has room again"), within=60)

        async def accepted() -> bool:
            answer = await start_run(client)
            return answer.status_code == 200 and answer.json()["status"] == "done"

        await eventually(accepted, within=120, every=1)
