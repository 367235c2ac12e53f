"""Admission: no more runs with the same concurrency key at a time than their plan allows.

A key's record in bucket ``turns`` says who is under way and who waits. It is changed first, by
compare-and-set; what follows from it (a run is told that it may begin, another that it must stop)
is stated in those runs' logs under subjects that exist once. Whoever repeats either changes
nothing, so a crash in between is repaired by the next one who looks.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from pydantic import ValidationError
from pydantic_core import to_json

from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv import Bucket, KvEntry
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorInfo, PenstockError, TransientError
from penstock.contracts.facts import CancelRequested, SignalReceived, fact_bytes
from penstock.contracts.ids import answer_signal_id, shard_of
from penstock.contracts.plan import ConcurrencySpec, Plan
from penstock.contracts.turns import TURN_RECORD, Answer, Turn, TurnRecord, asked, left
from penstock.expressions.evaluator import evaluate
from penstock.runs.state import RunState
from penstock_orchestrator.core.view import View

_log = logging.getLogger(__name__)

_ATTEMPTS: Final = 200
_EMPTY_SECONDS: Final = 600.0
"""A key that nobody uses is kept so long."""
_FORGOTTEN: Final = timedelta(days=30)
"""A run of which the log knows nothing any more keeps its place for so long."""
_AT_ONCE: Final = 300
"""Three facts of each fit into one answer of the server."""

Outcome = Literal["admitted", "queued", "rejected", "cancelled"]
Change = Callable[[TurnRecord], TurnRecord]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a run that asked.

    ``admitted``: the signal is in its log. ``queued``: the signal will come; nothing is to be
    decided. ``rejected``: it is to be ended as failed with ``error``. ``cancelled``: its
    ``in.cancel`` is in its log.
    """

    outcome: Outcome
    error: ErrorInfo | None = None
    position: int | None = None
    """How many wait before it, where it is queued."""


@dataclass(slots=True, eq=False)
class _Line:
    """Changes of one key that wait to be made together."""

    waiting: list[tuple[Change, asyncio.Future[TurnRecord]]] = field(default_factory=list)
    worker: asyncio.Task[None] | None = None


class Admission:
    """Gives places to runs; one per engine process, and they agree."""

    def __init__(self, bus: Bus, writer: LogWriter, reader: LogReader, *, shards: int) -> None:
        """Use the process's connection, writer and reader.

        Args:
            bus: An open connection.
            writer: Appends signals and cancellations.
            reader: Tells which runs have ended.
            shards: Number of shards of the installation.
        """
        self._bucket = Bucket(bus, subjects.TURNS)
        self._writer = writer
        self._reader = reader
        self._shards = shards
        self._lines: dict[str, _Line] = {}

    async def ask(
        self,
        tenant: str,
        run_id: str,
        shard: int,
        key: str,
        spec: ConcurrencySpec,
        *,
        priority: int = 0,
    ) -> Verdict:
        """Ask for a place; the answer's effects are stored when this returns. May be repeated.

        Args:
            tenant: The run's tenant.
            run_id: The run; it has not ended.
            shard: Its shard.
            key: The name of what is shared: see ``turn_name``.
            spec: What the run's plan says of the key.
            priority: Who waits with a higher one goes first.

        Raises:
            TransientError: The bus did not answer, or the key changes all the time.
            JetStreamError: The bus refused.
        """
        turn = Turn(run_id=run_id, shard=shard, since=datetime.now(UTC), priority=priority)
        answers: list[tuple[Answer, bool]] = []

        def change(record: TurnRecord) -> TurnRecord:
            known = record.holds(run_id)
            after, answer = asked(record, turn, spec)
            answers.append((answer, known))
            return after

        record = await self._change(tenant, key, change)
        answer, known = answers[-1]
        match answer:
            case "admitted":
                if known:
                    # Whoever admitted it may have died before it said so.
                    await self._admit(tenant, turn)
                return Verdict("admitted")
            case "queued":
                return Verdict("queued", position=record.position(run_id))
            case "cancelled":
                await self._cancel(tenant, turn, f"{spec.max} with the same key are under way")
                return Verdict("cancelled", _limit("concurrency_limit", key, spec.max))
            case "rejected":
                return Verdict("rejected", _limit("concurrency_limit", key, spec.max))
            case "queue_full":
                return Verdict("rejected", _limit("queue_full", key, spec.max))

    async def leave(self, tenant: str, run_id: str, key: str) -> None:
        """Give up the place of a run that has ended; the next one is told. May be repeated.

        Raises:
            TransientError: The bus did not answer, or the key changes all the time.
            JetStreamError: The bus refused.
        """
        known: list[bool] = []

        def change(record: TurnRecord) -> TurnRecord:
            known.append(record.holds(run_id) or record.position(run_id) is not None)
            return left(record, (run_id,), datetime.now(UTC))

        record = await self._change(tenant, key, change)
        if not known[-1]:
            # It had left before, perhaps without a word to those that took its place.
            await self._tell(tenant, record)

    async def sweep(self, held: Collection[int] | None = None) -> int:
        """Look at all keys: end the turns of runs that have ended, tell again who was admitted.

        Args:
            held: Only keys of these shards; all if not given.

        Returns:
            How many turns were ended.

        Raises:
            TransientError: The bus did not answer.
            JetStreamError: The bus refused.
        """
        ended = 0
        for name in await self._bucket.keys():
            if held is not None and shard_of(name, self._shards) not in held:
                continue
            entry = await self._bucket.get(name)
            record = _read(name, entry)
            if record.empty:
                continue
            tenant = name.split(".", 1)[0]
            said = await self._said(tenant, (*record.holders, *record.queue))
            gone, now = said.ended, datetime.now(UTC)

            def change(found: TurnRecord, gone: set[str] = gone, now: datetime = now) -> TurnRecord:
                return left(found, gone, now)

            after = await self._change(tenant, record.key, change)
            ended += len(gone)
            await self._tell(tenant, after, admitted=said.admitted, cancelled=said.cancelled)
        return ended

    # -- the record --------------------------------------------------------------------------

    async def _change(self, tenant: str, key: str, change: Change) -> TurnRecord:
        """Change a key's record; changes that come meanwhile are made together."""
        name = _key(tenant, key)
        line = self._lines.setdefault(name, _Line())
        done: asyncio.Future[TurnRecord] = asyncio.get_running_loop().create_future()
        line.waiting.append((change, done))
        if line.worker is None:
            line.worker = asyncio.create_task(self._work(tenant, key, name, line))
        return await done

    async def _work(self, tenant: str, key: str, name: str, line: _Line) -> None:
        while line.waiting:
            batch, line.waiting = line.waiting, []
            failure: Exception = TransientError("turns_unclear", f"{name} was left half done")
            try:
                after = await self._commit(tenant, key, name, [change for change, _ in batch])
                for _, done in batch:
                    if not done.done():
                        done.set_result(after)
            except (PenstockError, JetStreamError) as error:
                failure = error
            finally:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(failure)
        line.worker = None
        del self._lines[name]

    async def _commit(self, tenant: str, key: str, name: str, changes: list[Change]) -> TurnRecord:
        for attempt in range(_ATTEMPTS):
            entry = await self._bucket.get(name)
            before = _read(name, entry)
            after = before if before.key else before.model_copy(update={"key": key})
            for change in changes:
                after = change(after)
            if after == before or (after.empty and before.empty):
                return after
            try:
                await self._write(name, entry, after)
            except ConflictError:
                await asyncio.sleep(min(0.05, 0.002 * attempt))
                continue
            await self._tell(
                tenant,
                after,
                admitted={turn.run_id for turn in before.holders},
                cancelled={one.run_id for one in before.queue + before.holders if one.cancelled},
            )
            return after
        raise TransientError("turns_contended", f"{name} changes all the time")

    async def _write(self, name: str, entry: KvEntry | None, record: TurnRecord) -> None:
        value = record.model_dump_json(exclude_defaults=True).encode()
        ttl = _EMPTY_SECONDS if record.empty else None
        if entry is None:
            await self._bucket.create(name, value, ttl_seconds=ttl)
        else:
            await self._bucket.update(name, value, entry.revision, ttl_seconds=ttl)

    # -- what follows ------------------------------------------------------------------------

    async def _tell(
        self,
        tenant: str,
        record: TurnRecord,
        *,
        admitted: Collection[str] = (),
        cancelled: Collection[str] = (),
    ) -> None:
        """Tell those that may begin, and those that must stop, except who was told before."""
        work = [self._admit(tenant, turn) for turn in record.holders if turn.run_id not in admitted]
        work += [
            self._cancel(tenant, turn, "a newer run with the same key takes its place")
            for turn in (*record.holders, *record.queue)
            if turn.cancelled and turn.run_id not in cancelled
        ]
        for start in range(0, len(work), _AT_ONCE):
            await asyncio.gather(*work[start : start + _AT_ONCE])

    async def _admit(self, tenant: str, turn: Turn) -> None:
        fact = SignalReceived(occurred_at=datetime.now(UTC), name="admitted", kind="admitted")
        prefix = subjects.run_prefix(tenant, turn.shard, turn.run_id)
        subject = subjects.signal(prefix, _signal_id(turn.run_id))
        await self._state_once(subject, fact)

    async def _cancel(self, tenant: str, turn: Turn, reason: str) -> None:
        fact = CancelRequested(occurred_at=datetime.now(UTC), reason=reason)
        prefix = subjects.run_prefix(tenant, turn.shard, turn.run_id)
        await self._state_once(subjects.cancel(prefix), fact)

    async def _state_once(self, subject: str, fact: SignalReceived | CancelRequested) -> None:
        try:
            await self._writer.append(subject, fact_bytes(fact))
        except ConflictError:
            _log.debug("admission.stated_already", extra={"subject": subject})

    async def _said(self, tenant: str, turns: Collection[Turn]) -> _Said:
        """Return what the logs of the runs at a key say of their turns."""
        said = _Said()
        waiting = list(turns)
        for start in range(0, len(waiting), _AT_ONCE):
            part = waiting[start : start + _AT_ONCE]
            filters: list[str] = []
            for turn in part:
                prefix = subjects.run_prefix(tenant, turn.shard, turn.run_id)
                filters += (
                    subjects.ends_filter(prefix),
                    subjects.signal(prefix, _signal_id(turn.run_id)),
                    subjects.cancel(prefix),
                )
            page = await self._reader.get_many(subjects.RUNS, {"multi_last": filters})
            for message in page.messages:
                subject = subjects.parse_fact(message.subject)
                said.add(subject.event, subject.run_id)
            for turn in part:
                if datetime.now(UTC) - turn.since > _FORGOTTEN:
                    stored = await self._reader.stored(tenant, turn.shard, turn.run_id)
                    if not stored:
                        said.ended.add(turn.run_id)
        return said


@dataclass(frozen=True, slots=True)
class _Said:
    """Runs by what their logs say."""

    ended: set[str] = field(default_factory=set)
    admitted: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)

    def add(self, event: str, run_id: str) -> None:
        if event == "end":
            self.ended.add(run_id)
        elif event == "signal":
            self.admitted.add(run_id)
        else:
            self.cancelled.add(run_id)


def turn_name(plan: Plan, state: RunState) -> str:
    """Return what runs share: the name of their definition, and the value of its key.

    Raises:
        RejectedError: The key cannot be evaluated; the run is to be ended as failed with it.
    """
    spec = plan.concurrency or ConcurrencySpec()
    value = evaluate(spec.key, View(plan, state).run_scope())
    return f"{plan.name}/{value if isinstance(value, str) else to_json(value).decode()}"


def _signal_id(run_id: str) -> str:
    return answer_signal_id("admitted", run_id)


def _key(tenant: str, name: str) -> str:
    return subjects.turn_key(tenant, hashlib.sha256(name.encode()).hexdigest()[:40])


def _read(name: str, entry: KvEntry | None) -> TurnRecord:
    if entry is None:
        return TurnRecord()
    try:
        return TURN_RECORD.validate_json(entry.value)
    except ValidationError as error:
        # Places that cannot be told are free: a key that stops all its runs would be worse.
        _log.error("admission.unreadable", extra={"key": name, "error": str(error)})
        return TurnRecord()


def _limit(code: str, key: str, places: int) -> ErrorInfo:
    if code == "queue_full":
        return ErrorInfo(code=code, message=f"too many runs wait for {key!r}")
    return ErrorInfo(code=code, message=f"{places} runs with the key {key!r} are under way")
