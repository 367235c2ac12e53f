"""The projector: from the log into the archive, exactly once.

A batch's rows and the sequence that they reach are one transaction; the log is acknowledged
after it. Whatever is delivered again is below that sequence and skipped; whatever should have
been delivered and was not (a process died with it) is read from the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from penstock import clock
from penstock.bus.claims import CLAIM_MARK, Claims
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.reader import RESULT, LogReader
from penstock.contracts import subjects
from penstock.contracts.archive import RESTORED_HEADER
from penstock.contracts.errors import (
    ConflictError,
    ErrorInfo,
    InvariantError,
    RejectedError,
    TransientError,
)
from penstock.contracts.messages import Claim, DeadLetter
from penstock.contracts.structs import decode, encode
from penstock.failpoints import reach
from penstock.telemetry.logs import EventLog
from penstock_archive.feed import BATCH_BYTES, Feed, LogMessage
from penstock_archive.projection import Projection, address
from penstock_archive.rows import Addressed, Key, Row
from penstock_archive.store import Position, Store

log = EventLog(__name__)

LAG_MESSAGES: Final = Gauge(
    "penstock_projector_lag_messages", "Facts in the log that the archive does not have yet"
)
LAG_SECONDS: Final = Gauge(
    "penstock_projector_lag_seconds", "Age of the oldest fact that waits for the archive"
)
PROJECTED: Final = Counter("penstock_projector_facts_total", "Facts that the archive took")
DEAD: Final = Counter(
    "penstock_projector_dead_facts_total", "Messages that the archive cannot hold"
)
COMMIT_SECONDS: Final = Histogram(
    "penstock_projector_commit_seconds",
    "Time of one transaction",
    buckets=(0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0),
)

_LAG_EVERY_SECONDS: Final = 2.0
_LONGEST_DELAY_SECONDS: Final = 15.0
_MISSING_SECONDS: Final = 0.5
"""Until missing objects are asked for again."""
_RUNS_AT_ONCE: Final = 100
"""Runs whose facts are read from the tables together."""
_DEAD_BODY_CHARACTERS: Final = 100_000
"""A dead letter must fit into a message, whatever its body is made of."""
_NOT_FOUND: Final = 404


class Projector:
    """Moves facts from one stream into one store."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        feed: Feed,
        reader: LogReader,
        claims: Claims,
        *,
        batch_size: int = 2_000,
        flush_seconds: float = 0.25,
        retry_seconds: float = 0.5,
    ) -> None:
        """Create a projector; ``run`` it.

        Args:
            bus: An open connection.
            store: The archive; its tables exist.
            feed: The durable's messages, not started.
            reader: Reads what the feed does not bring.
            claims: Where large bodies are.
            batch_size: Most facts in one transaction when catching up.
            flush_seconds: Longest wait for a batch to fill.
            retry_seconds: First wait after something was away; doubles up to 15 s.
        """
        self._bus = bus
        self._store = store
        self._feed = feed
        self._reader = reader
        self._claims = claims
        self._batch_size = batch_size
        self._flush_seconds = flush_seconds
        self._projection = Projection(store.instant)
        self.on_refused: Callable[[dict[Key, int]], None] | None = None
        """Callback for deleted runs with later facts, each up to a sequence."""
        self._position = Position(0, "")
        self._oldest_at: float | None = None
        self._reconnected = False
        self._stopping = asyncio.Event()
        self._retry_seconds = self._delay = retry_seconds

    async def run(self) -> None:
        """Project until ``stop``.

        Raises:
            InvariantError: ``archive_of_another_stream`` or ``archive_ahead_of_log``.
        """
        LAG_SECONDS.set_function(self._lag_seconds)
        self._bus.on_reconnect.append(self._on_reconnect)
        await self._feed.start()
        lag = asyncio.create_task(self._measure_lag(), name="projector-lag")
        try:
            while not self._stopping.is_set():
                try:
                    await self._catch_up()
                    await self._follow()
                except ConflictError as error:
                    log.warning("projector.conflict", code=error.code, reason=error.message)
                    self._projection.forget()
                except TransientError as error:
                    log.warning("projector.waiting", code=error.code, reason=error.message)
                    self._projection.forget()
                    await self._back_off()
        finally:
            lag.cancel()
            self._bus.on_reconnect.remove(self._on_reconnect)
            await self._feed.stop()

    async def stop(self) -> None:
        """Let ``run`` finish the messages that have arrived, and return."""
        self._stopping.set()
        await self._feed.stop()

    def _on_reconnect(self) -> None:
        self._reconnected = True

    # -- reading -----------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Find the position, and project messages delivered to a process that has ended."""
        self._reconnected = False
        created, last_seq, delivered = await self._log_position()
        position = await self._store.position(subjects.RUNS)
        if position is None:
            await self._store.begin(subjects.RUNS, created)
        elif position.created != created:
            raise InvariantError(
                "archive_of_another_stream",
                f"the archive was projected from a stream {subjects.RUNS} of {position.created}, "
                f"this one is of {created}; give the archive a separate database",
            )
        elif position.last_seq > last_seq:
            raise InvariantError(
                "archive_ahead_of_log",
                f"the archive was projected up to {position.last_seq}, but the stream "
                f"{subjects.RUNS} ends at {last_seq}: its last facts were lost, perhaps with the "
                "power; project the log into an empty database",
            )
        position = position or Position(0, created)
        if position.generation != self._position.generation:
            self._projection.forget()
        self._position = position
        while self._position.rebuilding and not self._stopping.is_set():
            await self._rebuild_some()
        while self._position.last_seq < delivered and not self._stopping.is_set():
            messages, reached = await self._read(self._position.last_seq + 1, delivered + 1)
            await self._project(messages, reached)
        self._oldest_at = None

    async def _rebuild_some(self) -> None:
        """Project again what the log has, and in between what only the archive has."""
        position = self._position
        until = position.rebuild_until or 0
        kept = await self._store.facts_after(position.last_seq, until, self._batch_size)
        if len(kept) == self._batch_size:
            until = kept[-1].seq
        messages, reached = await self._read(position.last_seq + 1, until + 1)
        in_log = {message.seq for message in messages}
        messages += [
            LogMessage(fact.seq, fact.subject, fact.body.encode())
            for fact in kept
            if fact.seq <= reached and fact.seq not in in_log
        ]
        messages.sort()
        await self._project(messages, reached, replaces=True)

    async def _log_position(self) -> tuple[str, int, int]:
        """Return when the stream was created, where it ends, how far it was delivered."""
        try:
            stream = await self._bus.api(f"STREAM.INFO.{subjects.RUNS}")
            durable = await self._bus.api(f"CONSUMER.INFO.{subjects.RUNS}.{subjects.PROJECTOR}")
        except JetStreamError as error:
            raise TransientError("log_unavailable", str(error)) from error
        delivered = int(durable["delivered"]["stream_seq"])
        return stream["created"], int(stream["state"]["last_seq"]), delivered

    async def _follow(self) -> None:
        while True:
            messages = await self._feed.take(self._flush_seconds)
            if not messages or self._reconnected:
                return  # a server that was restarted may have lost facts: look again
            whole: list[LogMessage] = []
            reached = self._position.last_seq
            for message in messages:
                if message.seq <= reached:
                    continue
                while message.seq > reached + 1:
                    found, reached = await self._read(reached + 1, message.seq)
                    whole += found
                    if len(whole) >= self._batch_size:
                        await self._project(whole, reached)
                        whole = []
                whole.append(message)
                reached = message.seq
            if reached > self._position.last_seq:
                await self._project(whole, reached)
            self._oldest_at = None
            self._feed.acknowledge(messages[-1])

    async def _read(self, first: int, before: int) -> tuple[list[LogMessage], int]:
        """Read what the stream holds from ``first`` up to, not including, ``before``.

        Returns:
            Messages in order, one batch at most, and the sequence up to which nothing is missing.
        """
        page = await self._reader.get_many(
            subjects.RUNS,
            {
                "next_by_subj": subjects.RUN_SPACE,
                "seq": first,
                "batch": min(before - first, self._batch_size),
                "max_bytes": BATCH_BYTES,
            },
            timeout_seconds=30.0,
        )
        messages = [
            LogMessage(
                stored.seq, stored.subject, stored.body, "", RESTORED_HEADER in stored.headers
            )
            for stored in page.messages
            if stored.seq < before
        ]
        if page.messages and page.messages[-1].seq >= before:
            return messages, before - 1
        if messages:
            return messages, messages[-1].seq
        # Nothing there: ask the leader whether that is so, a replica may lag.
        found = await self._first_from(first)
        if found is not None and found[0] < before:
            raise TransientError("read_lags", f"a replica does not have {found[0]} yet")
        return [], before - 1

    async def _first_from(self, seq: int) -> tuple[int, datetime] | None:
        """Return sequence and time of the stream's first fact from ``seq`` on."""
        try:
            answer = await self._bus.api(
                f"STREAM.MSG.GET.{subjects.RUNS}",
                {"seq": seq, "next_by_subj": subjects.RUN_SPACE},
            )
        except JetStreamError as error:
            if error.code == _NOT_FOUND:
                return None
            raise TransientError("log_unavailable", str(error)) from error
        message = answer["message"]
        return int(message["seq"]), datetime.fromisoformat(message["time"])

    # -- projecting --------------------------------------------------------------------------

    async def _project(
        self, messages: Sequence[LogMessage], last_seq: int, *, replaces: bool = False
    ) -> None:
        addressed: list[Addressed] = []
        claims: list[Row] = []
        messages = await self._without_copies(messages)
        bodies = await self._bodies(messages)
        for message in messages:
            body = bodies.get(message.seq, message.body)
            try:
                if isinstance(body, RejectedError):
                    raise body
                claim = decode(Claim, message.body) if body is not message.body else None
                item = address(message.seq, message.subject, body)
            except (ValueError, RejectedError) as error:
                await self._bury(message.seq, message.subject, message.body, str(error))
                continue
            addressed.append(item)
            if claim is not None:
                subject = item.subject
                claims.append((item.seq, subject.tenant, subject.run_id, claim.sha256))
        await self._commit(addressed, claims, last_seq, replaces=replaces)
        PROJECTED.inc(len(addressed))
        self._delay = self._retry_seconds

    async def _without_copies(self, messages: Sequence[LogMessage]) -> Sequence[LogMessage]:
        """Leave out facts that the archive put back into the log."""
        copies = [message for message in messages if message.restored]
        if not copies:
            return messages
        run_ids = {message.subject.split(".")[3] for message in copies}
        known = await self._store.subjects_of(sorted(run_ids))
        return [
            message
            for message in messages
            if not message.restored or known.get(message.subject, message.seq) >= message.seq
        ]

    async def _commit(
        self,
        messages: Sequence[Addressed],
        claims: Sequence[Row],
        last_seq: int,
        *,
        replaces: bool,
    ) -> None:
        """Write messages; those that the database refuses are found by halving, and buried."""
        projection = self._projection
        first_seq = self._position.last_seq
        missing = projection.missing(messages)
        for begin in range(0, len(missing), _RUNS_AT_ONCE):
            keys = missing[begin : begin + _RUNS_AT_ONCE]
            projection.load(keys, await self._store.load(keys, first_seq))
        batch = projection.build(messages, last_seq)
        batch.claims.extend(
            row
            for row in claims
            if first_seq < row[0] <= last_seq and (row[1], row[2]) not in batch.refused
        )
        if replaces:
            batch.replaces_after = first_seq
        for item, reason in batch.unreadable:
            await self._bury(item.seq, item.subject_text, item.body, reason)
        began_at = time.perf_counter()
        reach("projector.batch_read")
        try:
            await self._store.commit(subjects.RUNS, batch, after=self._position)
            reach("projector.batch_stored")
        except RejectedError as error:
            projection.forget()
            if len(messages) > 1:
                half = len(messages) // 2
                middle = messages[half - 1].seq
                await self._commit(messages[:half], claims, middle, replaces=replaces)
                await self._commit(messages[half:], claims, last_seq, replaces=replaces)
            elif messages:
                refused = messages[0]
                await self._bury(refused.seq, refused.subject_text, refused.body, error.message)
                await self._commit([], [], last_seq, replaces=replaces)
            else:
                raise TransientError("archive_refuses", error.message) from error
            return
        COMMIT_SECONDS.observe(time.perf_counter() - began_at)
        projection.committed(batch)
        self._position = self._position._replace(last_seq=last_seq)
        if batch.refused and self.on_refused is not None:
            self.on_refused(batch.refused)

    async def _bodies(self, messages: Sequence[LogMessage]) -> dict[int, bytes | RejectedError]:
        """Return by sequence what the claims among messages stand for, or why that is not known.

        A result's claim that leads nowhere stands for itself: every reader takes it for a result
        that cannot be read. All missing objects are waited for together.
        """
        found: dict[int, bytes | RejectedError] = {}
        waiting = [message for message in messages if message.body.startswith(CLAIM_MARK)]
        while waiting:
            missing: list[LogMessage] = []
            for message in waiting:
                try:
                    found[message.seq] = await self._claims.unpack(message.body)
                except TransientError as error:
                    if error.code != "object_missing":
                        raise
                    missing.append(message)
                except InvariantError as error:
                    lost = RejectedError(error.code, error.message)
                    found[message.seq] = message.body if RESULT in message.subject else lost
            if missing:
                log.warning("projector.objects_missing", count=len(missing), seq=missing[0].seq)
                await asyncio.sleep(_MISSING_SECONDS)
            waiting = missing
        return found

    async def _bury(self, seq: int, subject: str, body: bytes, reason: str) -> None:
        """Keep as a dead letter what cannot be projected; only then does the log move on."""
        if seq <= (self._position.rebuild_until or 0):
            return  # buried already, when it was projected for the first time
        letter = DeadLetter(
            stream=subjects.RUNS,
            stream_seq=seq,
            subject=subject,
            consumer=subjects.PROJECTOR,
            deliveries=1,
            error=ErrorInfo(code="not_projectable", message=reason[:1_000]),
            body=body.decode("utf-8", "replace")[:_DEAD_BODY_CHARACTERS],
            occurred_at=clock.now(),
        )
        log.error("projector.dead_letter", subject=subject, seq=seq, reason=reason)
        await self._bus.request(
            subjects.dead(subjects.RUNS, subjects.PROJECTOR),
            encode(letter),
            headers={"Nats-Msg-Id": f"{subjects.RUNS}.{seq}.{subjects.PROJECTOR}"},
        )
        DEAD.inc()

    # -- waiting and lagging -----------------------------------------------------------------

    async def _back_off(self) -> None:
        delay = self._delay
        self._delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
        try:
            await asyncio.wait_for(self._stopping.wait(), delay)
        except TimeoutError:
            return

    def _lag_seconds(self) -> float:
        oldest_at = self._oldest_at
        return 0.0 if oldest_at is None else max(0.0, clock.epoch() - oldest_at)

    async def _measure_lag(self) -> None:
        while True:
            try:
                await self._look_at_lag()
            except (JetStreamError, TransientError) as error:
                log.warning("projector.lag_unknown", reason=str(error))
            await asyncio.sleep(_LAG_EVERY_SECONDS)

    async def _look_at_lag(self) -> None:
        """Measure how far the archive is behind; where it is not, look at the tables again.

        The process that rebuilds the tables, or deletes from them, may be another one.
        """
        position = self._position.last_seq
        info = await self._bus.api(f"STREAM.INFO.{subjects.RUNS}")
        behind = max(0, int(info["state"]["last_seq"]) - position)
        LAG_MESSAGES.set(behind)
        if not behind:
            self._oldest_at = None
            self._feed.nudge()
            return
        found = await self._first_from(position + 1)
        if found is None:
            self._oldest_at = None  # all of them were deleted
        elif self._position.last_seq == position:
            self._oldest_at = found[1].timestamp()
