"""When a failed attempt is tried again. The only place in Penstock that decides so."""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Final

from penstock.contracts.errors import THROTTLED
from penstock.contracts.facts import Wait
from penstock.contracts.plan import RetryPolicy
from penstock.runs.state import RunState, StepState

_LONGEST_SECONDS: Final = 366 * 86_400.0
"""No run lives so long; beyond it a foreign ``Retry-After`` would leave the calendar."""


def next_attempt(
    policy: RetryPolicy, state: RunState, step: StepState, now: datetime
) -> Wait | None:
    """Return when a failed step is tried again, or ``None`` if it has failed for good.

    The delay grows by ``factor`` from ``initial_seconds`` up to ``max_seconds``, spread by a
    jitter that is derived from run, step and attempt; a longer ``retry_after_seconds`` of the
    error is honoured. An attempt that a rate limit turned away is no try.
    """
    error = step.error
    if error is None:
        return None
    throttled = error.code == THROTTLED
    tries = step.attempt - step.throttled
    if not throttled and (error.family not in policy.retry_on or tries >= policy.max_attempts):
        return None
    delay = _back_off(policy, max(tries, 1))
    seed = zlib.crc32(f"{state.run_id}:{step.step_id}:{step.attempt}".encode()) / 0xFFFFFFFF
    delay *= 1 + policy.jitter * (2 * seed - 1)
    if error.retry_after_seconds is not None:
        delay = max(delay, error.retry_after_seconds)
    delay = min(delay, _LONGEST_SECONDS)
    attempt = step.attempt + 1
    return Wait(
        timer_id=f"{step.step_id}-{attempt}"[-64:],
        step_id=step.step_id,
        next_attempt=attempt,
        due_at=now + timedelta(seconds=delay),
    )


def _back_off(policy: RetryPolicy, attempt: int) -> float:
    try:
        delay = policy.initial_seconds * policy.factor ** (attempt - 1)
    except OverflowError:
        return policy.max_seconds
    return min(delay, policy.max_seconds)
