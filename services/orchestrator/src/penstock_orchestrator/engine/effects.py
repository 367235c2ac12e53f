"""Effects of decisions outside their run's log: child runs, messages, results for parents, indexes.

Effects are idempotent: ids are derived, so the log refuses a duplicate. The engine makes them after
it has stored the decision and before it acknowledges the input. ``restore`` repeats those that may
be missing after a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final

from msgspec.structs import replace
from pydantic_core import from_json, to_json

from penstock import clock
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
    fact_bytes,
)
from penstock.contracts.ids import child_run_id, is_run_id, require_token, shard_of
from penstock.contracts.json import Json
from penstock.contracts.pending import CorrelationRecord, PendingRecord, correlation_hash
from penstock.contracts.plan import Plan
from penstock.contracts.structs import convert
from penstock.contracts.subjects import FactSubject
from penstock.expressions.templates import render
from penstock.failpoints import reach
from penstock.runs.engine_steps import SendConfig, SendTarget
from penstock.runs.start import child_run
from penstock.runs.state import PENDING, RunState, StepState, fold, new_state
from penstock.telemetry.logs import EventLog
from penstock_orchestrator.core.view import View
from penstock_orchestrator.engine.runs import Slot

log = EventLog(__name__)

_AT_ONCE: Final = 64
CHILD: Final = "workflow"
SEND: Final = "send"


class Effects:
    """Writes to other runs' logs and to the buckets of pending requests."""

    def __init__(self, bus: Bus, writer: LogWriter, reader: LogReader, *, shards: int) -> None:
        """Work on the given log."""
        self._writer = writer
        self._reader = reader
        self._shards = shards
        self._pending = Bucket(bus, subjects.PENDING)
        self._sessions = Bucket(bus, subjects.SESSIONS)

    # -- steps of the engine itself ----------------------------------------------------------

    async def start_step(
        self, slot: Slot, queue: str, step_id: str, attempt: int, fact: StepScheduled
    ) -> None:
        """Start a step that the engine executes itself: a child run, or a message.

        Raises:
            PenstockError: The bus does not answer.
        """
        if queue == SEND:
            await self._send(slot, step_id, attempt, fact)
        else:
            await self._start_child(slot, step_id, attempt, fact)

    async def _start_child(
        self, slot: Slot, step_id: str, attempt: int, fact: StepScheduled
    ) -> None:
        state = slot.state
        if state is None or state.invoked is None:
            return
        run_id = child_run_id(slot.tenant, slot.run_id, step_id, attempt)
        prefix = self._prefix(slot.tenant, run_id)
        child = child_run(state, step_id, attempt, fact)
        await append_once(self._writer, subjects.invoke(prefix), child)
        reach("engine.child_started")

    async def _send(self, slot: Slot, step_id: str, attempt: int, fact: StepScheduled) -> None:
        targets = await self._targets(slot.tenant, convert(SendConfig, fact.config).to)
        token = hashlib.sha256(f"{slot.run_id}\x00{step_id}".encode()).hexdigest()[:32]
        receivers: list[Json] = []
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
            await append_once(self._writer, subjects.signal(prefix, f"m-{token}"), message)
            reach("engine.message_sent")
            receivers.append(run_id)
        error = None
        if not receivers:
            error = ErrorInfo(code="no_recipient", message=f"no open run takes {fact.name!r}")
        result = StepResult(
            occurred_at=clock.now(),
            kind=StepKind.RUN,
            name=fact.name,
            status="succeeded" if receivers else "failed",
            output={"run_ids": receivers},
            error=error,
            started_at=fact.occurred_at,
        )
        await append_once(self._writer, subjects.result(slot.prefix, step_id, attempt), result)

    async def _targets(self, tenant: str, to: SendTarget) -> list[str]:
        """Return the ids of the runs that a message goes to."""
        run_id, key, session = to.run_id, to.correlation, to.session_id
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

    # -- the index of pending requests -----------------------------------------------------------

    async def index_pending(
        self, slot: Slot, before: RunState, node_records: Iterable[NodeRecord]
    ) -> None:
        """Index the requests that a decision opens, and remove those that it closes."""
        work: list[Coroutine[Any, Any, object]] = []
        for node_record in node_records:
            if node_record.kind not in PENDING:
                continue
            known = before.node_records.get(node_record.record_id)
            if node_record.status == "open" and node_record.request is not None:
                work.append(self._add_pending(slot, node_record, before))
            elif known is not None and known.open and known.node_record.request is not None:
                work.append(self._remove_pending(slot, known.node_record))
        await gather_some(work)

    async def _add_pending(self, slot: Slot, node_record: NodeRecord, state: RunState) -> None:
        record = PendingRecord(
            tenant=slot.tenant,
            run_id=slot.run_id,
            shard=slot.shard,
            name=state.request.name,
            node_record=node_record,
            asked_at=clock.now(),
        )
        key = subjects.pending_key(slot.tenant, slot.run_id, node_record.record_id)
        await self._pending.put(key, record.model_dump_json().encode())
        if node_record.request is not None and node_record.request.correlation is not None:
            await self._add_correlation(
                slot, node_record.request.correlation, node_record.record_id
            )

    async def _remove_pending(
        self, slot: Slot, node_record: NodeRecord, *, run_ended: bool = False
    ) -> None:
        await self._pending.delete(
            subjects.pending_key(slot.tenant, slot.run_id, node_record.record_id)
        )
        correlation = node_record.request.correlation if node_record.request is not None else None
        if correlation is not None and (run_ended or correlation not in _correlations_in_use(slot)):
            await self._remove_correlation(slot, correlation)

    async def _add_correlation(self, slot: Slot, correlation: str, record_id: str | None) -> None:
        record = CorrelationRecord(run_id=slot.run_id, shard=slot.shard, record_id=record_id)
        hashed = correlation_hash(correlation)
        key = subjects.correlation_key(slot.tenant, hashed, slot.run_id)
        await self._pending.put(key, record.model_dump_json().encode())

    async def _remove_correlation(self, slot: Slot, correlation: str) -> None:
        hashed = correlation_hash(correlation)
        await self._pending.delete(subjects.correlation_key(slot.tenant, hashed, slot.run_id))

    async def index_run(self, slot: Slot, plan: Plan, state: RunState) -> ErrorInfo | None:
        """Index the run under its correlation key until it ends; return its template's error."""
        key = correlation_of(plan, state)
        if not isinstance(key, str):
            return key
        await self._add_correlation(slot, key, None)
        return None

    # -- the end -----------------------------------------------------------------------------

    async def cancel_child_runs(self, slot: Slot, step_ids: Iterable[str]) -> None:
        """Cancel the child runs of stopped steps."""
        state = slot.state
        if state is None:
            return
        steps = [state.steps.get(step_id) for step_id in step_ids]
        await self._cancel_children(slot, [step for step in steps if step is not None])

    async def cancel_expired_child(
        self, slot: Slot, subject: FactSubject, result: StepResult
    ) -> None:
        """Cancel the child run of an expired attempt; the next attempt starts another run."""
        late = result.error is not None and result.error.code == "step_timeout"
        if result.kind != StepKind.RUN or not late or result.usage is not None:
            return  # the child has ended: only then its result has usage
        step = slot.state.steps.get(subject.step_id) if slot.state is not None else None
        if step is not None and step.queue == CHILD:
            await self._cancel_children(slot, [replace(step, attempt=subject.attempt)])

    async def _cancel_children(self, slot: Slot, steps: Iterable[StepState]) -> None:
        reason = f"the parent run {slot.run_id} no longer waits for it"
        fact = CancelRequested(occurred_at=clock.now(), reason=reason)
        await gather_some(
            [
                cancel_once(self._writer, self._child_prefix(slot, step), fact)
                for step in steps
                if step.kind == StepKind.RUN and step.queue == CHILD
            ]
        )

    def _child_prefix(self, slot: Slot, step: StepState) -> str:
        run_id = child_run_id(slot.tenant, slot.run_id, step.step_id, step.attempt)
        return self._prefix(slot.tenant, run_id)

    async def finish_run(self, slot: Slot, state: RunState, plan: Plan | None) -> None:
        """Report to the parent, cancel open child runs, clear the indexes.

        Raises:
            PenstockError: The bus does not answer.
        """
        if state.invoked is not None and state.invoked.parent is not None:
            await self._report_to_parent(slot.tenant, state)
        if children := unneeded_children(state, ended=True):
            await self._cancel_children(slot, children)
        if state.open_records:
            open_ones = [known.node_record for known in state.node_records.values() if known.open]
            open_records = [
                node_record for node_record in open_ones if node_record.request is not None
            ]
            await gather_some(
                [
                    self._remove_pending(slot, node_record, run_ended=True)
                    for node_record in open_records
                ]
            )
        if plan is not None and plan.correlation is not None:
            key = correlation_of(plan, state)
            if isinstance(key, str):
                await self._remove_correlation(slot, key)

    async def _report_to_parent(self, tenant: str, state: RunState) -> None:
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
            usage=state.spent,
            started_at=state.request.occurred_at,
        )
        prefix = subjects.run_prefix(tenant, parent.shard, parent.run_id)
        await append_once(
            self._writer, subjects.result(prefix, parent.step_id, parent.attempt), result
        )
        reach("engine.parent_notified")

    async def restore(self, slot: Slot, state: RunState) -> None:
        """Repeat the effects that may be missing, for a run that was reloaded."""
        await self._cancel_children(slot, unneeded_children(state))
        for step in state.steps.values():
            if step.kind != StepKind.RUN or step.status != "scheduled":
                continue
            subject = subjects.out(
                slot.prefix,
                step.decision,
                subjects.step_suffix("run", step.queue, step.step_id, step.attempt),
            )
            entry = await self._reader.read_fact(subject)
            if entry is None or not isinstance(entry.fact, StepScheduled):
                continue
            await self.start_step(slot, step.queue, step.step_id, step.attempt, entry.fact)
            if step.queue == CHILD:
                run_id = child_run_id(slot.tenant, slot.run_id, step.step_id, step.attempt)
                child = await self._read(slot.tenant, run_id)
                if child.ended is not None and child.invoked is not None:
                    await self._report_to_parent(slot.tenant, child)
        if state.open_records:
            nothing = new_state(slot.tenant, slot.shard, slot.run_id)
            before = nothing if state.invoked is None else state
            await self.index_pending(
                slot, before, [known.node_record for known in state.node_records.values()]
            )

    def _prefix(self, tenant: str, run_id: str) -> str:
        return subjects.run_prefix(tenant, shard_of(run_id, self._shards), run_id)


async def append_once(
    writer: LogWriter, subject: str, fact: RunInvoked | SignalReceived | StepResult
) -> None:
    """Append a fact; a duplicate has no effect.

    Raises:
        PenstockError: The bus does not answer.
    """
    try:
        await writer.append(subject, fact_bytes(fact))
    except ConflictError:
        log.debug("effects.duplicate", subject=subject)


async def cancel_once(writer: LogWriter, prefix: str, fact: CancelRequested) -> None:
    """Request to cancel a run; nothing is stored if it was requested before or the run has ended.

    Raises:
        PenstockError: The bus does not answer.
    """
    subject = subjects.cancel(prefix)
    try:
        await writer.append(subject, fact_bytes(fact), fence=subjects.ends_filter(prefix))
    except ConflictError:
        log.debug("effects.duplicate", subject=subject)


def correlation_of(plan: Plan, state: RunState) -> str | ErrorInfo:
    """Return the correlation key of a run, or the error of its template."""
    try:
        return str(render(plan.correlation, View(plan, state).run_scope()))
    except RejectedError as rejected:
        return rejected.info()


def unneeded_children(state: RunState, *, ended: bool = False) -> list[StepState]:
    """Return the steps whose child runs are to be cancelled: stopped ones, at the end all."""
    return [
        step
        for step in state.steps.values()
        if step.kind == StepKind.RUN
        and step.queue == CHILD
        and (step.status == "stopped" or (ended and step.open))
    ]


async def gather_some(work: Sequence[Coroutine[Any, Any, object]]) -> None:
    """Await many coroutines, ``_AT_ONCE`` at a time."""
    for start in range(0, len(work), _AT_ONCE):
        await asyncio.gather(*work[start : start + _AT_ONCE])


def stop_body(step_ids: tuple[str, ...]) -> bytes:
    """Return the body of the message that stops single steps of a run."""
    return to_json({"steps": list(step_ids)})


def _correlations_in_use(slot: Slot) -> set[str]:
    """Return the correlation keys of a run: its own, and those of its open waits."""
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
