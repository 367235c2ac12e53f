"""Which runs are to stop: those told of lately, and the attempts that work for each run.

One book per process, fed by one subscription, whatever the number of its runners.
"""

from __future__ import annotations

from typing import Final

from nats.aio.msg import Msg

from penstock.contracts.subjects import parse_stop
from penstock.runner.attempt import Attempt

REMEMBERED: Final = 10_000
"""A step may arrive shortly after its run was stopped; older ones are found in the log."""


class StopBook:
    """Knows what to stop when a run is stopped."""

    __slots__ = ("_remembered", "_running", "_stopped")

    def __init__(self, remembered: int = REMEMBERED) -> None:
        """Create an empty book that remembers that many stopped runs."""
        self._remembered = remembered
        self._stopped: dict[str, None] = {}
        self._running: dict[str, list[Attempt]] = {}

    def stopped(self, run_id: str) -> bool:
        """Whether the run was stopped lately."""
        return run_id in self._stopped

    def enter(self, run_id: str, attempt: Attempt) -> None:
        """Note that an attempt works for the run."""
        attempts = self._running.get(run_id)
        if attempts is None:
            self._running[run_id] = [attempt]
        else:
            attempts.append(attempt)

    def leave(self, run_id: str, attempt: Attempt) -> None:
        """Note that it does not any more."""
        attempts = self._running[run_id]
        if len(attempts) == 1:
            del self._running[run_id]
        else:
            attempts.remove(attempt)

    def stop(self, run_id: str) -> None:
        """Stop everything that works for the run, now and a while from now."""
        self._stopped.pop(run_id, None)
        self._stopped[run_id] = None
        if len(self._stopped) > self._remembered:
            del self._stopped[next(iter(self._stopped))]
        for attempt in tuple(self._running.get(run_id, ())):
            attempt.stop("stopped")

    async def on_message(self, message: Msg) -> None:
        """Take a message of ``subjects.STOP_SPACE``."""
        self.stop(parse_stop(message.subject))
