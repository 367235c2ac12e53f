"""What decisions do outside their run's log: child runs, messages, answers to the parent, indexes.

Every effect may be made again: ids are derived, so that the log refuses the second one. They are
made after the decision is stored and before its cause is acknowledged; whoever reads a run anew
makes those again that may be missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from msgspec.structs import replace
from pydantic_core import from_json, to_json

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorFamily, ErrorInfo, RejectedError
from penstock.contracts.facts import (
    CancelRequested,
    NodeRecord,
    RunInvoked,
    SignalReceived,
    StepKind,
    StepResult,
    StepScheduled,
    Usage,
    fact_bytes,
)
from penstock.contracts.ids import child_run_id, is_run_id, require_token, shard_of
from penstock.contracts.json import Json
from penstock.contracts.pending import CorrelationRecord, PendingRecord, correlation_hash
from penstock.contracts.plan import Plan
from penstock.contracts.subjects import FactSubject
from penstock.expressions.templates import render
from penstock.failpoints import reach
from penstock.runs.start import child_run
from penstock.runs.state import PENDING, RunState, StepState, fold, new_state
from penstock_orchestrator.core.view import View
from penstock_orchestrator.engine.runs import Slot

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 64
CHILD: Final = "workflow"
SEND: Final = "send"


class Effects(Protocol):
    """What the engine needs done outside a run's log."""

    async def perform(self, slot: Slot, step_id: str, attempt: int, fact: StepScheduled) -> None:
        """Do a step that the engine executes itself: it has begun when this returns."""

    async def pending(
        self, slot: Slot, before: RunState, node_records: Iterable[NodeRecord]
    ) -> None:
        """Keep the index of what runs ask of the world outside."""

    async def begun(self, slot: Slot, correlation: str) -> None:
        """Let events find the run by a key."""

    async def stopped(self, slot: Slot, step_ids: Iterable[str]) -> None:
        """Cancel the child runs of steps that nobody waits for."""

    async def given_up(self, slot: Slot, subject: FactSubject, result: StepResult) -> None:
        """Cancel the child run of an attempt that took too long."""

    async def ended(self, slot: Slot, state: RunState, correlation: str | None) -> None:
        """Tell the parent, cancel the children, clear the indexes."""

    async def look_after(self, slot: Slot, state: RunState) -> None:
        """Make effects again that may be missing."""


class BusEffects:
    """The effects, on the bus."""

    def __init__(self, bus: Bus, writer: LogWriter, reader: LogReader, *, shards: int) -> None:
        """Work on the given log."""
        self._writer = writer
        self._reader = reader
        self._shards = shards
        self._pending = Bucket(bus, subjects.PENDING)
        self._sessions = Bucket(bus, subjects.SESSIONS)

    # -- steps of the engine itself ----------------------------------------------------------

    async def perform(self, slot: Slot, step_id: str, attempt: int, fact: StepScheduled) -> None:
        """Start a child run or send a message.

        Raises:
            PenstockError: The bus does not answer.
        """
        config = fact.config if isinstance(fact.config, dict) else {}
        if "to" in config:
            await self._send(slot, step_id, attempt, fact, config)
        else:
            await self._start(slot, step_id, attempt, fact)

    async def _start(self, slot: Slot, step_id: str, attempt: int, fact: StepScheduled) -> None:
        state = slot.state
        if state is None or state.invoked is None:
            return
        run_id = child_run_id(slot.tenant, slot.run_id, step_id, attempt)
        prefix = self._prefix(slot.tenant, run_id)
        child = child_run(state, step_id, attempt, fact)
        await self._state_once(subjects.invoke(prefix), child)
        reach("engine.child_started")

    async def _send(
        self, slot: Slot, step_id: str, attempt: int, fact: StepScheduled, config: dict[str, Json]
    ) -> None:
        to = config.get("to")
        targets = await self._targets(slot.tenant, to if isinstance(to, dict) else {})
        token = hashlib.sha256(f"{slot.run_id}\x00{step_id}".encode()).hexdigest()[:32]
        reached: list[Json] = []
        for run_id in targets:
            prefix = self._prefix(slot.tenant, run_id)
            if not await self._open(slot.tenant, run_id):
                continue
            message = SignalReceived(
                occurred_at=fact.occurred_at,
                name=fact.name,
                payload=fact.input,
                kind="message",
                from_run=slot.run_id,
            )
            await self._state_once(subjects.signal(prefix, f"m-{token}"), message)
            reach("engine.message_sent")
            reached.append(run_id)
        error = None
        if not reached:
            error = ErrorInfo(code="nobody_to_tell", message=f"no open run takes {fact.name!r}")
        result = StepResult(
            occurred_at=datetime.now(UTC),
            kind=StepKind.RUN,
            name=fact.name,
            status="succeeded" if reached else "failed",
            output={"run_ids": reached},
            error=error,
            started_at=fact.occurred_at,
        )
        prefix = subjects.run_prefix(slot.tenant, slot.shard, slot.run_id)
        await self._state_once(subjects.result(prefix, step_id, attempt), result)

    async def _targets(self, tenant: str, to: dict[str, Json]) -> list[str]:
        run_id, key, session = to.get("run_id"), to.get("correlation"), to.get("session_id")
        if run_id is not None:
            return [run_id] if isinstance(run_id, str) and is_run_id(run_id) else []
        if key is not None:
            pattern = subjects.correlation_key(tenant, correlation_hash(str(key)), "*")
            found = await self._pending.keys(pattern)
            return sorted({name.rsplit(".", 1)[1] for name in found})
        if session is not None:
            try:
                session_id = require_token(str(session), path="to.session")
            except RejectedError:
                return []
            entry = await self._sessions.get(subjects.session_key(tenant, session_id))
            return [str(from_json(entry.value)["run_id"])] if entry is not None else []
        return []

    async def _open(self, tenant: str, run_id: str) -> bool:
        state = await self._read(tenant, run_id)
        return state.invoked is not None and state.ended is None

    async def _read(self, tenant: str, run_id: str) -> RunState:
        shard = shard_of(run_id, self._shards)
        entries = await self._reader.read_run(tenant, shard, run_id)
        return fold(new_state(tenant, shard, run_id), entries)

    # -- the index of what is asked ----------------------------------------------------------

    async def pending(
        self, slot: Slot, before: RunState, node_records: Iterable[NodeRecord]
    ) -> None:
        """Add what is asked, take away what is settled."""
        work: list[Coroutine[Any, Any, object]] = []
        for node_record in node_records:
            if node_record.kind not in PENDING:
                continue
            known = before.node_records.get(node_record.record_id)
            if node_record.status == "open" and node_record.request is not None:
                work.append(self._park(slot, node_record, before))
            elif known is not None and known.open and known.node_record.request is not None:
                work.append(self._unpark(slot, known.node_record))
        await _all(work)

    async def _park(self, slot: Slot, node_record: NodeRecord, state: RunState) -> None:
        record = PendingRecord(
            tenant=slot.tenant,
            run_id=slot.run_id,
            shard=slot.shard,
            name=state.request.name,
            node_record=node_record,
            asked_at=datetime.now(UTC),
        )
        key = subjects.pending_key(slot.tenant, slot.run_id, node_record.record_id)
        await self._pending.put(key, record.model_dump_json().encode())
        if node_record.request is not None and node_record.request.correlation is not None:
            await self._correlate(slot, node_record.request.correlation, node_record.record_id)

    async def _unpark(self, slot: Slot, node_record: NodeRecord, *, over: bool = False) -> None:
        await self._pending.delete(
            subjects.pending_key(slot.tenant, slot.run_id, node_record.record_id)
        )
        correlation = node_record.request.correlation if node_record.request is not None else None
        if correlation is not None and (over or correlation not in _needed(slot)):
            await self._forget(slot, correlation)

    async def _correlate(self, slot: Slot, correlation: str, record_id: str | None) -> None:
        record = CorrelationRecord(run_id=slot.run_id, shard=slot.shard, record_id=record_id)
        hashed = correlation_hash(correlation)
        key = subjects.correlation_key(slot.tenant, hashed, slot.run_id)
        await self._pending.put(key, record.model_dump_json().encode())

    async def _forget(self, slot: Slot, correlation: str) -> None:
        hashed = correlation_hash(correlation)
        await self._pending.delete(subjects.correlation_key(slot.tenant, hashed, slot.run_id))

    async def begun(self, slot: Slot, correlation: str) -> None:
        """Let events find the run by a key, from now to its end."""
        await self._correlate(slot, correlation, None)

    # -- the end -----------------------------------------------------------------------------

    async def stopped(self, slot: Slot, step_ids: Iterable[str]) -> None:
        """Cancel the child runs of steps that nobody waits for."""
        state = slot.state
        if state is None:
            return
        steps = [state.steps.get(step_id) for step_id in step_ids]
        await self._cancel_children(slot, [step for step in steps if step is not None])

    async def given_up(self, slot: Slot, subject: FactSubject, result: StepResult) -> None:
        """Cancel the child run of an attempt that took too long; its next one is another run."""
        late = result.error is not None and result.error.code == "step_timeout"
        if result.kind != StepKind.RUN or not late or result.usage is not None:
            return  # a child that has ended says what it used
        step = slot.state.steps.get(subject.step_id) if slot.state is not None else None
        if step is not None and step.queue == CHILD:
            await self._cancel_children(slot, [replace(step, attempt=subject.attempt)])

    async def _cancel_children(self, slot: Slot, steps: Iterable[StepState]) -> None:
        reason = f"its parent {slot.run_id} does not wait for it any more"
        fact = CancelRequested(occurred_at=datetime.now(UTC), reason=reason)
        await _all(
            [
                self._state_once(subjects.cancel(self._child_prefix(slot, step)), fact)
                for step in steps
                if step.kind == StepKind.RUN and step.queue == CHILD
            ]
        )

    def _child_prefix(self, slot: Slot, step: StepState) -> str:
        run_id = child_run_id(slot.tenant, slot.run_id, step.step_id, step.attempt)
        return self._prefix(slot.tenant, run_id)

    async def ended(self, slot: Slot, state: RunState, correlation: str | None) -> None:
        """Tell the parent, cancel the children, clear the indexes.

        Raises:
            PenstockError: The bus does not answer.
        """
        if state.request.parent is not None:
            await self._tell_parent(slot.tenant, state)
        await self._cancel_children(slot, unneeded_children(state, ended=True))
        if state.open_records:
            asked = [known.node_record for known in state.node_records.values() if known.open]
            open_records = [node_record for node_record in asked if node_record.request is not None]
            await _all([self._unpark(slot, node_record, over=True) for node_record in open_records])
        if correlation is not None:
            await self._forget(slot, correlation)

    async def _tell_parent(self, tenant: str, state: RunState) -> None:
        ended, parent = state.ended, state.request.parent
        if ended is None or parent is None:
            return
        error = ended.error
        if error is not None:
            message = f"run {state.run_id} {ended.status.value}: {error.message}"
            family = error.family if error.family != ErrorFamily.CONFLICT else ErrorFamily.REJECTED
            error = replace(error, message=message, family=family)
        result = StepResult(
            occurred_at=ended.occurred_at,
            kind=StepKind.RUN,
            name=state.request.name,
            status="succeeded" if error is None else "failed",
            output=ended.output,
            error=error,
            usage=state.usage.plus(Usage(steps=state.attempts)),
            started_at=state.request.occurred_at,
        )
        prefix = subjects.run_prefix(tenant, parent.shard, parent.run_id)
        await self._state_once(subjects.result(prefix, parent.step_id, parent.attempt), result)
        reach("engine.parent_told")

    async def look_after(self, slot: Slot, state: RunState) -> None:
        """Make effects again that may be missing, for a run that was read anew."""
        await self._cancel_children(slot, unneeded_children(state))
        for step in state.steps.values():
            if step.kind != StepKind.RUN or step.status != "scheduled":
                continue
            subject = subjects.out(
                state.prefix,
                step.decision,
                subjects.step_suffix("run", step.queue, step.step_id, step.attempt),
            )
            entry = await self._reader.read_fact(subject)
            if entry is None or not isinstance(entry.fact, StepScheduled):
                continue
            await self.perform(slot, step.step_id, step.attempt, entry.fact)
            if step.queue == CHILD:
                run_id = child_run_id(slot.tenant, slot.run_id, step.step_id, step.attempt)
                child = await self._read(slot.tenant, run_id)
                if child.ended is not None and child.invoked is not None:
                    await self._tell_parent(slot.tenant, child)
        if state.open_records:
            nothing = new_state(slot.tenant, slot.shard, slot.run_id)
            told = nothing if state.invoked is None else state
            await self.pending(
                slot, told, [known.node_record for known in state.node_records.values()]
            )

    # -- writing -----------------------------------------------------------------------------

    def _prefix(self, tenant: str, run_id: str) -> str:
        return subjects.run_prefix(tenant, shard_of(run_id, self._shards), run_id)

    async def _state_once(
        self, subject: str, fact: RunInvoked | SignalReceived | StepResult | CancelRequested
    ) -> None:
        """State a fact that somebody may have stated already."""
        try:
            await self._writer.append(subject, fact_bytes(fact))
        except ConflictError:
            _log.debug("effects.stated_already", extra={"subject": subject})


def correlation_of(plan: Plan, state: RunState) -> str | ErrorInfo:
    """Return the key by which events find a run all its life, or why there is none."""
    try:
        return str(render(plan.correlation, View(plan, state).run_scope()))
    except RejectedError as rejected:
        return rejected.info()


def unneeded_children(state: RunState, *, ended: bool = False) -> list[StepState]:
    """Return the steps whose child runs nobody waits for: what was stopped, at the end all."""
    return [
        step
        for step in state.steps.values()
        if step.kind == StepKind.RUN
        and step.queue == CHILD
        and (step.status == "stopped" or (ended and step.open))
    ]


async def _all(work: list[Coroutine[Any, Any, object]]) -> None:
    """Do many things, some at a time."""
    for start in range(0, len(work), _AT_ONCE):
        await asyncio.gather(*work[start : start + _AT_ONCE])


def stop_body(step_ids: tuple[str, ...]) -> bytes:
    """Return the body of the message that stops single steps of a run."""
    return to_json({"steps": list(step_ids)})


def _needed(slot: Slot) -> set[str]:
    """Return the keys by which events find a run: those of its waits, and its own."""
    state, plan = slot.state, slot.plan
    if state is None:
        return set()
    needed = {
        known.node_record.request.correlation
        for known in state.node_records.values()
        if known.open
        and known.node_record.request is not None
        and known.node_record.request.correlation
    }
    if plan is not None and plan.correlation is not None:
        key = correlation_of(plan, state)
        needed |= {key} if isinstance(key, str) else set()
    return needed
