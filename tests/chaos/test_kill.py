"""300 runs in flight while every process is killed in turn: nothing is lost, nothing said twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from penstock.child import Service
from penstock.stack import SERVICES, Stack, StackOptions
from tests.chaos.crowd import follow, start_run
from tests.chaos.verdict import (
    Havoc,
    effects,
    event_ids,
    faults_of_run,
    open_at,
    read_log,
    unexplained_effects,
)
from tests.support.waiting import eventually

RUNS = int(os.environ.get("PENSTOCK_CHAOS_RUNS", "300"))
FOLLOWED = 40
ACK_WAIT = 4.0

DEFINITIONS = """
apiVersion: penstock/v1
kind: Tool
metadata: {name: effect}
spec:
  runner: {queue: ledger}
  parameters: {type: object, properties: {seconds: {type: number}}}
  timeout_seconds: 90
  retry: {max_attempts: 5, initial_seconds: 0.2}
---
apiVersion: penstock/v1
kind: Agent
metadata: {name: thinker}
spec:
  model: scripted/thinker
  timeout_seconds: 90
  retry: {max_attempts: 5, initial_seconds: 0.2}
  script:
    turns:
      - text: "thought about it"
        deltas: ["thought ", "about ", "it"]
        delay_seconds: 0.2
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: chaos}
spec:
  timeout_seconds: 600
  steps:
    - {id: first, tool: effect, input: {seconds: 0.5}}
    - {id: think, agent: thinker, input: "{{ input.key }}"}
    - {id: second, tool: effect, input: {seconds: 0.5}}
    - {id: third, tool: effect, input: {seconds: 0.5}}
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    path.touch()
    return path


@pytest.fixture
def stack(tmp_path: Path, ledger: Path) -> Iterator[Stack]:
    ledgers = tuple(
        Service(f"ledger-{n}", "tests.chaos.ledger_runner", {"LEDGER": str(ledger)}) for n in (1, 2)
    )
    options = StackOptions(
        data_dir=str(tmp_path / "stack"), port=0, nats_port=0, services=(*SERVICES, *ledgers)
    )
    env = {
        "PENSTOCK_ACK_WAIT_SECONDS": str(ACK_WAIT),
        "PENSTOCK_LEASE_TTL_SECONDS": "3",
        "PENSTOCK_RECONCILE_SECONDS": "5",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with Stack(options, env=env) as running:
        yield running


async def kill(stack: Stack, name: str) -> int:
    """Kill a service and wait until its successor is up."""
    pid = stack.pid(name)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: _alive_as_another(stack, name, pid), within=30)
    return pid


def _alive_as_another(stack: Stack, name: str, before: int) -> bool:
    process = stack.state["processes"][name]
    return bool(process["pid"] not in (None, before) and process.get("ready", True))


async def wreak_havoc(stack: Stack) -> Havoc:
    """Kill each service in turn and the bus once; stop a runner beyond its ack wait."""
    havoc = Havoc()
    stopped = stack.pid("ledger-2")
    os.kill(stopped, signal.SIGSTOP)
    stopped_at = time.monotonic()
    havoc.broken.add(stopped)
    for name in ("engine", "gateway", "agent-runner", "ledger-1", "tool-runner"):
        pid = await kill(stack, name)
        if name == "ledger-1":
            havoc.broken.add(pid)
    await asyncio.sleep(max(0.0, 2.5 * ACK_WAIT - (time.monotonic() - stopped_at)))
    os.kill(stopped, signal.SIGCONT)
    down = time.time()
    await kill(stack, "nats-server")
    await asyncio.sleep(1)
    # A connection notices late that it is gone, and what was in flight comes again after ack_wait.
    havoc.bus_down.append((down, time.time() + 3 * ACK_WAIT))
    for name in ("registry", "projector", "engine"):
        await kill(stack, name)
    return havoc


@pytest.mark.timeout(400)
async def test_runs_survive_kills_of_every_process(stack: Stack, ledger: Path) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    timeout = httpx.Timeout(10, read=60, pool=60)
    async with httpx.AsyncClient(base_url=stack.url, limits=limits, timeout=timeout) as client:
        applied = await client.post(
            "/v1/apply", content=DEFINITIONS, headers={"Content-Type": "application/yaml"}
        )
        assert applied.status_code == 200, applied.text
        accepted = await asyncio.gather(
            *(start_run(client, "chaos", f"early-{n}", within=60) for n in range(RUNS))
        )
        following = [
            asyncio.create_task(follow(client, run_id, within=300))
            for run_id in accepted[:FOLLOWED]
        ]
        late = [
            asyncio.create_task(_start_later(client, n, over_seconds=15)) for n in range(RUNS // 3)
        ]
        began = datetime.now(UTC)
        havoc = await wreak_havoc(stack)
        accepted += await asyncio.gather(*late)
        transcripts = await asyncio.gather(*following)
        finals = await asyncio.gather(*(follow(client, run_id, within=240) for run_id in accepted))
        runs = await read_log(stack.nats_url)

    in_flight = sum(open_at(runs[run_id], began) for run_id in accepted)
    print(  # noqa: T201 - the figures are the point
        f"\n{len(accepted)} runs, {in_flight} in flight when the first process died; "
        f"{effects(ledger)} effects of {3 * len(accepted)} steps; "
        f"{sum(t.connections > 1 for t in transcripts)} followers interrupted"
    )
    assert in_flight >= 0.9 * RUNS
    assert all(final.ended for final in finals)
    assert len(set(accepted)) == len(accepted) == RUNS + RUNS // 3
    assert set(accepted) <= set(runs)
    faults = {run_id: faults_of_run(runs[run_id]) for run_id in accepted}
    assert {run_id: found for run_id, found in faults.items() if found} == {}
    assert {t.run_id: t.ids for t in transcripts} == {
        t.run_id: event_ids(runs[t.run_id]) for t in transcripts
    }
    assert any(t.connections > 1 for t in transcripts), "no follower was ever interrupted"
    assert unexplained_effects(ledger, havoc, runs) == []
    assert effects(ledger) > 3 * len(accepted), "nothing was ever repeated: no proof"


async def _start_later(client: httpx.AsyncClient, number: int, over_seconds: float) -> str:
    """Start a run at its share of the time, whatever is down at that moment."""
    await asyncio.sleep(over_seconds * number / (RUNS // 3))
    return await start_run(client, "chaos", f"late-{number}", within=120)
