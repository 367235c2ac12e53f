"""A runner whose tool leaves a trace of every time it really ran: the effect ledger."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

from penstock.runner import Runner, StepContext

runner = Runner(kind="tool", queue="ledger", concurrency=24)


@runner.tool("effect")
async def effect(ctx: StepContext, seconds: float = 0.0) -> dict[str, int]:
    """Work for a while, then have the effect: one line in the ledger."""
    await asyncio.sleep(seconds)
    line = {
        "key": ctx.idempotency_key,
        "attempt": ctx.attempt,
        "pid": os.getpid(),
        "at": time.time(),
    }
    path = Path(os.environ["LEDGER"])
    # One write of less than a page to a file opened for appending is not torn.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)
    return {"pid": os.getpid()}


if __name__ == "__main__":
    runner.run()
