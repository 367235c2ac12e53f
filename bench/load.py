"""Closed loops: a fixed number of runs in flight, each failure counted, everything bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

PHASE_SECONDS: Final = 45.0
"""No run is started after so much of a phase."""

RUN_SECONDS: Final = 30.0
"""A run that takes longer is an error."""

MAX_ERRORS: Final = 20

Run = Callable[[int], Awaitable[None]]
"""Does the run of the given number; raises ``RunFailedError`` or ``OSError``."""


class RunFailedError(Exception):
    """A run did not end as it must."""


@dataclass(slots=True)
class Outcome:
    """What a closed loop saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of the runs that succeeded, in seconds."""
    errors: list[str] = field(default_factory=list)

    def latency_ms(self, share: float) -> float:
        """Return the latency that ``share`` of the runs did not exceed."""
        return round(1e3 * quantile(self.latencies, share), 3)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of all lie; 0 if there are none."""
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def closed_loop(
    run: Run, count: int, in_flight: int, *, max_seconds: float = PHASE_SECONDS
) -> Outcome:
    """Do ``count`` runs, ``in_flight`` at any time; stop early when too much fails."""
    outcome = Outcome()
    numbers = iter(range(count))
    begun = time.perf_counter()

    async def worker() -> None:
        for number in numbers:
            started = time.perf_counter()
            if started - begun > max_seconds or len(outcome.errors) > MAX_ERRORS:
                return
            try:
                async with asyncio.timeout(RUN_SECONDS):
                    await run(number)
            except (OSError, RunFailedError) as error:
                outcome.errors.append(f"{type(error).__name__}: {error}"[:300])
            else:
                outcome.latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(worker() for _ in range(min(in_flight, count))))
    outcome.seconds = time.perf_counter() - begun
    return outcome
