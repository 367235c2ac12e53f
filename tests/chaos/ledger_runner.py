"""A runner whose tool leaves a trace of every time it really ran: the effect ledger.

Three kinds of lines: ``begin`` (a handler has begun), ``effect`` (its effect is had) and ``stall``
(the process was kept from working between two moments, whoever kept it from that).
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
from pathlib import Path

from penstock.runner import Runner, StepContext

TICK_SECONDS = 0.2
STALL_SECONDS = 1.0

runner = Runner(
    kind="tool", queue="ledger", concurrency=int(os.environ.get("LEDGER_CONCURRENCY", "24"))
)
_watches: set[asyncio.Task[None]] = set()


@functools.cache
def _ledger() -> int:
    return os.open(Path(os.environ["LEDGER"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _write(what: str, **fields: object) -> None:
    # One write of less than a page to a file opened for appending is not torn.
    line = {"what": what, "pid": os.getpid(), "at": time.time(), **fields}
    os.write(_ledger(), json.dumps(line).encode() + b"\n")


async def _watch() -> None:
    """Note each time that this process stood still, as only the process itself can know it."""
    before = time.time()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = time.time()
        if now - before > STALL_SECONDS:
            _write("stall", since=before)
        before = now


@runner.tool("effect")
async def effect(ctx: StepContext, seconds: float = 0.0) -> dict[str, int]:
    """Work for a while, then have the effect: one line in the ledger."""
    if not _watches:
        _watches.add(asyncio.create_task(_watch()))
    _write("begin", key=ctx.idempotency_key, attempt=ctx.attempt, deliveries=ctx.deliveries)
    await asyncio.sleep(seconds)
    _write("effect", key=ctx.idempotency_key, attempt=ctx.attempt)
    return {"pid": os.getpid()}


if __name__ == "__main__":
    runner.run()
