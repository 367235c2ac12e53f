"""The registry of runners: live, suspect and lost ones, from bucket ``runners``.

The bucket itself reports when a heartbeat's TTL has run out; nothing sweeps. Only when the bucket
lost its keys before their time (a restarted server: it is kept in memory) is a runner given the
rest of its TTL to beat again, so that a restart of the bus loses no runner.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge
from pydantic import ValidationError

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.kv_watch import KvChange, Watch
from penstock.contracts import subjects
from penstock.contracts.rpc import ListRunners, RunnerView
from penstock.contracts.runners import RunnerRecord
from penstock.telemetry.logs import EventLog
from penstock_registry.core.liveness import shown_to, state_of, visible_to

log = EventLog(__name__)

RUNNERS_LOST: Final = Counter(
    "penstock_registry_runners_lost_total", "Runners whose heartbeat ceased", ["kind"]
)
RUNNERS_LIVE: Final = Gauge(
    "penstock_registry_runners", "Runners whose heartbeat has not ceased", ["kind"]
)

_EARLY_SECONDS: Final = 1.5
"""Keys end up to a second after their TTL; one that ends this much before it was not expired."""


@dataclass(slots=True)
class _Seen:
    runner: RunnerRecord
    heard_at: float
    lost: bool = False
    timer: asyncio.TimerHandle | None = None


class RunnerRegistry:
    """Follows the bucket and answers from memory."""

    def __init__(self, bus: Bus, *, lost_kept_seconds: float) -> None:
        """Prepare the registry.

        Args:
            bus: The connection.
            lost_kept_seconds: How long a lost runner stays listed.
        """
        self._bucket = Bucket(bus, subjects.RUNNERS)
        self._lost_kept_seconds = lost_kept_seconds
        self._seen: dict[str, _Seen] = {}
        self._watch: Watch | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Learn who lives, then follow.

        Raises:
            JetStreamError: There is no bucket.
            TransientError: The bus did not answer.
        """
        self._watch = await self._bucket.watch(">", self._on_change)
        await self._watch.ready()

    async def stop(self) -> None:
        """Follow no longer."""
        if self._watch is not None:
            await self._watch.stop()
        for seen in self._seen.values():
            self._forget_timer(seen)

    def list(self, request: ListRunners) -> list[RunnerView]:
        """Return the runners that match, in the order of their keys."""
        now = self._loop.time()
        found: list[RunnerView] = []
        for key in sorted(self._seen):
            seen = self._seen[key]
            runner = seen.runner
            silent = max(0.0, now - seen.heard_at)
            state = state_of(runner, silent, lost=seen.lost)
            if (
                visible_to(request.tenant, runner)
                and request.kind in (None, runner.kind)
                and request.queue in (None, runner.queue)
                and request.state in (None, state)
            ):
                shown = shown_to(request.tenant, runner)
                view = RunnerView(runner=shown, state=state, silent_seconds=round(silent, 3))
                found.append(view)
        return found

    def _on_change(self, change: KvChange) -> None:
        if change.value is not None:
            self._on_beat(change.key, change.value)
        elif (seen := self._seen.get(change.key)) is None or seen.lost:
            return
        elif change.reason == "deleted":
            self._remove(change.key)
            log.info("runner.left", **_fields(seen.runner))
        else:
            self._on_end(change.key, seen)

    def _on_beat(self, key: str, value: bytes) -> None:
        try:
            runner = RunnerRecord.model_validate_json(value)
        except ValidationError as error:
            log.warning("runner.unreadable", key=key, reason=str(error.errors()[0]["msg"]))
            return
        before = self._seen.get(key)
        if before is None or before.lost:
            RUNNERS_LIVE.labels(runner.kind).inc()
            log.info("runner.joined" if before is None else "runner.returned", **_fields(runner))
        if before is not None:
            self._forget_timer(before)
        self._seen[key] = _Seen(runner, self._loop.time())

    def _on_end(self, key: str, seen: _Seen) -> None:
        rest = seen.heard_at + seen.runner.ttl_seconds - self._loop.time()
        if rest <= _EARLY_SECONDS:
            self._lose(key, seen)
        elif seen.timer is None:
            seen.timer = self._loop.call_later(rest, self._lose, key, seen)

    def _lose(self, key: str, seen: _Seen) -> None:
        if self._seen.get(key) is not seen or seen.lost:
            return
        seen.lost = True
        self._forget_timer(seen)
        seen.timer = self._loop.call_later(self._lost_kept_seconds, self._drop, key, seen)
        RUNNERS_LOST.labels(seen.runner.kind).inc()
        RUNNERS_LIVE.labels(seen.runner.kind).dec()
        log.warning("runner.lost", **_fields(seen.runner), ttl_seconds=seen.runner.ttl_seconds)

    def _drop(self, key: str, seen: _Seen) -> None:
        if self._seen.get(key) is seen:
            del self._seen[key]

    def _remove(self, key: str) -> None:
        seen = self._seen.pop(key)
        self._forget_timer(seen)
        RUNNERS_LIVE.labels(seen.runner.kind).dec()

    @staticmethod
    def _forget_timer(seen: _Seen) -> None:
        if seen.timer is not None:
            seen.timer.cancel()
            seen.timer = None


def _fields(runner: RunnerRecord) -> dict[str, str]:
    return {"kind": runner.kind, "queue": runner.queue, "runner_id": runner.runner_id}
