"""The bus's clock on a real server: processes whose own clocks are wrong agree with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from penstock import clock
from penstock.bus.connection import connect
from penstock.bus.topology import ensure
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings

WRONG_BY = 90.0


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], float]]:
    """Set this process's clock back; return the right time."""
    right, before = time.time, clock.offset_seconds()
    monkeypatch.setattr(time, "time", lambda: right() - WRONG_BY)
    yield right
    clock.correct(before)


async def test_clock_that_is_behind_is_corrected_and_noticed(
    nats_server: NatsServer, behind: Callable[[], float], caplog: pytest.LogCaptureFixture
) -> None:
    settings = CoreSettings(nats_url=nats_server.url)
    first = await connect(settings, name="test")
    await ensure(first, settings)
    await first.close()
    clock.correct(0.0)

    bus = await connect(settings, name="test")

    # The answer took at most a second, else it does not count.
    assert clock.offset_seconds() == pytest.approx(WRONG_BY, abs=1)
    assert clock.now() > datetime.fromtimestamp(behind() - 2, UTC)
    assert "bus.clock_skewed" in caplog.text
    await bus.close()


async def test_clock_that_is_right_stays(nats_server: NatsServer) -> None:
    settings = CoreSettings(nats_url=nats_server.url)
    bus = await connect(settings, name="test")
    await ensure(bus, settings)
    clock.correct(0.0)

    for _ in range(20):
        await bus.measure_clock()

    # The time that an answer takes is no error of the clock: durations must not be cut by it.
    assert clock.offset_seconds() == 0.0
    await bus.close()
