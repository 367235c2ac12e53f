"""A runner whose process dies at the point that CRASH_AT names; EFFECTS counts what it did."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from penstock.contracts.errors import ErrorInfo
from penstock.runner import Runner, StepContext
from penstock.runner.attempt import Attempt
from penstock.runner.execution import StepExecutor

CRASH_AT = os.environ.get("CRASH_AT", "")
runner = Runner(kind="tool", queue=os.environ["QUEUE"], concurrency=4)


def pass_point(name: str) -> None:
    if name == CRASH_AT:
        os.kill(os.getpid(), signal.SIGKILL)


@runner.tool("pay")
def pay(ctx: StepContext) -> str:
    pass_point("before the effect")
    with Path(os.environ["EFFECTS"]).open("a", encoding="utf-8") as file:
        file.write(f"{ctx.idempotency_key}\n")
    pass_point("after the effect")
    return "paid"


begin, count = StepExecutor._begin, StepExecutor._count


async def frail_begin(self: StepExecutor, ctx: StepContext, attempt: Attempt) -> None:
    pass_point("before it is noted")
    await begin(self, ctx, attempt)


def frail_count(self: StepExecutor, failure: ErrorInfo | None) -> None:
    pass_point("after the outcome is recorded")
    count(self, failure)


StepExecutor._begin = frail_begin  # type: ignore[method-assign]
StepExecutor._count = frail_count  # type: ignore[method-assign]

if __name__ == "__main__":
    runner.run()
