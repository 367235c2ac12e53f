"""The engine: fold an input, publish the decision, acknowledge the input. In this order.

A crash at any point repeats only what the stream refuses as a duplicate. Inputs of one run are
handled one after the other, those of different runs side by side. Safety comes from the fence:
two engines that work on one run cannot both decide, and the loser reads the log again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

from penstock.bus.claims import is_claim
from penstock.bus.connection import Bus
from penstock.bus.consumer import Delivery
from penstock.bus.reader import TRACE_HEADER, LogReader, decode_entry
from penstock.bus.records import Record
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import (
    ConflictError,
    ErrorInfo,
    InvariantError,
    PenstockError,
)
from penstock.contracts.facts import StepKind, StepResult, StepScheduled, fact_bytes
from penstock.contracts.messages import TimerDue
from penstock.contracts.plan import Plan
from penstock.contracts.structs import decode, encode
from penstock.contracts.subjects import FactSubject
from penstock.failpoints import reach
from penstock.runs.state import Entry, RunState, evolve, fold, new_state
from penstock_orchestrator.core.decide import decide, expired, repair, timers_of, unplanned
from penstock_orchestrator.core.decisions import Decided, Output, Timer
from penstock_orchestrator.core.progress import Progress
from penstock_orchestrator.engine.admission import Admission
from penstock_orchestrator.engine.effects import (
    BusEffects,
    Effects,
    correlation_of,
    stop_body,
)
from penstock_orchestrator.engine.metrics import ENGINE_CONFLICTS, ENGINE_DECISIONS, ENGINE_ENDED
from penstock_orchestrator.engine.places import Places
from penstock_orchestrator.engine.plans import Plans
from penstock_orchestrator.engine.runs import RunTable, Slot

_log = logging.getLogger(__name__)

_MAX_CONFLICTS: Final = 20
_ENGINE_STEP: Final = f"step.{StepKind.RUN.value}."
RELOAD: Final = "reload"
"""Id of a timer that says: read the run anew."""


class Engine:
    """Moves runs. Its methods may be called for many runs at a time."""

    def __init__(
        self,
        bus: Bus,
        writer: LogWriter,
        reader: LogReader,
        plans: Plans,
        *,
        shards: int = 8,
        effects: Effects | None = None,
        places: Places | None = None,
    ) -> None:
        """Work on the given log.

        Args:
            bus: An open connection.
            writer: Where decisions go.
            reader: Where runs are read.
            plans: What runs execute.
            shards: Into how many shards runs are divided.
            effects: What is done outside a run's log, if not on the bus.
            places: Which runs and steps may go ahead; all steps if not given.
        """
        self._bus = bus
        self._writer = writer
        self._reader = reader
        self._plans = plans
        self._effects = effects or BusEffects(bus, writer, reader, shards=shards)
        self._places = places or Places(Admission(bus, writer, reader, shards=shards), None)
        self._waking: set[asyncio.Task[None]] = set()
        self.runs = RunTable()

    # -- what wakes a run up -----------------------------------------------------------------

    async def on_input(self, delivery: Delivery) -> None:
        """Handle an input fact; its effects are stored when this returns.

        Raises:
            PenstockError: As the error families say.
        """
        try:
            subject = subjects.parse_fact(delivery.subject)
        except ValueError as error:
            raise InvariantError("unreadable_subject", str(error)) from error
        if self.runs.has_ended(subject.run_id):
            return  # late: it is in the log, and changes nothing
        entry = await self._entry(delivery)
        slot = self.runs.slot(subject.tenant, subject.shard, subject.run_id)
        async with slot.lock:
            slot.touched_at = time.time()
            fresh = await self._take_in(slot, entry, first=delivery.deliveries == 1)
            reach("engine.input_taken")
            if isinstance(entry.fact, StepResult):
                await self._effects.given_up(slot, subject, entry.fact)
            if fresh or not _absorbed(slot, subject):
                # The engine's clock: a runner's may be wrong, and the input may have waited long.
                await self._advance(slot, datetime.now(UTC), entry.seq, fresh=fresh)
        self._wake_held()
        reach("engine.before_ack")

    async def on_timer(self, delivery: Delivery) -> None:
        """Handle a due timer: it only says that time has passed.

        Raises:
            PenstockError: As the error families say.
        """
        try:
            subject = subjects.parse_timer(delivery.subject)
            due = decode(TimerDue, delivery.body)
        except ValueError as error:
            raise InvariantError("unreadable_timer", str(error)) from error
        if self.runs.has_ended(subject.run_id):
            return
        slot = self.runs.slot(subject.tenant, subject.shard, subject.run_id)
        now = max(due.due_at, datetime.now(UTC))
        await self.wake(slot, now, reload=subject.timer_id == RELOAD, expire=False)

    async def wake(
        self, slot: Slot, now: datetime, *, reload: bool = False, expire: bool = True
    ) -> None:
        """Let time pass for a run: state expired attempts, decide what is due.

        Args:
            slot: The run.
            now: The time.
            reload: Read the log even if a state is at hand.
            expire: Also state attempts as failed whose time is over.
        """
        async with slot.lock:
            slot.touched_at = time.time()
            fresh = slot.state is None or reload
            if fresh:
                await self._reload(slot)
            state = slot.state
            if state is None or state.invoked is None or state.ended is not None:
                await self._settle(slot)
                self._wake_held()
                return
            known = True
            for attempt in expired(state, now) if expire else ():
                subject = subjects.result(state.prefix, attempt.step_id, attempt.attempt)
                try:
                    await self._writer.append(
                        subject, fact_bytes(attempt.result), headers=_headers(slot)
                    )
                except ConflictError:
                    _log.info("engine.result_came_after_all", extra={"run_id": slot.run_id})
                    known = False
            if not known:
                # Another engine swallowed it: no delivery will bring it here.
                await self._reload(slot)
                fresh = True
            await self._advance(slot, now, 0, fresh=fresh)
        self._wake_held()

    # -- state -------------------------------------------------------------------------------

    async def _entry(self, delivery: Delivery) -> Entry:
        headers = delivery.headers if delivery.raw_headers else None
        if is_claim(delivery.body):
            return await self._reader.decode(
                delivery.subject, delivery.stream_seq, delivery.body, headers
            )
        return decode_entry(delivery.subject, delivery.stream_seq, delivery.body, headers)

    async def _take_in(self, slot: Slot, entry: Entry, *, first: bool) -> bool:
        """Fold an input in; return whether the run was read anew for it."""
        subject = entry.subject
        if slot.state is None:
            if subject.event == "invoke" and first:
                # Nobody has seen it before; should that be wrong, the fence will tell.
                slot.state = new_state(slot.tenant, slot.shard, slot.run_id)
                slot.progress = None
            else:
                await self._reload(slot, at_least_seq=entry.seq)
                return True
        elif not first or (slot.state.invoked is None and subject.event != "invoke"):
            # Without the run's beginning, perhaps given to a rival, this would change nothing.
            await self._reload(slot, at_least_seq=entry.seq)
            return True
        if slot.traceparent is None:
            slot.traceparent = entry.traceparent
        slot.state = evolve(slot.state, entry)
        if subject.event == "result":
            step = slot.state.steps.get(subject.step_id)
            if step is None or step.attempt < subject.attempt:
                # The outcome of something that another engine scheduled: this state is stale.
                await self._reload(slot, at_least_seq=entry.seq)
                return True
            self._places.came_out(slot, step)
            progress, plan = slot.progress, slot.plan
            if (
                progress is not None
                and plan is not None
                and not progress.absorb(plan, slot.state, subject.step_id)
            ):
                progress.touch_step(plan, subject.step_id)
        elif subject.event == "signal" and slot.progress is not None and slot.plan is not None:
            slot.progress.touch_signal(slot.plan, slot.state, subject.step_id)
        return False

    async def _reload(self, slot: Slot, *, at_least_seq: int = 0) -> None:
        entries = await self._reader.read_run(
            slot.tenant, slot.shard, slot.run_id, at_least_seq=at_least_seq
        )
        for entry in entries:
            if entry.traceparent is not None:
                slot.traceparent = entry.traceparent
                break
        slot.state = fold(new_state(slot.tenant, slot.shard, slot.run_id), entries)
        slot.progress = None
        self._places.read_anew(slot)

    # -- decisions ---------------------------------------------------------------------------

    async def _advance(self, slot: Slot, now: datetime, cause_seq: int, *, fresh: bool) -> None:
        """Decide until there is nothing left to decide."""
        settled = False
        try:
            await self._decide_until_settled(slot, now, cause_seq, fresh=fresh)
            await self._settle(slot)
            settled = True
        finally:
            if not settled:
                # Unknown what is stored: the next input reads the log.
                slot.state = slot.progress = None

    async def _decide_until_settled(
        self, slot: Slot, now: datetime, cause_seq: int, *, fresh: bool
    ) -> None:
        for _ in range(_MAX_CONFLICTS):
            try:
                await self._decide_all(slot, now, cause_seq, fresh=fresh)
            except ConflictError as conflict:
                # Somebody else decided, or stored other bytes: see what is the case.
                ENGINE_CONFLICTS.inc()
                _log.info("engine.conflict", extra={"run_id": slot.run_id, "code": conflict.code})
                slot.state = slot.progress = None
                await self._reload(slot, at_least_seq=cause_seq)
                fresh = True
            else:
                return
        raise ConflictError("too_many_conflicts", f"run {slot.run_id} does not settle")

    async def _decide_all(self, slot: Slot, now: datetime, cause_seq: int, *, fresh: bool) -> None:
        state = slot.state
        if state is None or state.invoked is None or state.ended is not None:
            return
        plan = await self._plan(slot, state, now, cause_seq)
        if plan is None:
            return
        if fresh:
            await self._repair(slot, plan, now)
        if slot.progress is None:
            slot.progress = Progress()
        admitted = await self._admit(slot, plan, state, now, fresh=fresh)
        if isinstance(admitted, ErrorInfo):
            await self._publish(slot, state, unplanned(state, now, cause_seq, admitted))
        if admitted is not True:
            return
        progress = slot.progress
        while slot.state is not None:
            room = self._places.room(slot, plan)
            decided = decide(plan, slot.state, now, cause_seq, progress, room)
            if decided is None:
                return
            self._places.take(slot, slot.state, decided)
            if not decided.outputs:
                return
            reach("engine.decided")
            await self._publish(slot, slot.state, decided)
            if not progress.queue:
                return

    async def _admit(
        self, slot: Slot, plan: Plan, state: RunState, now: datetime, *, fresh: bool
    ) -> bool | ErrorInfo:
        """Index the correlation key; return whether the run may continue, or its final error."""
        if plan.correlation is not None and (fresh or not state.decisions):
            key = correlation_of(plan, state)
            if not isinstance(key, str):
                return key
            await self._effects.begun(slot, key)
        if plan.concurrency is None:
            return True
        return await self._places.admit(slot, plan, state, now)

    def _wake_held(self) -> None:
        """Go on with the runs whose turn has come at a runner pool."""
        for slot in self._places.next():
            task = asyncio.create_task(self._wake_one(slot))
            self._waking.add(task)
            task.add_done_callback(self._waking.discard)

    async def _wake_one(self, slot: Slot) -> None:
        try:
            await self.wake(slot, datetime.now(UTC), expire=False)
        except PenstockError as error:
            _log.warning("engine.wake_failed", extra={"run_id": slot.run_id, "code": error.code})
        finally:
            # A run that is paused or cancelled by now must not keep places from others.
            self._places.settle(slot)
            self._wake_held()

    def resize_pool(self, pool: str, slots: int) -> None:
        """Take note of how many steps the live runners of a pool can work at."""
        self._places.resize(pool, slots)
        self._wake_held()

    def forget_shard(self, shard: int) -> None:
        """Drop what may go stale: another engine has the shard now."""
        for slot in self.runs.forget_shard(shard):
            self._places.drop(slot)

    async def sweep(self, shards: Collection[int]) -> None:
        """Repair the turns of runs with concurrency keys.

        Raises:
            PenstockError: The bus does not answer.
        """
        await self._places.sweep(shards)

    async def _plan(
        self, slot: Slot, state: RunState, now: datetime, cause_seq: int
    ) -> Plan | None:
        """Return a run's plan; the run is ended where there is none."""
        digest = state.request.plan_digest
        plan = slot.plan or self._plans.kept(digest)
        if plan is None:
            try:
                plan = await self._plans.get(digest)
            except InvariantError as error:
                await self._publish(slot, state, unplanned(state, now, cause_seq, error.info()))
                return None
            if plan is None:
                reason = f"no plan has the digest {digest}"
                missing = ErrorInfo(code="plan_missing", message=reason)
                await self._publish(slot, state, unplanned(state, now, cause_seq, missing))
                return None
        slot.plan = plan
        return plan

    async def _repair(self, slot: Slot, plan: Plan, now: datetime) -> None:
        """Make again what may be missing of earlier decisions' messages and effects."""
        if slot.state is None:
            return
        for missing in repair(plan, slot.state):
            for output in missing.outputs:
                subject = subjects.out(slot.state.prefix, missing.number, output.suffix)
                try:
                    seq = await self._writer.append(
                        subject, fact_bytes(output.fact), headers=_headers(slot)
                    )
                except ConflictError:
                    await self._reload(slot)
                else:
                    self._apply(slot, missing.number, output, seq)
        if slot.state.ended is None:
            await self._effects.look_after(slot, slot.state)
            await self._set_timers(slot, timers_of(slot.state, now))

    async def _publish(self, slot: Slot, state: RunState, decided: Decided) -> None:
        prefix, number, headers = state.prefix, decided.number, _headers(slot)
        fence = subjects.fence(prefix, number)
        outputs = decided.outputs
        first = Record(
            subjects.out(prefix, number, outputs[0].suffix),
            fact_bytes(outputs[0].fact),
            fence,
            headers,
        )
        if len(outputs) == 1:
            seqs = [
                await self._writer.append(first.subject, first.body, fence=fence, headers=headers)
            ]
        else:
            others = [
                Record(
                    subjects.out(prefix, number, output.suffix),
                    fact_bytes(output.fact),
                    None,
                    headers,
                )
                for output in outputs[1:]
            ]
            seqs = await self._writer.append_all([first, *others])
        ENGINE_DECISIONS.inc()
        reach("engine.decision_stored")
        for output, seq in zip(outputs, seqs, strict=True):
            self._apply(slot, number, output, seq)
        if decided.timers:
            await self._set_timers(slot, decided.timers)
            reach("engine.timers_set")
        if decided.node_records:
            await self._effects.pending(slot, state, decided.node_records)
            reach("engine.pending_indexed")
        if decided.stop or decided.stops:
            stop = subjects.stop(slot.tenant, slot.shard, slot.run_id)
            body = b"" if decided.stop else stop_body(decided.stops)
            self._bus.nc.publish_now(stop, "", body)
            if decided.stops:
                await self._effects.stopped(slot, decided.stops)
        for output in outputs:
            if output.suffix.startswith(_ENGINE_STEP):
                await self._perform(slot, output)

    async def _perform(self, slot: Slot, output: Output) -> None:
        if isinstance(output.fact, StepScheduled):
            _, _, step_id, attempt = subjects.parse_suffix(output.suffix)
            await self._effects.perform(slot, step_id, attempt, output.fact)
            reach("engine.step_performed")

    def _apply(self, slot: Slot, number: int, output: Output, seq: int) -> None:
        state = slot.state or new_state(slot.tenant, slot.shard, slot.run_id)
        slot.state = evolve(state, Entry(seq, _subject_of(slot, number, output), output.fact))

    async def _set_timers(self, slot: Slot, timers: Sequence[Timer]) -> None:
        await asyncio.gather(*(self._set_timer(slot, timer) for timer in timers))

    async def _set_timer(self, slot: Slot, timer: Timer) -> None:
        at = timer.due_at.astimezone(UTC).isoformat(timespec="milliseconds")
        coordinates = (slot.tenant, slot.shard, slot.run_id, timer.timer_id)
        await self._writer.append(
            subjects.timer_set(*coordinates),
            encode(TimerDue(due_at=timer.due_at)),
            headers={
                "Nats-Schedule": "@at " + at.replace("+00:00", "Z"),
                "Nats-Schedule-Target": subjects.timer_due(*coordinates),
                "Nats-Schedule-TTL": "1h",
            },
        )

    async def _settle(self, slot: Slot) -> None:
        """Note when the run is to be looked at again, or forget it."""
        state = slot.state
        if state is None or state.invoked is None:
            if state is not None and state.cancel is None and not state.signals:
                self.runs.forget(slot)
            return
        if state.ended is not None:
            if not self.runs.has_ended(slot.run_id):
                await self._finish(slot, state)
            self._places.drop(slot)
            if self.runs.end(slot):
                ENGINE_ENDED.labels(state.ended.status.value).inc()
            return
        slot.wake_at = None

    async def _finish(self, slot: Slot, state: RunState) -> None:
        """Do what follows from a run's end; it may be done again."""
        plan = slot.plan or await self._plans.get(state.request.plan_digest)
        key = None
        if plan is not None and plan.correlation is not None:
            key = correlation_of(plan, state)
        correlation = key if isinstance(key, str) else None
        await self._effects.ended(slot, state, correlation)
        if plan is not None:
            await self._places.leave(slot, plan, state)
        reach("engine.run_finished")


def _absorbed(slot: Slot, subject: FactSubject) -> bool:
    """Return whether an input was noted, and nothing can follow from it."""
    state, progress = slot.state, slot.progress
    if subject.event != "result" or progress is None or progress.queue:
        return False
    slot.wake_at = None
    return state is not None and state.cancel is None and state.ended is None


def _headers(slot: Slot) -> dict[str, str] | None:
    return {TRACE_HEADER: slot.traceparent} if slot.traceparent is not None else None


def _subject_of(slot: Slot, number: int, output: Output) -> FactSubject:
    if output.suffix == subjects.END_SUFFIX:
        return FactSubject(slot.tenant, slot.shard, slot.run_id, "end", number)
    if output.suffix == subjects.STATE_SUFFIX:
        return FactSubject(slot.tenant, slot.shard, slot.run_id, "state", number)
    kind, queue, step_id, attempt = subjects.parse_suffix(output.suffix)
    return FactSubject(
        slot.tenant, slot.shard, slot.run_id, "step", number, kind, queue, step_id, attempt
    )
