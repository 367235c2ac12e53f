"""Retention of the log: deletes the facts of runs that have ended and are in the archive.

The stream ``RUNS`` itself has no limit of age or size, since that would delete facts of open runs.
Each engine trims the shards that it leads. It finds the ended runs by their last facts, the oldest
first. A run's first fact is deleted first and its end last, so an interrupted deletion never leaves
a run that looks open, and the next pass finds it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Final

from penstock import clock
from penstock.bus.capacity import log_bytes
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.reader import LogReader, Stored
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError, TransientError
from penstock.contracts.facts import RunInvoked
from penstock.contracts.subjects import FactSubject
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.engine.metrics import ENGINE_TRIMMED

log = EventLog(__name__)

_EVERY_SECONDS: Final = 30.0
_GONE: Final = (10043, 10057)
"""The server's codes for a message that does not exist."""
_AT_ONCE: Final = 32
_LOW_WATER: Final = 0.9
"""Share of ``max_bytes`` that a pass trims to, so that starts are accepted until the next one."""
YOUNGEST: Final = timedelta(minutes=10)
"""Runs that ended later stay, however full the log: messages about them may be in flight."""


class LogRetention:
    """Trims the log; one per engine process."""

    def __init__(
        self,
        bus: Bus,
        reader: LogReader,
        *,
        keep: timedelta,
        max_bytes: int | None,
        shards: int,
        held: Callable[[], Collection[int]],
        youngest: timedelta = YOUNGEST,
    ) -> None:
        """Trim the log of ``bus``.

        Args:
            bus: An open connection.
            reader: Reads the log.
            keep: Age since its end at which a run's facts are deleted.
            max_bytes: Size of the log above which younger ended runs are deleted too.
            shards: Number of shards of the installation.
            held: Returns the shards that this engine leads now.
            youngest: Age since its end below which no run is deleted.
        """
        self._bus = bus
        self._reader = reader
        self._keep = keep
        self._max_bytes = max_bytes
        self._shards = shards
        self._held = held
        self._youngest = youngest
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the periodic task."""
        self._task = asyncio.create_task(self._run(), name="log-retention")

    async def stop(self) -> None:
        """Stop the periodic task; the rest is deleted after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                count = await self.trim(clock.now())
            except (PenstockError, JetStreamError) as error:
                log.warning("retention.delayed", error=str(error))
                continue
            if count:
                log.info("retention.trimmed", runs=count)

    async def trim(self, now: datetime) -> int:
        """Delete the ended runs that are too old, or the oldest while the log is too large.

        Returns:
            Number of runs deleted.

        Raises:
            TransientError: The bus does not answer.
            JetStreamError: The bus refused.
        """
        archived_seq = await self._archived_seq()
        excess = 0
        if self._max_bytes is not None:
            size = await log_bytes(self._bus)
            if size > self._max_bytes:
                excess = int(size - _LOW_WATER * self._max_bytes) // self._shards + 1
        count = 0
        for shard in tuple(self._held()):
            count += await self._trim_shard(shard, archived_seq, now, excess)
        return count

    async def _archived_seq(self) -> int:
        """Return the sequence up to which the archive has stored the log."""
        info = await self._bus.api(f"CONSUMER.INFO.{subjects.RUNS}.{subjects.PROJECTOR}")
        return int(info["ack_floor"]["stream_seq"])

    async def _trim_shard(self, shard: int, archived_seq: int, now: datetime, excess: int) -> int:
        count = 0
        async for page in self._reader.pages(subjects.RUNS, subjects.shard_ends_filter(shard)):
            for start in range(0, len(page), _AT_ONCE):
                chosen: list[Stored] = []
                for end in page[start : start + _AT_ONCE]:
                    if end.seq > archived_seq:
                        break
                    age = now - _stored_at(end)
                    if age < self._youngest or (age < self._keep and excess <= 0):
                        break
                    chosen.append(end)
                freed = await asyncio.gather(*(self._delete_run(end) for end in chosen))
                excess -= sum(freed)
                count += sum(size > 0 for size in freed)
                if len(chosen) < min(_AT_ONCE, len(page) - start):
                    return count
        return count

    async def _delete_run(self, end: Stored) -> int:
        """Delete a run's facts; return their size in bytes, 0 if the run has to stay."""
        subject = subjects.parse_fact(end.subject)
        stored = await self._reader.stored(subject.tenant, subject.shard, subject.run_id)
        first = next((m for m in stored if m.subject.endswith(".in.invoke")), None)
        if first is not None and not await self._parent_has_result(subject, first):
            return 0
        others = [message for message in stored if message.seq != end.seq and message is not first]
        if first is not None:
            await self._delete(first.seq)
        for start in range(0, len(others), _AT_ONCE):
            await asyncio.gather(*(self._delete(m.seq) for m in others[start : start + _AT_ONCE]))
        await self._delete(end.seq)
        ENGINE_TRIMMED.inc()
        return sum(len(m.subject) + len(m.body) + len(m.block or b"") for m in stored)

    async def _parent_has_result(self, subject: FactSubject, first: Stored) -> bool:
        """Return whether a run has no parent that still needs its end.

        An engine that reloads the parent starts a child again that it knows no result of. The log
        refuses that as a duplicate as long as it has the child.
        """
        try:
            fact = (await self._reader.entry(first)).fact
        except PenstockError as error:
            # The run stays, and must not keep the runs after it in the log.
            log.warning("retention.run_unreadable", run_id=subject.run_id, reason=str(error))
            return False
        parent = fact.parent if isinstance(fact, RunInvoked) else None
        if parent is None:
            return True
        prefix = subjects.run_prefix(subject.tenant, parent.shard, parent.run_id)
        needed = [
            subjects.result(prefix, parent.step_id, parent.attempt),
            subjects.ends_filter(prefix),
            subjects.invoke(prefix),
        ]
        page = await self._reader.get_many(subjects.RUNS, {"multi_last": needed})
        # Nothing, or more than the first fact: the parent is trimmed, has the result, or has ended.
        return [message.subject for message in page.messages] != [subjects.invoke(prefix)]

    async def _delete(self, seq: int) -> None:
        try:
            await self._bus.api(
                f"STREAM.MSG.DELETE.{subjects.RUNS}",
                {"seq": seq, "no_erase": True},
                timeout_seconds=30,
            )
        except JetStreamError as error:
            if error.err_code not in _GONE:
                raise TransientError("log_unavailable", str(error)) from error


def _stored_at(message: Stored) -> datetime:
    return datetime.fromisoformat(message.headers["Nats-Time-Stamp"])
