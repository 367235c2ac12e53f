"""All sources of time and chance that Penstock's modules have, under the simulation's control."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

from penstock import clock
from tests.simulation.loop import PROCESS, SimLoop

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_EPOCH_SECONDS = EPOCH.timestamp()


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


def wall(loop: SimLoop) -> datetime:
    """Return the time that the running process takes it to be."""
    return EPOCH + timedelta(seconds=loop.now + PROCESS.get().skew_seconds)


@contextmanager
def clock_of(loop: SimLoop) -> Iterator[None]:
    """Let every module of Penstock read the simulated time while this is open."""

    class Clock(datetime, metaclass=_Kind):
        def __new__(cls, *args: Any, **options: Any) -> Any:
            return datetime(*args, **options)  # noqa: DTZ001 - as the caller says

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return wall(loop).astimezone(tz)

    def unix() -> float:
        return _EPOCH_SECONDS + loop.now + PROCESS.get().skew_seconds

    def draw_uuid() -> uuid.UUID:
        return uuid.UUID(int=loop.random.getrandbits(128), version=4)

    fake_time = SimpleNamespace(
        time=unix,
        time_ns=lambda: int(unix() * 1e9),
        monotonic=loop.time,
        perf_counter=loop.time,
    )
    replaced = {
        id(datetime): Clock,
        id(time): fake_time,
        id(time.time): unix,
        id(time.monotonic): loop.time,
        id(time.perf_counter): loop.time,
        id(uuid): SimpleNamespace(uuid4=draw_uuid),
        id(uuid.uuid4): draw_uuid,
    }
    process_clock = {
        id(clock.correct): lambda seconds: setattr(PROCESS.get(), "corrected_by", seconds),
        id(clock.offset_seconds): lambda: PROCESS.get().corrected_by,
    }
    replaced |= process_clock
    undo: list[tuple[dict[str, Any], str, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("penstock"):
            names = vars(module)
            for key, value in list(names.items()):
                fake = replaced.get(id(value))
                if fake is not None:
                    undo.append((names, key, value))
                    names[key] = fake
    try:
        yield
    finally:
        for names, key, value in undo:
            names[key] = value
