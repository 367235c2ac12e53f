"""The engine: fold an input, publish the decision, acknowledge the input. In this order.

A crash at any point repeats only what the stream refuses as a duplicate. Inputs of one run are
handled one after the other, those of different runs side by side. Safety comes from the fence:
two engines that work on one run cannot both decide, and the loser reads the log again.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Final

from penstock.bus.claims import is_claim
from penstock.bus.connection import Bus
from penstock.bus.consumer import Delivery
from penstock.bus.reader import TRACE_HEADER, LogReader, decode_entry
from penstock.bus.records import Record
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorInfo, InvariantError
from penstock.contracts.facts import (
    Decision,
    RunEnded,
    RunStatus,
    TimerDue,
    Wait,
    fact_bytes,
)
from penstock.contracts.plan import Plan
from penstock.contracts.state import Entry, RunState, evolve, fold, new_state
from penstock.contracts.subjects import FactSubject
from penstock_orchestrator.core.decide import decide, expired, repair
from penstock_orchestrator.core.decisions import Decided, Output
from penstock_orchestrator.engine.metrics import ENGINE_CONFLICTS, ENGINE_DECISIONS, ENGINE_ENDED
from penstock_orchestrator.engine.plans import Plans
from penstock_orchestrator.engine.runs import RunTable, Slot

_log = logging.getLogger(__name__)

_MAX_CONFLICTS: Final = 20


class Engine:
    """Moves runs. Its methods may be called for many runs at a time."""

    def __init__(self, bus: Bus, writer: LogWriter, reader: LogReader, plans: Plans) -> None:
        """Work on the given log."""
        self._bus = bus
        self._writer = writer
        self._reader = reader
        self._plans = plans
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
            changed = await self._take_in(slot, entry, first=delivery.deliveries == 1)
            # The engine's clock: a runner's may be wrong, and the input may have waited long.
            await self._advance(slot, datetime.now(UTC), entry.seq, changed)

    async def on_timer(self, delivery: Delivery) -> None:
        """Handle a due timer: it only says that time has passed.

        Raises:
            PenstockError: As the error families say.
        """
        try:
            subject = subjects.parse_timer(delivery.subject)
            due = TimerDue.model_validate_json(delivery.body)
        except ValueError as error:
            raise InvariantError("unreadable_timer", str(error)) from error
        if self.runs.has_ended(subject.run_id):
            return
        slot = self.runs.slot(subject.tenant, subject.shard, subject.run_id)
        await self.wake(slot, max(due.due_at, datetime.now(UTC)))

    async def wake(self, slot: Slot, now: datetime, *, reload: bool = False) -> None:
        """Let time pass for a run: state expired attempts, decide what is due.

        Args:
            slot: The run.
            now: The time.
            reload: Read the log even if a state is at hand.
        """
        async with slot.lock:
            slot.touched_at = time.time()
            if slot.state is None or reload:
                await self._reload(slot)
            state = slot.state
            if state is None or state.invoked is None or state.ended is not None:
                self._settle(slot)
                return
            known = True
            for attempt in expired(state, now):
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
            await self._advance(slot, now, 0, None)

    # -- state -------------------------------------------------------------------------------

    async def _entry(self, delivery: Delivery) -> Entry:
        headers = delivery.headers if delivery.raw_headers else None
        if is_claim(delivery.body):
            return await self._reader.decode(
                delivery.subject, delivery.stream_seq, delivery.body, headers
            )
        return decode_entry(delivery.subject, delivery.stream_seq, delivery.body, headers)

    async def _take_in(self, slot: Slot, entry: Entry, *, first: bool) -> str | None:
        """Fold an input in; return the one step that changed, if that is all that did."""
        if slot.state is None:
            if entry.subject.event == "invoke" and first:
                # Nobody has seen it before; should that be wrong, the fence will tell.
                slot.state = new_state(slot.tenant, slot.shard, slot.run_id)
            else:
                await self._reload(slot, at_least_seq=entry.seq)
                return None
        elif not first:
            await self._reload(slot, at_least_seq=entry.seq)
            return None
        if slot.traceparent is None:
            slot.traceparent = entry.traceparent
        subject = entry.subject
        slot.state = evolve(slot.state, entry)
        if subject.event != "result":
            return None
        step = slot.state.steps.get(subject.step_id)
        if step is None or step.attempt < subject.attempt:
            # The outcome of something that another engine scheduled: this state is stale.
            await self._reload(slot, at_least_seq=entry.seq)
            return None
        return subject.step_id

    async def _reload(self, slot: Slot, *, at_least_seq: int = 0) -> None:
        entries = await self._reader.read_run(
            slot.tenant, slot.shard, slot.run_id, at_least_seq=at_least_seq
        )
        for entry in entries:
            if entry.traceparent is not None:
                slot.traceparent = entry.traceparent
                break
        slot.state = fold(new_state(slot.tenant, slot.shard, slot.run_id), entries)

    # -- decisions ---------------------------------------------------------------------------

    async def _advance(
        self, slot: Slot, now: datetime, cause_seq: int, changed: str | None
    ) -> None:
        """Decide until there is nothing left to decide."""
        settled = False
        try:
            await self._decide_until_settled(slot, now, cause_seq, changed)
            settled = True
        finally:
            if not settled:
                # Unknown what is stored: the next input reads the log.
                slot.state = None
        self._settle(slot)

    async def _decide_until_settled(
        self, slot: Slot, now: datetime, cause_seq: int, changed: str | None
    ) -> None:
        for _ in range(_MAX_CONFLICTS):
            try:
                await self._decide_all(slot, now, cause_seq, changed)
            except ConflictError as conflict:
                # Somebody else decided, or stored other bytes: see what is the case.
                ENGINE_CONFLICTS.inc()
                _log.info("engine.conflict", extra={"run_id": slot.run_id, "code": conflict.code})
                slot.state = None
                await self._reload(slot, at_least_seq=cause_seq)
                changed = None
            else:
                return
        raise ConflictError("too_many_conflicts", f"run {slot.run_id} does not settle")

    async def _decide_all(
        self, slot: Slot, now: datetime, cause_seq: int, changed: str | None
    ) -> None:
        state = slot.state
        if state is None or state.invoked is None or state.ended is not None:
            return
        plan = slot.plan or self._plans.kept(state.invoked.plan_digest)
        if plan is None:
            try:
                plan = await self._plans.get(state.invoked.plan_digest)
            except InvariantError as error:
                await self._publish(slot, state, _no_plan(state, now, cause_seq, error.info()))
                return
            if plan is None:
                reason = f"no plan has the digest {state.invoked.plan_digest}"
                missing = ErrorInfo(code="plan_missing", message=reason)
                await self._publish(slot, state, _no_plan(state, now, cause_seq, missing))
                return
        slot.plan = plan
        if changed is None:
            await self._repair(slot, plan, now)
        while slot.state is not None:
            decided = decide(plan, slot.state, now, cause_seq, changed)
            if decided is None:
                return
            await self._publish(slot, slot.state, decided)
            if not decided.waits:
                return

    async def _repair(self, slot: Slot, plan: Plan, now: datetime) -> None:
        """Publish what earlier decisions promised; whoever did so meanwhile wrote the same."""
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
        if slot.state.invoked is not None:
            for step in slot.state.steps.values():
                if step.status == "waiting" and step.wait is not None and step.wait.due_at > now:
                    await self._set_timer(slot, step.wait)

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
        for output, seq in zip(outputs, seqs, strict=True):
            self._apply(slot, number, output, seq)
        for wait in decided.waits:
            await self._set_timer(slot, wait)
        if decided.stop:
            stop = subjects.stop(slot.tenant, slot.shard, slot.run_id)
            self._bus.nc.publish_now(stop, "", b"")

    def _apply(self, slot: Slot, number: int, output: Output, seq: int) -> None:
        state = slot.state or new_state(slot.tenant, slot.shard, slot.run_id)
        slot.state = evolve(state, Entry(seq, _subject_of(slot, number, output), output.fact))

    async def _set_timer(self, slot: Slot, wait: Wait) -> None:
        at = wait.due_at.astimezone(UTC).isoformat(timespec="milliseconds")
        coordinates = (slot.tenant, slot.shard, slot.run_id, wait.timer_id)
        await self._writer.append(
            subjects.timer_set(*coordinates),
            TimerDue(due_at=wait.due_at).model_dump_json().encode(),
            headers={
                "Nats-Schedule": "@at " + at.replace("+00:00", "Z"),
                "Nats-Schedule-Target": subjects.timer_due(*coordinates),
                "Nats-Schedule-TTL": "1h",
            },
        )

    def _settle(self, slot: Slot) -> None:
        """Note when the run is to be looked at again, or forget it."""
        state = slot.state
        if state is None or state.invoked is None:
            if state is not None and state.cancel is None and not state.signals:
                self.runs.forget(slot)
            return
        if state.ended is not None:
            if self.runs.end(slot):
                ENGINE_ENDED.labels(state.ended.status.value).inc()
            return
        slot.wake_at = None


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


def _no_plan(state: RunState, now: datetime, cause_seq: int, error: ErrorInfo) -> Decided:
    fact = RunEnded(
        occurred_at=now,
        decision=Decision(cause_seq=cause_seq),
        status=RunStatus.FAILED,
        error=error,
    )
    return Decided(state.decisions + 1, (Output(subjects.END_SUFFIX, fact),))
