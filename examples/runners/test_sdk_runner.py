"""How to test handlers without a server."""

from __future__ import annotations

import asyncio
from time import sleep

from penstock.runner import RejectedError, Runner, StepContext, TransientError
from penstock.testing import LocalRunner

runner = Runner(kind="tool", queue="orders")


@runner.tool("price")
async def price(article: str, pieces: int = 1) -> dict[str, float]:
    if article == "unicorn":
        raise RejectedError("unknown_article", "we have no unicorns")
    if article == "gold":
        raise TransientError("market_closed", "no price now", retry_after_seconds=60)
    return {"total": 2.5 * pieces}


@runner.tool("pay")
async def pay(ctx: StepContext, token: str) -> str:
    return f"paid {ctx.idempotency_key} with {token}"


@runner.tool("count")
async def count(ctx: StepContext) -> None:
    for page in range(3):
        ctx.heartbeat({"page": page})
        await ctx.emit_delta(f"page {page}. ")
    await asyncio.Event().wait()


@runner.tool("poll")
def poll(ctx: StepContext) -> str:
    ctx.heartbeat("waiting")
    while not ctx.cancelled.is_set():
        sleep(0.001)
    return "stopped by itself"


local = LocalRunner(runner, secrets={"TOKEN": "s3cr3t-token"})


async def test_result_and_checked_arguments() -> None:
    outcome = await local.call("price", {"article": "pen", "pieces": 4})
    assert (outcome.status, outcome.output) == ("succeeded", {"total": 10.0})

    outcome = await local.call("price", {"article": "pen", "pieces": "many"})
    assert outcome.error is not None
    assert (outcome.status, outcome.error.code) == ("failed", "invalid_arguments")


async def test_errors_by_family() -> None:
    rejected = (await local.call("price", {"article": "unicorn"})).error
    assert rejected is not None
    assert (rejected.family, rejected.code) == ("rejected", "unknown_article")

    transient = (await local.call("price", {"article": "gold"})).error
    assert transient is not None
    assert (transient.family, transient.retry_after_seconds) == ("transient", 60)


async def test_secrets_are_filled_in_and_hidden() -> None:
    outcome = await local.call("pay", {"token": "{{ secrets.TOKEN }}"}, step_id="pay-1")
    assert isinstance(outcome.output, str)
    assert outcome.output.endswith("pay-1 with [secret]")


async def test_progress_and_missed_heartbeat() -> None:
    call = local.start("count", heartbeat_seconds=30)
    await call.until(lambda: len(call.heartbeats) == 3)
    outcome = await call.miss_heartbeat()
    assert outcome.heartbeats == ({"page": 0}, {"page": 1}, {"page": 2})
    assert outcome.error is not None
    assert outcome.error.code == "heartbeat_timeout"
    assert outcome.text == "page 0. page 1. page 2. "


async def test_deadline_and_cancellation() -> None:
    call = local.start("count")
    await call.until(lambda: len(call.heartbeats) == 3)
    outcome = await call.expire()
    assert outcome.error is not None
    assert outcome.error.code == "step_timeout"

    call = local.start("poll")
    await call.until(lambda: call.heartbeats == ("waiting",))
    assert (await call.stop()).status == "stopped"


async def test_step_that_must_not_be_repeated() -> None:
    first = await local.call("pay", {"token": "{{ secrets.TOKEN }}"}, at_most_once=True)
    again = await local.call("pay", {"token": "{{ secrets.TOKEN }}"}, at_most_once=True)
    assert (first.status, again.status) == ("succeeded", "unknown")
