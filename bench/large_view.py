"""What reading a run with many steps costs the gateway.

    python -m bench.large_view --steps 5000

Writes the log of a run with so many finished tool steps, and reads it over HTTP. Gateway and
client share one process and one event loop. Printed are medians: the loop's CPU time per request,
the longest time for which nothing else could run, and the size of the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.client import Client
from bench.walk import start_gateway
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.topology import ensure
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    StepKind,
    StepResult,
    StepScheduled,
    fact_bytes,
)
from penstock.contracts.ids import shard_of
from penstock.contracts.usage import Usage
from penstock.embedded import NatsServer
from penstock_gateway.runs.start import new_run_id
from penstock_gateway.settings import GatewaySettings

REPEAT: Final = 15
_PER_DECISION: Final = 250
_TICK_SECONDS: Final = 0.001


class Reading(NamedTuple):
    """One request."""

    cpu_ms: float
    longest_ms: float
    size: int


def facts(prefix: str, steps: int) -> list[tuple[str, RunFact]]:
    """Return the log of a run with so many tool steps, by subject, in order."""
    at = datetime.now(UTC)
    digest = "0" * 64
    invoked = RunInvoked(
        occurred_at=at, name="large", kind=DefinitionKind.WORKFLOW, version=1, plan_digest=digest
    )
    found: list[tuple[str, RunFact]] = [(subjects.invoke(prefix), invoked)]
    decision = 0
    for first in range(0, steps, _PER_DECISION):
        decision += 1
        names = [f"price-x{n}" for n in range(first, min(first + _PER_DECISION, steps))]
        suffixes = [subjects.step_suffix(StepKind.TOOL, "builtin", name, 1) for name in names]
        for index, suffix in enumerate(suffixes):
            promised = Decision(cause_seq=1, manifest=tuple(suffixes[1:])) if index == 0 else None
            fact = StepScheduled(
                occurred_at=at,
                decision=promised,
                node_id="price",
                name="noop",
                input={"n": index},
                expires_at=at + timedelta(hours=1),
            )
            found.append((subjects.out(prefix, decision, suffix), fact))
        for name in names:
            result = StepResult(
                occurred_at=at,
                kind=StepKind.TOOL,
                name="noop",
                status="succeeded",
                output={"price": 12.5, "currency": "EUR", "item": name},
                usage=Usage(steps=0),
                runner_id="bench",
                started_at=at,
            )
            found.append((subjects.result(prefix, name, 1), result))
    ended = RunEnded(
        occurred_at=at, status=RunStatus.DONE, output=steps, decision=Decision(cause_seq=1)
    )
    found.append((subjects.out(prefix, decision + 1, "end"), ended))
    return found


async def _write(bus: Bus, settings: GatewaySettings, run_id: str, steps: int) -> None:
    writer = await LogWriter(bus, settings, Claims(bus, settings.claim_threshold_bytes)).start()
    prefix = subjects.run_prefix("default", shard_of(run_id, settings.shards), run_id)
    log = facts(prefix, steps)
    for first in range(0, len(log), _PER_DECISION):
        await asyncio.gather(
            *(
                writer.append(subject, fact_bytes(fact))
                for subject, fact in log[first : first + _PER_DECISION]
            )
        )
    await writer.close()


async def read(client: Client, path: str) -> Reading:
    """Send one request and measure it."""
    longest, done = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not done:
            began = time.perf_counter()
            await asyncio.sleep(_TICK_SECONDS)
            longest = max(longest, time.perf_counter() - began - _TICK_SECONDS)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    began = time.thread_time()
    answer = await client.send(client.prepare("GET", path)(b""))
    cpu = time.thread_time() - began
    done = True
    await ticking
    if answer.status != 200:
        raise RuntimeError(f"GET {path}: {answer.status} {answer.body[:500]!r}")
    return Reading(1000 * cpu, 1000 * longest, len(answer.body))


async def measure(steps: int) -> None:
    """Print a line for each way to read the run."""
    async with AsyncExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="penstock-large-", ignore_cleanup_errors=True)
            )
        )
        server = stack.enter_context(NatsServer(folder / "nats"))
        settings = GatewaySettings(
            nats_url=server.url, data_dir=folder, auth_required=False, port=0
        )
        bus = await connect(settings, name="bench")
        stack.push_async_callback(bus.close)
        await ensure(bus, settings)
        run_id = new_run_id()
        await _write(bus, settings, run_id, steps)
        client = Client(await start_gateway(stack, settings))
        stack.callback(client.close)
        run = f"/v1/runs/{run_id}"
        for path in (
            run,
            f"{run}?steps_limit=1000",
            f"{run}?node_records=true",
            f"{run}/events",
            f"{run}/profile",
        ):
            first = await read(client, path)
            if path == run:
                print(f"first read: {first.cpu_ms:.1f} ms, longest {first.longest_ms:.1f} ms")
            readings = [await read(client, path) for _ in range(REPEAT)]
            cpu, longest, size = (
                statistics.median(column) for column in zip(*readings, strict=True)
            )
            shown = path.replace(run, "/v1/runs/RUN")
            print(f"{shown:45} {cpu:7.1f} ms, longest {longest:6.1f} ms, {size / 1000:8.1f} kB")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    uvloop.run(measure(parser.parse_args().steps))


if __name__ == "__main__":
    main()
