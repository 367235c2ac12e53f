"""Fills the log with whole histories: copies of a real run's facts under new run ids.

Each history is appended within one atomic batch, so that no reader sees a part of one. Its
steps name a queue that no runner serves; otherwise they are facts like any others, with the
same sizes and headers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock.bus.claims import Claims
from penstock.bus.client import header_block
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.ids import shard_of
from penstock.settings import CoreSettings
from penstock_gateway.runs.start import new_run_id

NOBODYS_QUEUE: Final = "filled"
TENANT: Final = "default"
_BATCH_MESSAGES: Final = 480
_BATCHES_IN_FLIGHT: Final = 4
_ACK_SECONDS: Final = 60
_PREFIX: Final = "{prefix}"


class Copy(NamedTuple):
    """One fact of the history to copy."""

    subject: str
    """With a placeholder for the run's prefix."""
    body: bytes
    headers: dict[str, str]


async def read_history(bus: Bus, settings: CoreSettings, run_id: str) -> list[Copy]:
    """Return the facts of a run that has ended."""
    reader = LogReader(bus, Claims(bus, settings.claim_threshold_bytes))
    wanted = subjects.run_filter(TENANT, shard_of(run_id, settings.shards), run_id)
    history = [
        Copy(_template(subjects.parse_fact(stored.subject)), stored.body, _own(stored.headers))
        async for page in reader.pages(subjects.RUNS, wanted)
        for stored in page
    ]
    if not any(copy.subject.endswith(subjects.END_SUFFIX) for copy in history):
        raise RuntimeError(f"run {run_id} has not ended")
    return history


def _template(fact: subjects.FactSubject) -> str:
    match fact.event:
        case "invoke":
            return subjects.invoke(_PREFIX)
        case "result":
            return subjects.result(_PREFIX, fact.step_id, fact.attempt)
        case "step":
            suffix = subjects.step_suffix(fact.kind, NOBODYS_QUEUE, fact.step_id, fact.attempt)
            return subjects.out(_PREFIX, fact.decision, suffix)
        case "end":
            return subjects.out(_PREFIX, fact.decision, subjects.END_SUFFIX)
        case "state" | "signal" | "cancel":
            raise RuntimeError(f"a history of steps alone has no {fact.event}")


def _own(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers that were published, without what the server adds to an answer."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-")}


class Filler:
    """Appends histories as fast as the log takes them."""

    def __init__(self, bus: Bus, settings: CoreSettings, history: Sequence[Copy]) -> None:
        """Copy ``history``."""
        self._bus = bus
        self._shards = settings.shards
        self._history = history
        self._runs_a_batch = max(1, _BATCH_MESSAGES // len(history))
        self._batches = 0

    async def fill(self, facts: int) -> int:
        """Append about ``facts`` facts; return how many it were.

        Raises:
            RuntimeError: A batch was refused.
        """
        runs = max(0, -(-facts // len(self._history)))
        batches = iter(
            [self._runs_a_batch] * (runs // self._runs_a_batch)
            + ([rest] if (rest := runs % self._runs_a_batch) else [])
        )

        async def worker() -> None:
            for size in batches:
                await self._append(size)

        await asyncio.gather(*(worker() for _ in range(_BATCHES_IN_FLIGHT)))
        return runs * len(self._history)

    async def _append(self, runs: int) -> None:
        nc = self._bus.nc
        self._batches += 1
        batch_id = f"fill-{self._batches}"
        reply = nc.new_inbox()
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_ack(_subject: str, _reply: str, body: bytes, _headers: bytes | None) -> None:
            if not answered.done():
                answered.set_result(body)

        subscription = await nc.subscribe_direct(reply, on_ack)
        last = runs * len(self._history)
        number = 0
        for _ in range(runs):
            run_id = new_run_id()
            prefix = subjects.run_prefix(TENANT, shard_of(run_id, self._shards), run_id)
            for copy in self._history:
                number += 1
                extra = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
                if number == last:
                    extra["Nats-Batch-Commit"] = "1"
                nc.publish_now(
                    copy.subject.replace(_PREFIX, prefix),
                    reply if number == last else "",
                    copy.body,
                    header_block(copy.headers | extra),
                )
        async with asyncio.timeout(_ACK_SECONDS):
            answer = json.loads(await answered)
        await nc.unsubscribe_direct(subscription)
        if answer.get("error") is not None or answer.get("count") != last:
            raise RuntimeError(f"a batch of histories was refused: {answer}")
