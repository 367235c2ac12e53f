"""Stop requests: recently stopped runs and steps, and the attempts that work for each run.

One book per process, fed by one subscription, for any number of runners.
"""

from __future__ import annotations

from typing import Final

from nats.aio.msg import Msg
from pydantic import ValidationError

from penstock.contracts.runners import StopRequest
from penstock.contracts.subjects import parse_stop
from penstock.runner.attempt import Attempt
from penstock.telemetry.logs import EventLog

REMEMBERED: Final = 10_000
"""A step may arrive shortly after its run was stopped; older ones are found in the log."""

log = EventLog(__name__)


class StopBook:
    """Knows what to stop when a run, or a step of it, is stopped."""

    __slots__ = ("_remembered", "_running", "_runs", "_steps")

    def __init__(self, remembered: int = REMEMBERED) -> None:
        """Create an empty book that remembers so many stopped runs, and as many stopped steps."""
        self._remembered = remembered
        self._runs: dict[str, None] = {}
        self._steps: dict[tuple[str, str], int] = {}
        """Stopped steps, with the last attempt that is stopped (0: all)."""
        self._running: dict[str, list[tuple[str, Attempt]]] = {}

    def stopped(self, run_id: str, step_id: str, attempt: int = 1) -> bool:
        """Whether the run, or this attempt at a step of it, was stopped lately."""
        if run_id in self._runs:
            return True
        last = self._steps.get((run_id, step_id))
        return last is not None and (not last or attempt <= last)

    def enter(self, run_id: str, step_id: str, attempt: Attempt) -> None:
        """Note that an attempt works for the run."""
        attempts = self._running.get(run_id)
        if attempts is None:
            self._running[run_id] = [(step_id, attempt)]
        else:
            attempts.append((step_id, attempt))

    def leave(self, run_id: str, attempt: Attempt) -> None:
        """Note that it does not any more."""
        attempts = self._running[run_id]
        if len(attempts) == 1:
            del self._running[run_id]
        else:
            attempts[:] = [entry for entry in attempts if entry[1] is not attempt]

    def stop(self, run_id: str) -> None:
        """Stop everything that works for the run, now and a while from now."""
        self._runs.pop(run_id, None)
        self._runs[run_id] = None
        if len(self._runs) > self._remembered:
            del self._runs[next(iter(self._runs))]
        for _, attempt in tuple(self._running.get(run_id, ())):
            attempt.stop("stopped")

    def stop_steps(self, run_id: str, steps: tuple[str, ...], attempt: int = 0) -> None:
        """Stop some steps of the run, up to an attempt (0: all); its other steps continue."""
        for step_id in steps:
            self._steps.pop((run_id, step_id), None)
            self._steps[run_id, step_id] = attempt
        while len(self._steps) > self._remembered:
            del self._steps[next(iter(self._steps))]
        wanted = frozenset(steps)
        for step_id, running in tuple(self._running.get(run_id, ())):
            if step_id in wanted:
                running.stop("stopped")

    async def on_message(self, message: Msg) -> None:
        """Take a message of ``subjects.STOP_SPACE``."""
        run_id = parse_stop(message.subject)
        if not message.data:
            self.stop(run_id)
            return
        try:
            request = StopRequest.model_validate_json(message.data)
        except ValidationError as error:
            # Stopping too much would lose work; a step that runs too long meets its deadline.
            log.warning("runner.stop_unreadable", run_id=run_id, reason=str(error)[:500])
            return
        if request.steps:
            self.stop_steps(run_id, request.steps, request.attempt)
        else:
            self.stop(run_id)
