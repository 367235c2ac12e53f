"""Waiting for runs, over a bus and a log that the test plays."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts.usage import RunLimits
from penstock.runs.state import RunState
from penstock_gateway.runs.plans import PlanGist, Plans
from penstock_gateway.runs.read import Runs
from penstock_gateway.runs.wait import RunWaiter, live_fact
from tests.support.simulation import Driver, make_plan, tool_node

END = "live.run.t.1.RUN.out.2.end"
HEADERS = b"NATS/1.0\r\nNats-Sequence: 7\r\nNats-Subject: x\r\n\r\n"
RUNNING = Driver(make_plan(tool_node("a"))).start().state
ENDED = Driver(make_plan(tool_node("a"))).start().result("a", 1).state


class LaggingRuns:
    """Reads from a replica that is behind unless the read says how far it must have come."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def state(self, _tenant: str, _run_id: str, *, at_least_seq: int) -> RunState:
        self.asked.append(at_least_seq)
        await asyncio.sleep(0)
        return ENDED if at_least_seq >= 7 else RUNNING


class NoClientTools:
    async def gist(self, _digest: str) -> PlanGist:
        return PlanGist(RunLimits(), client_tools=False)


def create_waiter(runs: Any) -> RunWaiter:
    plans = cast("Plans", NoClientTools())
    return RunWaiter(cast("Bus", None), cast("LogReader", None), cast("Runs", runs), plans, 8)


def test_live_copy_has_the_subject_and_sequence_of_its_fact() -> None:
    assert live_fact(END, b"{}", HEADERS) == ("run.t.1.RUN.out.2.end", 7, b"{}")
    assert live_fact(END, b"{}", None).seq == 0
    assert live_fact(END, b"{}", b"NATS/1.0\r\n\r\n").seq == 0


async def test_read_after_a_live_end_does_not_lag_behind_it() -> None:
    runs = LaggingRuns()
    waiter = create_waiter(runs)
    waiting = asyncio.create_task(waiter.wait_for("t", "RUN", 60))
    while not runs.asked:  # noqa: ASYNC110 - the read is the event
        await asyncio.sleep(0)

    waiter._on_end(END, "", b"{}", HEADERS)

    assert (await waiting).ended is not None
    assert runs.asked == [0, 7]
    assert waiter._waits == {}


async def test_wait_that_is_drained_returns_the_run_as_it_is() -> None:
    waiter = create_waiter(LaggingRuns())
    waiting = asyncio.create_task(waiter.wait_for("t", "RUN", 60))
    while not waiter._waits:  # noqa: ASYNC110 - the wait is the event
        await asyncio.sleep(0)

    waiter.drain()

    assert (await waiting).ended is None


async def test_wait_without_time_reads_once() -> None:
    runs = LaggingRuns()

    state = await create_waiter(runs).wait_for("t", "RUN", 0)

    assert (state.ended, runs.asked) == (None, [0])


async def test_two_waits_for_one_run_are_woken_together() -> None:
    waiter = create_waiter(LaggingRuns())
    first, second = waiter.open("t", "RUN", 60), waiter.open("t", "RUN", 60)
    other = waiter.open("t", "OTHER", 60)

    waiter._on_end(END, "", b"{}", HEADERS)

    assert await first.news() == await second.news() == live_fact(END, b"{}", HEADERS)
    assert list(waiter._waits) == ["OTHER"]
    for wait in (first, second, other):
        await wait.close()
    assert waiter._waits == {}
