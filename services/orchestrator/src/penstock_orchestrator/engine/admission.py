"""Admission: limits how many runs with the same concurrency key execute at a time.

A key's record in bucket ``turns`` lists the runs that hold a concurrency slot and those that wait
for one. It is changed first, by compare-and-set. Then the signal of an admission, or the
cancellation, is appended to each run's log under a subject that exists once. Both steps are
idempotent, so the next change or ``sweep`` completes what a crash has interrupted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from pydantic import ValidationError
from pydantic_core import to_json

from penstock import clock
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv import Bucket, KvEntry
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import (
    ConflictError,
    ErrorInfo,
    PenstockError,
    RejectedError,
    TransientError,
)
from penstock.contracts.facts import CancelRequested, SignalReceived
from penstock.contracts.ids import answer_signal_id, shard_of
from penstock.contracts.plan import ConcurrencySpec, Plan
from penstock.contracts.turns import TURN_RECORD, Answer, Turn, TurnRecord, asked, left
from penstock.expressions.evaluator import evaluate
from penstock.runs.state import RunState
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.core.budget import run_deadline
from penstock_orchestrator.core.view import View
from penstock_orchestrator.engine.effects import append_once, cancel_once, gather_some
from penstock_orchestrator.engine.runs import Slot

log = EventLog(__name__)

_ATTEMPTS: Final = 200
_EMPTY_SECONDS: Final = 600.0
"""How long the record of an unused key is kept."""
_FORGOTTEN: Final = timedelta(days=30)
"""How long a run without facts in the log keeps its concurrency slot."""
_AT_ONCE: Final = 300
"""Runs per request: three facts of each fit into one reply of the server."""

Outcome = Literal["admitted", "queued", "rejected", "cancelled"]
Change = Callable[[TurnRecord], TurnRecord]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Reply to a request for a concurrency slot.

    ``admitted``: the signal is in the run's log. ``queued``: the signal follows when a slot is
    free; until then there is nothing to decide. ``rejected``: the run has to fail with ``error``.
    ``cancelled``: ``in.cancel`` is in the run's log.
    """

    outcome: Outcome
    error: ErrorInfo | None = None
    position: int | None = None
    """Number of runs that wait before it, if queued."""


@dataclass(slots=True, eq=False)
class _Line:
    """Changes of one key that wait for the next compare-and-set."""

    waiting: list[tuple[Change, asyncio.Future[TurnRecord]]] = field(default_factory=list)
    worker: asyncio.Task[None] | None = None


class Admission:
    """Grants concurrency slots. One per engine process; they share the records."""

    def __init__(self, bus: Bus, writer: LogWriter, reader: LogReader, *, shards: int) -> None:
        """Use the process's connection, writer and reader.

        Args:
            bus: An open connection.
            writer: Appends signals and cancellations.
            reader: Reads which runs have ended.
            shards: Number of shards of the installation.
        """
        self._bucket = Bucket(bus, subjects.TURNS)
        self._writer = writer
        self._reader = reader
        self._shards = shards
        self._lines: dict[str, _Line] = {}

    async def admit(
        self, slot: Slot, plan: Plan, spec: ConcurrencySpec, state: RunState, now: datetime
    ) -> bool | ErrorInfo:
        """Request a concurrency slot for a run, unless it has one.

        Returns:
            ``True``: the run can be decided. ``False``: it waits for its slot. An error: the run
            has to fail with it.

        Raises:
            PenstockError: The bus does not answer.
        """
        if state.admitted or state.cancel is not None:
            return True
        try:
            key = slot_key(plan, spec, state)
        except RejectedError as rejected:
            return rejected.info()
        priority = state.request.priority
        verdict = await self.request(
            slot.tenant, slot.run_id, slot.shard, key, spec, priority=priority
        )
        if verdict.outcome == "rejected" and verdict.error is not None:
            return verdict.error
        # Its deadline holds while it waits; what admits or cancels it comes as an input.
        return now >= run_deadline(plan, state.request)

    async def release_run(
        self, slot: Slot, plan: Plan, spec: ConcurrencySpec, state: RunState
    ) -> None:
        """Release the concurrency slot of a run that has ended.

        Raises:
            PenstockError: The bus does not answer.
        """
        try:
            key = slot_key(plan, spec, state)
        except RejectedError:
            return  # it never requested a slot
        await self.release(slot.tenant, slot.run_id, key)

    async def request(
        self,
        tenant: str,
        run_id: str,
        shard: int,
        key: str,
        spec: ConcurrencySpec,
        *,
        priority: int = 0,
    ) -> Verdict:
        """Request a concurrency slot; idempotent. The reply's effects are stored on return.

        Args:
            tenant: The run's tenant.
            run_id: The run; it has not ended.
            shard: Its shard.
            key: See ``slot_key``.
            spec: The ``concurrency`` of the run's plan.
            priority: Runs with a higher one receive their slot first.

        Raises:
            TransientError: The bus did not answer, or the key changes all the time.
            JetStreamError: The bus refused.
        """
        turn = Turn(run_id=run_id, shard=shard, since=clock.now(), priority=priority)
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
                    # The engine that admitted it may have died before it appended the signal.
                    await self._admit(tenant, turn)
                return Verdict("admitted")
            case "queued":
                return Verdict("queued", position=record.position(run_id))
            case "cancelled":
                await self._cancel(tenant, turn, f"{spec.max} runs with the same key are executing")
                return Verdict("cancelled", _limit("concurrency_limit", key, spec.max))
            case "rejected":
                return Verdict("rejected", _limit("concurrency_limit", key, spec.max))
            case "queue_full":
                return Verdict("rejected", _limit("queue_full", key, spec.max))

    async def release(self, tenant: str, run_id: str, key: str) -> None:
        """Release the slot of an ended run and admit the next run; idempotent.

        Raises:
            TransientError: The bus did not answer, or the key changes all the time.
            JetStreamError: The bus refused.
        """
        known: list[bool] = []

        def change(record: TurnRecord) -> TurnRecord:
            known.append(record.holds(run_id) or record.position(run_id) is not None)
            return left(record, (run_id,), clock.now())

        record = await self._change(tenant, key, change)
        if not known[-1]:
            # It was released before, perhaps without the signals of those admitted instead.
            await self._notify(tenant, record)

    async def sweep(self, held: Collection[int] | None = None) -> int:
        """Check all keys: release slots of ended runs, append missing signals and cancellations.

        Args:
            held: Only keys of these shards; all if not given.

        Returns:
            Number of slots released.

        Raises:
            TransientError: The bus did not answer.
            JetStreamError: The bus refused.
        """
        released = 0
        for name in await self._bucket.keys():
            if held is not None and shard_of(name, self._shards) not in held:
                continue
            entry = await self._bucket.get(name)
            record = _read(name, entry)
            if record.empty:
                continue
            tenant = name.split(".", 1)[0]
            logged = await self._logged(tenant, (*record.holders, *record.queue))
            gone, now = logged.ended, clock.now()

            def change(found: TurnRecord, gone: set[str] = gone, now: datetime = now) -> TurnRecord:
                return left(found, gone, now)

            after = await self._change(tenant, record.key, change)
            released += len(gone)
            await self._notify(tenant, after, admitted=logged.admitted, cancelled=logged.cancelled)
        return released

    # -- the record --------------------------------------------------------------------------

    async def _change(self, tenant: str, key: str, change: Change) -> TurnRecord:
        """Change a key's record; concurrent changes share one compare-and-set."""
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
            failure: Exception = TransientError(
                "turns_unclear", f"the change of {name} was interrupted"
            )
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
                break
            except ConflictError as conflict:
                log.debug("admission.retried", name=name, code=conflict.code)
            await asyncio.sleep(min(0.05, 0.002 * attempt))
        else:
            raise TransientError("turns_contended", f"{name} has too many concurrent changes")
        await self._notify(
            tenant,
            after,
            admitted={turn.run_id for turn in before.holders},
            cancelled={one.run_id for one in before.queue + before.holders if one.cancelled},
        )
        return after

    async def _write(self, name: str, entry: KvEntry | None, record: TurnRecord) -> None:
        value = record.model_dump_json(exclude_defaults=True).encode()
        ttl = _EMPTY_SECONDS if record.empty else None
        if entry is None:
            await self._bucket.create(name, value, ttl_seconds=ttl)
        else:
            await self._bucket.update(name, value, entry.revision, ttl_seconds=ttl)

    # -- signals and cancellations ---------------------------------------------------------------

    async def _notify(
        self,
        tenant: str,
        record: TurnRecord,
        *,
        admitted: Collection[str] = (),
        cancelled: Collection[str] = (),
    ) -> None:
        """Append admissions and cancellations, except those already in the runs' logs."""
        work = [self._admit(tenant, turn) for turn in record.holders if turn.run_id not in admitted]
        work += [
            self._cancel(tenant, turn, "a newer run with the same key replaces it")
            for turn in (*record.holders, *record.queue)
            if turn.cancelled and turn.run_id not in cancelled
        ]
        await gather_some(work)

    async def _admit(self, tenant: str, turn: Turn) -> None:
        fact = SignalReceived(occurred_at=clock.now(), name="admitted", kind="admitted")
        prefix = subjects.run_prefix(tenant, turn.shard, turn.run_id)
        subject = subjects.signal(prefix, _signal_id(turn.run_id))
        await append_once(self._writer, subject, fact)

    async def _cancel(self, tenant: str, turn: Turn, reason: str) -> None:
        fact = CancelRequested(occurred_at=clock.now(), reason=reason)
        prefix = subjects.run_prefix(tenant, turn.shard, turn.run_id)
        await cancel_once(self._writer, prefix, fact)

    async def _logged(self, tenant: str, turns: Collection[Turn]) -> _Logged:
        """Read which runs of a key have ended, or have their admission or cancellation."""
        logged = _Logged()
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
                logged.add(subject.event, subject.run_id)
            for turn in part:
                if clock.now() - turn.since > _FORGOTTEN:
                    stored = await self._reader.stored(tenant, turn.shard, turn.run_id)
                    if not stored:
                        logged.ended.add(turn.run_id)
        return logged


@dataclass(frozen=True, slots=True)
class _Logged:
    """Runs by the facts in their logs."""

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


def slot_key(plan: Plan, spec: ConcurrencySpec, state: RunState) -> str:
    """Return the concurrency key of a run: the definition's name and the evaluated expression.

    Raises:
        RejectedError: The expression cannot be evaluated; the run has to fail with it.
    """
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
        # An unreadable record counts as empty: a key that blocks all its runs would be worse.
        log.exception("admission.unreadable", key=name, reason=str(error))
        return TurnRecord()


def _limit(code: str, key: str, maximum: int) -> ErrorInfo:
    if code == "queue_full":
        return ErrorInfo(code=code, message=f"too many runs wait for {key!r}")
    return ErrorInfo(code=code, message=f"{maximum} runs with the key {key!r} are executing")
