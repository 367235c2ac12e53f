"""Control of runs: cancel one, one step or many; pause and resume."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Literal

from penstock import clock
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.archive import ListRuns, RunPage
from penstock.contracts.errors import ConflictError, ErrorInfo, RejectedError, finding
from penstock.contracts.facts import (
    CancelRequested,
    RunEnded,
    RunStatus,
    SignalReceived,
    StepKind,
    StepResult,
    fact_bytes,
)
from penstock.contracts.ids import child_run_id
from penstock.contracts.runners import StopRequest
from penstock.runs.replies import RunsCancelled
from penstock.runs.state import RunState, StepState
from penstock.runs.views import CHILD_QUEUE
from penstock_gateway.archive.requests import Archive
from penstock_gateway.core.access import Caller
from penstock_gateway.core.requests import CancelRuns
from penstock_gateway.runs.read import NOT_FOUND, Runs, available
from penstock_gateway.runs.signals import Signals, append_to_open, control_signal_id, run_ended

OPEN_STATUSES: Final = tuple(status for status in RunStatus if not status.final)
_PAGE: Final = 500
_AT_ONCE: Final = 64

Asked = Literal["asked", "asked_before", "ended"]


@dataclass(frozen=True, slots=True)
class Controls:
    """Control of runs of any tenant."""

    _bus: Bus
    """Carries requests to stop to the runners."""
    _writer: LogWriter
    _reader: LogReader
    _archive: Archive
    """Finds runs by their properties."""
    _runs: Runs
    _signals: Signals

    # -- pausing -------------------------------------------------------------------------------

    async def pause_or_resume(
        self, caller: Caller, run_id: str, kind: Literal["pause", "resume"], reason: str
    ) -> tuple[RunState, bool]:
        """Pause or resume a run; return it as it is then, and whether anything was to be done.

        Raises:
            RejectedError: ``run_not_found``, ``run_ended``.
            TransientError: The log did not answer.
        """
        state = await self._open(caller.tenant, run_id)
        if state.paused == (kind == "pause"):
            return state, False
        fact = SignalReceived(
            occurred_at=clock.now(),
            name=kind,
            kind=kind,
            payload={"reason": reason} if reason else None,
            sent_by=caller.key_id,
        )
        sent = await self._signals.publish(caller.tenant, run_id, control_signal_id(kind), fact)
        return await self._runs.state(caller.tenant, run_id, at_least_seq=sent.seq), True

    async def _open(self, tenant: str, run_id: str) -> RunState:
        state = await self._runs.state(tenant, run_id)
        if state.ended is not None:
            raise run_ended(run_id)
        return state

    # -- cancelling ----------------------------------------------------------------------------

    async def cancel(self, caller: Caller, run_id: str, reason: str) -> Asked:
        """Ask a run to stop; nothing is stored if it was asked before or has ended.

        Raises:
            TransientError: The log did not answer.
        """
        fact = CancelRequested(occurred_at=clock.now(), reason=reason, requested_by=caller.key_id)
        prefix = self._runs.prefix(caller.tenant, run_id)
        try:
            await append_to_open(self._writer, self._reader, prefix, subjects.cancel(prefix), fact)
        except ConflictError:
            return "asked_before"
        except RejectedError:
            return "ended"
        return "asked"

    async def cancel_step(self, caller: Caller, run_id: str, step_id: str, reason: str) -> RunState:
        """Stop one step: a child run with all below it, or an attempt of an agent or a tool.

        The step fails with the code ``cancelled``; what follows is the definition's matter.

        Raises:
            RejectedError: ``run_not_found``, ``run_ended``, ``step_not_found``,
                ``step_not_cancellable``.
            TransientError: The log did not answer.
        """
        tenant = caller.tenant
        state = await self._open(tenant, run_id)
        step = state.steps.get(step_id)
        if step is None:
            raise RejectedError("step_not_found", f"run {run_id} has no step {step_id}")
        if step.status not in ("planned", "scheduled"):
            raise _not_cancellable(step, f"the step is {step.status}")
        if step.kind is not StepKind.RUN:
            seq = await self._fail(caller, state, step, reason)
            return await self._runs.state(tenant, run_id, at_least_seq=seq)
        if step.queue != CHILD_QUEUE:
            raise _not_cancellable(step, "the step sends a message")
        child = child_run_id(tenant, run_id, step_id, step.attempt)
        try:
            await self._runs.require(tenant, child)
        except RejectedError as error:
            if error.code != NOT_FOUND:
                raise
            raise _not_cancellable(step, "its run has not begun yet") from error
        if await self.cancel(caller, child, reason) == "ended":
            raise _not_cancellable(step, "its run has ended")
        return await self._runs.state(tenant, run_id)

    async def _fail(self, caller: Caller, state: RunState, step: StepState, reason: str) -> int:
        """Record a step as cancelled, in its runner's stead, and stop the runner.

        The first result counts.
        """
        now = clock.now()
        message = f"{caller.key_id} stopped the step" + (f": {reason}" if reason else "")
        fact = StepResult(
            occurred_at=now,
            kind=step.kind,
            name=step.name,
            status="failed",
            error=ErrorInfo(code="cancelled", message=message),
            runner_id="gateway",
            started_at=now,
        )
        subject = subjects.result(state.prefix, step.step_id, step.attempt)
        try:
            seq = await self._writer.append(subject, fact_bytes(fact))
        except ConflictError as error:
            raise _not_cancellable(step, "the step has its outcome") from error
        request = StopRequest(steps=(step.step_id,), attempt=step.attempt)
        stop = subjects.stop(state.tenant, state.shard, state.run_id)
        await self._bus.publish(stop, request.model_dump_json().encode())
        return seq

    async def cancel_many(self, caller: Caller, wanted: CancelRuns) -> RunsCancelled:
        """Ask all open runs that match to stop, the latest first.

        Raises:
            RejectedError: ``invalid_request``: a status is final.
            TransientError: The archive or the log did not answer.
        """
        for index, status in enumerate(wanted.status):
            if status.final:
                detail = finding(
                    f"status[{index}]",
                    f"runs that are {status.value} have ended",
                    ", ".join(OPEN_STATUSES),
                )
                raise RejectedError(
                    "invalid_request", "only open runs can be cancelled", details=(detail,)
                )
        run_ids, more = await self._find(caller, wanted)
        found: dict[Asked, list[str]] = {"asked": [], "asked_before": [], "ended": []}
        for first in range(0, len(run_ids), _AT_ONCE):
            some = run_ids[first : first + _AT_ONCE]
            outcomes = await asyncio.gather(
                *(self._cancel_one(caller, run_id, wanted) for run_id in some)
            )
            for run_id, outcome in zip(some, outcomes, strict=True):
                found[outcome].append(run_id)
        return RunsCancelled(
            dry_run=wanted.dry_run,
            matched=len(run_ids),
            asked=tuple(found["asked"]),
            asked_before=tuple(found["asked_before"]),
            ended=tuple(found["ended"]),
            more=more,
        )

    async def _find(self, caller: Caller, wanted: CancelRuns) -> tuple[list[str], bool]:
        run_ids: list[str] = []
        cursor: str | None = None
        while len(run_ids) < wanted.limit:
            request = ListRuns(
                tenant=caller.tenant,
                status=wanted.status or OPEN_STATUSES,
                name=wanted.name,
                session_id=wanted.session_id,
                created_before=wanted.created_before,
                tags=wanted.tag,
                limit=min(_PAGE, wanted.limit - len(run_ids)),
                cursor=cursor,
            )
            page = await self._archive.ask("list_runs", request, RunPage)
            run_ids += [item.run_id for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return run_ids, False
        return run_ids, True

    async def _cancel_one(self, caller: Caller, run_id: str, wanted: CancelRuns) -> Asked:
        prefix = self._runs.prefix(caller.tenant, run_id)
        filters = [subjects.cancel(prefix), subjects.ends_filter(prefix)]
        with available():
            page = await self._reader.get_many(subjects.RUNS, {"multi_last": filters})
            facts = [(await self._reader.entry(stored)).fact for stored in page.messages]
        if any(isinstance(fact, RunEnded) for fact in facts):
            return "ended"
        if any(isinstance(fact, CancelRequested) for fact in facts):
            return "asked_before"
        return "asked" if wanted.dry_run else await self.cancel(caller, run_id, wanted.reason)


def _not_cancellable(step: StepState, why: str) -> RejectedError:
    return RejectedError(
        "step_not_cancellable",
        f"step {step.step_id} cannot be cancelled: {why}",
        details=(finding("path.step_id", why, "a step that is at work for an open run"),),
    )
