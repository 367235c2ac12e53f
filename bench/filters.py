"""How long lists of runs take whose filters match little, on SQLite and PostgreSQL.

    python -m bench.filters [--runs 200000] [--postgres postgresql://...]

Among the runs of one tenant every thousandth fails, every five hundredth has a tag, and a few cost
much. Each line is the shortest of 40 lists, once the rows are in the cache. ``scan`` reads all
runs as a list does whose filters match much.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

from bench.projector import batches_of
from penstock.contracts import subjects
from penstock.contracts.archive import ListRuns
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    fact_bytes,
)
from penstock.contracts.ids import run_id_from, shard_of
from penstock.contracts.usage import Usage
from penstock.db import create_engine, upgrade
from penstock_archive import queries
from penstock_archive.drivers import open_store
from penstock_archive.projection import address
from penstock_archive.queries import Queries
from penstock_archive.store import Position

BATCH = 4_000
TENANT = "default"
CASES = {
    "status failed": ListRuns(tenant=TENANT, status=(RunStatus.FAILED,)),
    "status failed, by end": ListRuns(tenant=TENANT, status=(RunStatus.FAILED,), sort="ended"),
    "status failed or cancelled": ListRuns(
        tenant=TENANT, status=(RunStatus.FAILED, RunStatus.CANCELLED)
    ),
    "error code": ListRuns(tenant=TENANT, error="out_of_paper"),
    "tag": ListRuns(tenant=TENANT, tags={"customer": "rare"}),
    "tag that no run has": ListRuns(tenant=TENANT, tags={"customer": "none"}),
    "cost at least 5 USD": ListRuns(tenant=TENANT, min_cost_usd=5.0),
    "all of them": ListRuns(
        tenant=TENANT,
        status=(RunStatus.FAILED,),
        error="out_of_paper",
        tags={"customer": "rare"},
        min_cost_usd=5.0,
    ),
    "status failed, old ones only": ListRuns(tenant="old", status=(RunStatus.FAILED,)),
}


def facts(number: int, runs: int) -> Iterator[tuple[str, RunFact]]:
    """Yield the first and the last fact of a run."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    run_id = run_id_from(int(at.timestamp() * 1000), number.to_bytes(10, "big"))
    tenant = "old" if number % 2 else TENANT
    # The failures of the other tenant are the oldest fiftieth of its runs.
    failed = number < runs // 50 if number % 2 else number % 1_000 == 0
    prefix = subjects.run_prefix(tenant, shard_of(run_id, 8), run_id)
    yield (
        subjects.invoke(prefix),
        RunInvoked(
            occurred_at=at,
            name="three-steps",
            kind=DefinitionKind.WORKFLOW,
            version=3,
            plan_digest="d" * 64,
            input={"city": "Bern", "number": number},
            tags={"customer": "rare" if number % 500 == 0 else f"c{number % 50}"},
        ),
    )
    yield (
        subjects.out(prefix, 9, subjects.END_SUFFIX),
        RunEnded(
            occurred_at=at + timedelta(seconds=1),
            decision=Decision(cause_seq=number),
            status=RunStatus.FAILED if failed else RunStatus.DONE,
            error=ErrorInfo(code="out_of_paper", message="no paper") if failed else None,
            output=None if failed else {"temperature": 21.5},
            usage=Usage(cost_usd=9.0 if number % 2_000 == 0 else 0.01, steps=3),
        ),
    )


async def fill(database: str, runs: int) -> None:
    """Project the facts of many runs."""
    engine = create_engine(database)
    await upgrade(engine, package="penstock_archive")
    await engine.dispose()
    store = open_store(database)
    await store.begin(subjects.RUNS, "now")
    seq = reached = 0
    began = time.perf_counter()
    for first in range(0, runs, BATCH // 2):
        messages = []
        for number in range(first, min(first + BATCH // 2, runs)):
            for subject, fact in facts(number, runs):
                seq += 1
                messages.append(address(seq, subject, fact_bytes(fact)))
        for batch in batches_of(messages, store.instant):
            await store.commit(subjects.RUNS, batch, after=Position(reached, "now"))
            reached = batch.last_seq
    print(f"{runs:,} runs in {time.perf_counter() - began:.1f} s: {type(store).__name__}")
    await store.close()


async def shortest_ms(work: Callable[[], Awaitable[object]]) -> float:
    """Return the shortest time of 40."""
    spans = []
    for _ in range(40):
        began = time.perf_counter()
        await work()
        spans.append((time.perf_counter() - began) * 1000)
    return min(spans)


async def measure(database: str, runs: int) -> None:
    """Fill one database, and print a line for each filter."""
    await fill(database, runs)
    engine = create_engine(database)
    async with engine.connect() as connection:
        await connection.exec_driver_sql("ANALYZE")
    asked = Queries(engine, lambda body: asyncio.sleep(0, body))
    for name, request in CASES.items():

        async def ask(request: ListRuns = request) -> object:
            return await asked.list_runs(request)

        narrow = await shortest_ms(ask)
        with mock.patch.object(queries, "narrow", return_value=()):
            scan = await shortest_ms(ask)
        print(f"  {name:32} {narrow:>8.1f} ms   scan {scan:>8.1f} ms")
    await engine.dispose()


async def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--postgres", help="URL of an empty database")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        await measure(f"sqlite:///{Path(folder) / 'archive.db'}", options.runs)
    if options.postgres:
        await measure(options.postgres, options.runs)


if __name__ == "__main__":
    asyncio.run(main())
