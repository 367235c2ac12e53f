"""The crash matrix: a process killed at every boundary between two effects, again and again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from penstock.failpoints import NAMES, TALLY, VARIABLE, kills
from tests.chaos.crowd import Crowd, client_of
from tests.chaos.figures import Figures
from tests.chaos.rig import Rig, Size, define
from tests.chaos.verdict import decoded, faults_of_run, read_log
from tests.chaos.witness import Witness

PASSES = {
    "engine.input_taken": 40,
    "engine.decided": 37,
    "engine.decision_stored": 31,
    "engine.timers_set": 3,
    "engine.pending_indexed": 5,
    "engine.step_performed": 3,
    "engine.child_started": 2,
    "engine.message_sent": 1,
    "engine.parent_notified": 2,
    "engine.run_finished": 11,
    "engine.before_ack": 43,
    "runner.step_taken": 17,
    "runner.handler_done": 19,
    "runner.result_stored": 23,
    "gateway.before_invoke": 9,
    "gateway.invoke_stored": 7,
    "gateway.signal_stored": 4,
    "projector.batch_read": 9,
    "projector.batch_stored": 8,
    "schedule.run_fired": 1,
}
"""After how many passes a process dies there: different ones, so that no point hides another."""

SERVICES_OF = {
    "engine": ("engine", "engine-2"),
    "schedule": ("engine", "engine-2"),
    "runner": ("tool-runner", "agent-runner", "ledger-1", "ledger-2"),
    "gateway": ("gateway",),
    "projector": ("projector",),
}

GOSSIP = """
apiVersion: penstock/v1
kind: Workflow
metadata: {name: gossip}
spec:
  timeout_seconds: 1800
  steps:
    - id: both
      parallel:
        branches:
          hear:
            steps:
              - id: heard
                wait: {signal: {name: news, correlation: "{{ run.id }}"}, timeout: 20m}
          tell:
            steps:
              - id: nap
                wait: {for: 300ms}
              - id: told
                send: {to: {run: "{{ run.id }}"}, name: news, payload: {n: 1}}
---
apiVersion: penstock/v1
kind: Schedule
metadata: {name: tick}
spec: {target: errand, every: 1s, missed: all, input: {key: tick}}
"""


class Matrix(Rig):
    """A stack whose processes die at the failpoints of their service."""

    times = 1

    def _overrides(self, name: str) -> dict[str, str]:
        prefixes = {prefix for prefix, services in SERVICES_OF.items() if name in services}
        armed = [
            f"{point}={passes}x{self.times}"
            for point, passes in PASSES.items()
            if point.split(".")[0] in prefixes
        ]
        return {
            **super()._overrides(name),
            VARIABLE: ",".join(armed),
            TALLY: str(self.directory / "tally"),
        }


def test_every_failpoint_has_its_place_in_the_matrix() -> None:
    assert set(PASSES) == set(NAMES)
    assert {name.split(".")[0] for name in NAMES} == set(SERVICES_OF)


@pytest.mark.timeout(3600)
async def test_death_at_every_failpoint_loses_and_doubles_nothing(
    tmp_path: Path, size: Size, figures: Figures
) -> None:
    Matrix.times = size.kills_at_a_failpoint
    rig = Matrix(tmp_path, size.ledger_concurrency)
    tally = str(tmp_path / "tally")
    began = time.monotonic()
    with rig.stack:
        async with client_of(rig.stack.url) as client, Witness(rig.settings) as witness:
            await _defined(client)
            crowd = Crowd(client, witness, ("chaos", "winding", "gossip"))
            await crowd.fill(60, within=300)
            async with asyncio.timeout(size.matrix_seconds):
                while _missing(tally, Matrix.times):
                    await crowd.check()
                    await asyncio.sleep(0.5)
            await _until_accepted(client, "POST", "/v1/schedules/tick/pause")
            await crowd.close(within=600)
            settings = rig.settings
        log = await read_log(settings)
        faults = {
            run_id: found
            async for run_id, entries in decoded(settings, log)
            if (found := faults_of_run(entries))
        }
    killed = kills(tally)
    for name in NAMES:
        figures.add("crash matrix", f"killed at {name}", killed.get(name, 0))
    figures.add("crash matrix", "runs / seconds", f"{len(log)} / {time.monotonic() - began:.0f}")
    lost = [run.run_id for run in crowd.accepted if run.run_id not in log]
    figures.add("crash matrix", "lost / with doubled outcomes", f"{len(lost)} / {len(faults)}")
    assert lost == []
    assert faults == {}


def _missing(tally: str, times: int) -> list[str]:
    found = kills(tally)
    return [name for name in NAMES if found.get(name, 0) < times]


async def _defined(client: httpx.AsyncClient) -> None:
    await define(client)
    applied = await client.post(
        "/v1/apply", content=GOSSIP, headers={"Content-Type": "application/yaml"}
    )
    assert applied.status_code == 200, applied.text


async def _until_accepted(client: httpx.AsyncClient, method: str, path: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await client.request(method, path)
            except httpx.TransportError:
                await asyncio.sleep(0.2)
            else:
                if answer.status_code < 500:
                    assert answer.status_code < 300, answer.text
                    return
                await asyncio.sleep(0.2)
