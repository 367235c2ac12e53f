"""The engine: fold an input, publish the decision, acknowledge the input. In this order.

A crash at any point repeats only what the stream refuses as a duplicate. Inputs of one run are
handled one after the other, those of different runs side by side. Safety comes from the fence:
two engines that work on one run cannot both decide, and the loser reads the log again.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import Final

from penstock import clock
from penstock.bus.connection import Bus
from penstock.bus.consumer import Delivery
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorInfo, InvariantError
from penstock.contracts.facts import StepKind, StepResult, fact_bytes
from penstock.contracts.messages import TimerDue
from penstock.contracts.plan import Plan
from penstock.contracts.structs import decode
from penstock.contracts.subjects import FactSubject
from penstock.expressions.values import METER, Meter
from penstock.failpoints import reach
from penstock.runs.state import Entry, RunState, evolve, fold, new_state
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.core.decide import decide, expired, repair, timers_of, unplanned
from penstock_orchestrator.core.decisions import Decided
from penstock_orchestrator.core.progress import Progress
from penstock_orchestrator.core.walk import MOST_WORK
from penstock_orchestrator.engine.admission import Admission
from penstock_orchestrator.engine.cancels import Cancels
from penstock_orchestrator.engine.containment import contained
from penstock_orchestrator.engine.effects import Effects
from penstock_orchestrator.engine.failures import end_failed
from penstock_orchestrator.engine.metrics import ENGINE_CONFLICTS, ENGINE_ENDED
from penstock_orchestrator.engine.publisher import Publisher, trace_headers
from penstock_orchestrator.engine.runs import Plans, RunTable, Slot
from penstock_orchestrator.engine.wakeups import Wakeups
from penstock_orchestrator.engine.windows import Windows

log = EventLog(__name__)

_MAX_CONFLICTS: Final = 20
RELOAD: Final = "reload"
"""Id of a timer that makes the engine reload the run."""


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
        windows: Windows[Slot] | None = None,
        run_max_work: int | None = None,
    ) -> None:
        """Work on the given log.

        Args:
            bus: An open connection.
            writer: Appends decisions.
            reader: Reads runs.
            plans: Plans by digest.
            shards: Number of shards of the installation.
            windows: Dispatch windows; the default ones have no runners.
            run_max_work: Work that the expressions of a run may cost, in units.
        """
        self._writer = writer
        self._reader = reader
        self._plans = plans
        self._effects = Effects(bus, writer, reader, shards=shards)
        self._publisher = Publisher(bus, writer, self._effects)
        self.admission = Admission(bus, writer, reader, shards=shards)
        self._windows: Windows[Slot] = windows or Windows()
        self._run_max_work = run_max_work
        self.runs = RunTable()
        self._wakeups = Wakeups(self._wake_now, self._windows, self.runs)
        self.cancels = Cancels(bus, self._on_cancel)

    # -- inputs and timers -----------------------------------------------------------------------

    async def on_input(self, delivery: Delivery) -> None:
        """Handle an input fact; its effects are stored when this returns.

        Raises:
            PenstockError: As the error families say.
        """
        try:
            subject = subjects.parse_fact(delivery.subject)
        except ValueError as error:
            raise InvariantError("unreadable_subject", str(error)) from error
        first = delivery.deliveries == 1
        if self.runs.has_ended(subject.run_id):
            if not first or subject.event != "invoke" or await self._has_end(subject):
                self.cancels.delivered(subject.run_id)
                return  # late: it is in the log, and changes nothing
            # Its log was trimmed, and its id, derived from a key, is used again.
            self.runs.forget_end(subject.run_id)
        entry = await self._reader.decode(
            delivery.subject,
            delivery.stream_seq,
            delivery.body,
            delivery.headers if delivery.raw_headers else None,
            parsed=subject,
        )
        slot = self.runs.slot(subject.tenant, subject.shard, subject.run_id)
        async with slot.lock:
            self.runs.touch(slot, clock.epoch())
            await self._contain(slot, self._handle(slot, entry, first=first))
        if subject.event == "cancel":
            self.cancels.delivered(subject.run_id)
        if self._windows.just_granted:
            self._wakeups.granted()
        reach("engine.before_ack")

    async def _handle(self, slot: Slot, entry: Entry, *, first: bool) -> None:
        fresh = await self._fold_input(slot, entry, first=first)
        reach("engine.input_taken")
        subject, fact = entry.subject, entry.fact
        if isinstance(fact, StepResult) and fact.kind is StepKind.RUN:
            await self._effects.cancel_expired_child(slot, subject, fact)
        if not fresh and _absorbed(slot, subject):
            self.runs.reschedule(slot)
        else:
            # The engine's clock: a runner's may be wrong, and the input may have waited long.
            await self._advance(slot, clock.now(), entry.seq, fresh=fresh)

    async def _has_end(self, subject: FactSubject) -> bool:
        entries = await self._reader.read_run(subject.tenant, subject.shard, subject.run_id)
        return any(entry.subject.event == "end" for entry in entries)

    async def on_timer(self, delivery: Delivery) -> None:
        """Handle a due timer: decide with the time that has passed.

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
        now = max(due.due_at, clock.now())
        await self.wake(slot, now, reload=subject.timer_id == RELOAD, expire=False)

    async def check(self, slot: Slot, now: datetime) -> None:
        """Reload an idle run, unless the log has no fact after the last check of it.

        Raises:
            PenstockError: As the error families say.
        """
        if slot.checked_seq:
            async with slot.lock:
                stored = await self._reader.stored(slot.tenant, slot.shard, slot.run_id)
                if stored and stored[-1].seq == slot.checked_seq:
                    self.runs.touch(slot, clock.epoch())
                    return
        await self.wake(slot, now, reload=True)

    async def wake(
        self, slot: Slot, now: datetime, *, reload: bool = False, expire: bool = True
    ) -> None:
        """Decide with the time that has passed: fail expired attempts, act on due times.

        Args:
            slot: The run.
            now: The time.
            reload: Read the log even if a state is at hand.
            expire: Also record expired attempts as failed.
        """
        async with slot.lock:
            self.runs.touch(slot, clock.epoch())
            await self._contain(slot, self._wake(slot, now, reload=reload, expire=expire))
        if self._windows.just_granted:
            self._wakeups.granted()

    async def _wake(self, slot: Slot, now: datetime, *, reload: bool, expire: bool) -> None:
        if slot.failure is not None:
            raise slot.failure
        fresh = slot.state is None or reload or slot.generation != self.cancels.generation
        if fresh:
            await self._reload(slot)
        state = slot.state
        if state is None or state.invoked is None or state.ended is not None:
            await self._finish_or_keep(slot)
            return
        complete = True
        for attempt in expired(state, now) if expire else ():
            subject = subjects.result(slot.prefix, attempt.step_id, attempt.attempt)
            try:
                await self._writer.append(
                    subject, fact_bytes(attempt.result), headers=trace_headers(slot)
                )
            except ConflictError:
                log.info("engine.result_exists", run_id=slot.run_id)
                complete = False
        if not complete:
            # Another engine has acknowledged that result: it is not delivered here.
            await self._reload(slot)
            fresh = True
        seq = slot.state.last_seq if fresh and slot.state is not None else 0
        await self._advance(slot, now, 0, fresh=fresh)
        slot.note_check(seq)

    async def _contain(self, slot: Slot, work: Awaitable[None]) -> None:
        """Await work on a run whose lock is held; an error that the run causes ends the run."""
        with contained() as failed:
            await work
        if failed.error is None:
            return
        await end_failed(self._reader, self._publisher, slot, failed.error)
        with contained() as failed:
            await self._finish_or_keep(slot)
        if failed.error is not None:
            log.error("engine.finish_failed", error=failed.error, run_id=slot.run_id)
            self._wakeups.drop(slot)
            self.runs.end(slot)

    # -- state -------------------------------------------------------------------------------

    async def _fold_input(self, slot: Slot, entry: Entry, *, first: bool) -> bool:
        """Fold an input into the state; return whether the run was reloaded for it."""
        subject = entry.subject
        missed = self.cancels.missed(entry.seq)
        if slot.state is None:
            if subject.event == "invoke" and first and not missed:
                # No engine has handled it before. If that is wrong, the fence refuses the decision.
                slot.state = new_state(slot.tenant, slot.shard, slot.run_id)
                slot.generation = self.cancels.generation
                slot.progress = None
            else:
                await self._reload(slot, at_least_seq=entry.seq)
                return True
        elif (
            not first
            or slot.generation != self.cancels.generation
            or (slot.state.invoked is None and subject.event != "invoke")
        ):
            # Without its first fact, which another engine may have, the run has no state.
            await self._reload(slot, at_least_seq=entry.seq)
            return True
        if slot.traceparent is None:
            slot.traceparent = entry.traceparent
        slot.state = evolve(slot.state, entry)
        if subject.event == "result":
            step = slot.state.steps.get(subject.step_id)
            if step is None or step.attempt < subject.attempt:
                # The result of an attempt that another engine scheduled: this state is stale.
                await self._reload(slot, at_least_seq=entry.seq)
                return True
            self._windows.release(step.pool, slot)
            if slot.progress is not None and slot.plan is not None:
                slot.progress.touch_result(slot.plan, slot.state, subject.step_id)
        elif subject.event == "signal" and slot.progress is not None and slot.plan is not None:
            slot.progress.touch_signal(slot.plan, slot.state, subject.step_id)
        return False

    async def _reload(self, slot: Slot, *, at_least_seq: int = 0) -> None:
        slot.generation = self.cancels.generation
        entries = await self._reader.read_run(
            slot.tenant, slot.shard, slot.run_id, at_least_seq=at_least_seq
        )
        for entry in entries:
            if entry.traceparent is not None:
                slot.traceparent = entry.traceparent
                break
        slot.state = fold(new_state(slot.tenant, slot.shard, slot.run_id), entries)
        slot.progress = None
        steps = slot.state.steps.values() if slot.state.open_steps else ()
        published = [step.pool for step in steps if step.status in ("planned", "scheduled")]
        self._windows.recount(slot, published)

    # -- decisions ---------------------------------------------------------------------------

    async def _advance(self, slot: Slot, now: datetime, cause_seq: int, *, fresh: bool) -> None:
        """Decide until there is nothing left to decide; after a conflict, from the log again."""
        complete = False
        try:
            for _ in range(_MAX_CONFLICTS):
                try:
                    await self._decide_all(slot, now, cause_seq, fresh=fresh)
                    break
                except ConflictError as conflict:
                    # Another engine has decided, or stored other bytes: read the log.
                    ENGINE_CONFLICTS.inc()
                    log.info("engine.conflict", run_id=slot.run_id, code=conflict.code)
                    slot.state = slot.progress = None
                await self._reload(slot, at_least_seq=cause_seq)
                fresh = True
            else:
                text = f"run {slot.run_id}: {_MAX_CONFLICTS} conflicts in a row"
                raise ConflictError("too_many_conflicts", text)
            await self._finish_or_keep(slot)
            complete = True
        finally:
            if not complete:
                # It is unknown which appends succeeded: the next input reads the log.
                slot.state = slot.progress = None

    async def _decide_all(self, slot: Slot, now: datetime, cause_seq: int, *, fresh: bool) -> None:
        state = self._current(slot)
        if state is None or state.invoked is None or state.ended is not None:
            return
        plan = slot.plan or await self._load_plan(
            slot, state, state.invoked.plan_digest, now, cause_seq
        )
        if plan is None:
            return
        if fresh:
            await self._repair(slot, plan, now)
        if slot.progress is None:
            slot.progress = Progress()
        if state.cancel is None and self._wakeups.in_turn(slot):
            return
        admitted: bool | ErrorInfo = True
        if plan.correlation is not None or plan.concurrency is not None:
            admitted = await self._admit(slot, plan, state, now, fresh=fresh)
        if isinstance(admitted, ErrorInfo):
            await self._publisher.publish(slot, state, unplanned(state, now, cause_seq, admitted))
        if admitted is True:
            await self._decide_on(slot, plan, now, cause_seq, slot.progress)

    async def _decide_on(
        self, slot: Slot, plan: Plan, now: datetime, cause_seq: int, progress: Progress
    ) -> None:
        """Decide a run that may continue; the rest of what costs much follows in turn."""
        while (state := self._current(slot)) is not None:
            room = {pool: self._windows.room(pool, slot) for pool in plan.pools}
            decided = decide(plan, state, now, cause_seq, progress, room, self._run_max_work)
            self._wakeups.shares.spend(slot.tenant, progress.spent)
            if decided is not None and (decided.used or decided.full_pools):
                self._use_window(slot, state.request.priority, decided)
            if decided is not None and decided.outputs:
                reach("engine.decided")
                await self._publisher.publish(slot, state, decided)
            elif progress.spent < MOST_WORK:
                return
            if not progress.queue or self._wakeups.in_turn(slot):
                return

    def _current(self, slot: Slot) -> RunState | None:
        """Return a run's state with a request to cancel it that is stored and not delivered."""
        request = self.cancels.requests.get(slot.run_id)
        if request is not None and slot.state is not None and slot.state.cancel is None:
            slot.state = evolve(slot.state, request)
        return slot.state

    def _on_cancel(self, entry: Entry) -> None:
        """End a run as soon as the request to cancel it is stored, whatever was stored before."""
        subject = entry.subject
        if self.runs.has_ended(subject.run_id):
            self.cancels.delivered(subject.run_id)
        elif self.runs.known(subject.run_id):
            self._wakeups.soon(self.runs.slot(subject.tenant, subject.shard, subject.run_id))

    async def _admit(
        self, slot: Slot, plan: Plan, state: RunState, now: datetime, *, fresh: bool
    ) -> bool | ErrorInfo:
        """Index the correlation key; return whether the run may continue, or its final error."""
        meter = Meter()
        METER.set(meter)
        try:
            if plan.correlation is not None and (fresh or not state.decisions):
                error = await self._effects.index_run(slot, plan, state)
                if error is not None:
                    return error
            if plan.concurrency is None:
                return True
            return await self.admission.admit(slot, plan, plan.concurrency, state, now)
        finally:
            METER.set(None)  # by its token, a dropped coroutine could not do that
            self._wakeups.shares.spend(slot.tenant, meter.spent)

    def _use_window(self, slot: Slot, priority: int, decided: Decided) -> None:
        """Count a decision's steps, and queue the run for the pools without room."""
        for pool, count in decided.used.items():
            self._windows.take(slot.tenant, pool, priority, slot, count)
        for pool in decided.full_pools:
            self._windows.wait(slot.tenant, pool, priority, slot)

    async def _wake_now(self, slot: Slot) -> None:
        await self.wake(slot, clock.now(), expire=False)

    def resize_pool(self, pool: str, slots: int) -> None:
        """Set the number of steps that the live runners of a pool can execute at a time."""
        self._windows.resize(pool, slots)
        self._wakeups.granted()

    def forget_shard(self, shard: int) -> None:
        """Drop the states of a shard that another engine leads now."""
        for slot in self.runs.forget_shard(shard):
            self._wakeups.drop(slot)

    async def _load_plan(
        self, slot: Slot, state: RunState, digest: str, now: datetime, cause_seq: int
    ) -> Plan | None:
        """Read a run's plan; if there is none, the run fails."""
        missing = ErrorInfo(code="plan_missing", message=f"no plan has the digest {digest}")
        try:
            slot.plan = await self._plans.get(digest)
        except InvariantError as error:
            missing = error.info()
        if slot.plan is None:
            failure = unplanned(state, now, cause_seq, missing)
            await self._publisher.publish(slot, state, failure)
        return slot.plan

    async def _readable_plan(self, digest: str) -> Plan | None:
        with contained() as failed:
            return await self._plans.get(digest)
        # The run has failed for it, and has begun nothing.
        log.warning("engine.plan_unreadable", digest=digest, error=failed.error)
        return None

    async def _repair(self, slot: Slot, plan: Plan, now: datetime) -> None:
        """Repeat messages and effects of earlier decisions that may be missing."""
        if slot.state is None:
            return
        for missing in repair(plan, slot.state):
            try:
                await self._publisher.republish(slot, missing)
            except ConflictError as conflict:
                log.info("engine.republished", run_id=slot.run_id, code=conflict.code)
            else:
                continue
            await self._reload(slot)
        if slot.state.ended is None:
            await self._effects.restore(slot, slot.state)
            await self._publisher.set_timers(slot, timers_of(slot.state, now))

    async def _finish_or_keep(self, slot: Slot) -> None:
        """Make the effects of a run's end (idempotent) and evict it; otherwise keep its slot."""
        state = slot.state
        if state is None or state.invoked is None:
            if state is not None and state.cancel is None and not state.signals:
                self.runs.forget(slot)
            return
        if state.ended is not None:
            if not self.runs.has_ended(slot.run_id):
                plan = slot.plan or await self._readable_plan(state.invoked.plan_digest)
                await self._effects.finish_run(slot, state, plan)
                if plan is not None and plan.concurrency is not None:
                    await self.admission.release_run(slot, plan, plan.concurrency, state)
                reach("engine.run_finished")
            self._wakeups.drop(slot)
            if self.runs.end(slot):
                ENGINE_ENDED.labels(state.ended.status.value).inc()
            return
        self.runs.reschedule(slot)


def _absorbed(slot: Slot, subject: FactSubject) -> bool:
    """Return whether an input was recorded and cannot lead to a decision."""
    state, progress = slot.state, slot.progress
    if subject.event != "result" or progress is None or progress.queue:
        return False
    return state is not None and state.cancel is None and state.ended is None
