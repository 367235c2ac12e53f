"""One step, from its message to its recorded outcome.

Invariant: it returns (so that the message is acknowledged) only when the outcome is in the log,
or when no run waits for one: the run was stopped, or another runner recorded the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from datetime import datetime, timedelta
from typing import Final

from penstock import clock
from penstock.bus.claims import CLAIM_MARK
from penstock.bus.consumer import Delivery
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.archive import RESTORED_HEADER
from penstock.contracts.errors import (
    InvariantError,
)
from penstock.contracts.facts import StepKind, StepScheduled
from penstock.contracts.runners import StepInWork
from penstock.contracts.structs import decode
from penstock.contracts.subjects import FactSubject
from penstock.failpoints import reach
from penstock.runner.attempt import Attempt
from penstock.runner.context import StepContext
from penstock.runner.execution import StepExecutor, StepServices
from penstock.runner.handlers import Handler
from penstock.runner.harness import Harness
from penstock.telemetry.logs import bind_task
from penstock.telemetry.metrics import step_metrics
from penstock.telemetry.tracing import TRACEPARENT, exporting, span

STALE_AFTER: Final = timedelta(seconds=2)
"""A step that is older, or comes again, may belong to a run that has ended meanwhile."""

SHOWN_AFTER: Final = timedelta(seconds=1)
"""A step that takes less long is not shown as in work."""
SHOWN: Final = 100

_TRACE_HEADER: Final = f"{TRACEPARENT}:".encode()
_RESTORED: Final = f"{RESTORED_HEADER}:".encode()
_OPERATION: Final = {StepKind.AGENT: "invoke_agent", StepKind.TOOL: "execute_tool"}


class StepWorker:
    """Takes the steps of one queue; shared by all its tasks."""

    def __init__(
        self,
        harness: Harness,
        *,
        kind: StepKind,
        queue: str,
        runner_id: str,
        handlers: Mapping[str, Handler],
        catch_all: Handler | None,
        threads: Executor,
    ) -> None:
        """Prepare the worker.

        Args:
            harness: The bus and what stands on it.
            kind: Kind of the steps.
            queue: Queue of the steps.
            runner_id: Stands in every result.
            handlers: By name of agent or tool.
            catch_all: For all other names.
            threads: Where plain functions run.
        """
        self._harness = harness
        self._kind = kind
        self._once = Bucket(harness.bus, subjects.LIMITS)
        self._metrics = step_metrics(kind.value, queue)
        self._in_work: dict[Attempt, tuple[FactSubject, datetime]] = {}
        self._executor = StepExecutor(
            kind=kind,
            queue=queue,
            runner_id=runner_id,
            handlers=handlers,
            catch_all=catch_all,
            threads=threads,
            services=StepServices(harness.writer, harness.limits, self._once, harness.secrets),
        )
        self._operation = _OPERATION[kind]

    def in_work(self, now: datetime) -> tuple[StepInWork, ...]:
        """Return the steps in work for ``SHOWN_AFTER`` or longer, the oldest first, some at most.

        Safe to call from any thread: the dictionary is copied at once.
        """
        shown = [one for one in tuple(self._in_work.items()) if now - one[1][1] >= SHOWN_AFTER]
        return tuple(
            StepInWork(
                tenant=subject.tenant,
                run_id=subject.run_id,
                step_id=subject.step_id,
                attempt=subject.attempt,
                started_at=started_at,
                progress=attempt.progress,
            )
            for attempt, (subject, started_at) in shown[:SHOWN]
        )

    async def handle(self, delivery: Delivery) -> None:
        """Do a step.

        Raises:
            TransientError: The outcome could not be recorded: the step is to come again.
            InvariantError: The message is no step.
        """
        subject = subjects.parse_fact(delivery.subject)
        run_id = subject.run_id
        stops = self._harness.stops
        if stops.stopped(run_id, subject.step_id, subject.attempt):
            self._metrics.refused.inc()
            return
        now = clock.now()
        stale = (
            delivery.deliveries > 1
            or now - delivery.stored_at > STALE_AFTER
            # Put back into the log with a run that ended long ago.
            or (delivery.raw_headers is not None and _RESTORED in delivery.raw_headers)
        )
        if stale and await self._over(subject):
            self._metrics.refused.inc()
            return
        step = await self._read(delivery)
        traceparent = _traceparent(delivery.raw_headers)
        # Each delivery has its task, so nothing needs to be unbound.
        bind_task(
            tenant=subject.tenant,
            run_id=run_id,
            step_id=subject.step_id,
            trace_id=traceparent[3:35] if traceparent else None,
        )
        attempt = Attempt((step.expires_at - now).total_seconds(), step.heartbeat_seconds)
        ctx = StepContext(
            subject,
            step,
            attempt,
            self._harness.bus,
            traceparent,
            deliveries=delivery.deliveries,
        )
        if step.at_most_once and attempt.seconds <= 0 and delivery.deliveries > 1:
            attempt.begun = await self._once.get(ctx.once_key) is not None
        reach("runner.step_taken")
        stops.enter(run_id, subject.step_id, attempt)
        self._in_work[attempt] = subject, now
        try:
            if exporting():
                await self._traced(ctx, step, attempt, now)
            else:
                await self._executor.execute(ctx, step, attempt, now)
        finally:
            del self._in_work[attempt]
            stops.leave(run_id, attempt)

    async def _traced(
        self, ctx: StepContext, step: StepScheduled, attempt: Attempt, now: datetime
    ) -> None:
        """Do the same within a span, by the conventions for generative AI."""
        with span(
            f"{self._operation} {ctx.name}",
            kind="consumer",
            traceparent=ctx.traceparent,
            attributes={
                "gen_ai.operation.name": self._operation,
                f"gen_ai.{self._kind.value}.name": ctx.name,
                "penstock.run.id": ctx.run_id,
                "penstock.step.id": ctx.step_id,
            },
        ) as traced:
            ctx.traceparent = traced.traceparent
            await self._executor.execute(ctx, step, attempt, now)
            if attempt.failure is not None:
                traced.fail(attempt.failure.code, attempt.failure.message)

    async def _over(self, subject: FactSubject) -> bool:
        """Whether the log shows that no run waits for this attempt any more."""
        prefix = subjects.run_prefix(subject.tenant, subject.shard, subject.run_id)
        page = await self._harness.reader.get_many(
            subjects.RUNS,
            {
                "multi_last": [
                    subjects.cancel(prefix),
                    subjects.ends_filter(prefix),
                    subjects.result(prefix, subject.step_id, subject.attempt),
                ]
            },
        )
        return bool(page.messages)

    async def _read(self, delivery: Delivery) -> StepScheduled:
        body = delivery.body
        if body.startswith(CLAIM_MARK):
            body = await self._harness.claims.unpack(body)
        try:
            return decode(StepScheduled, body)
        except ValueError as error:
            raise InvariantError(
                "unreadable_step", f"{delivery.subject} cannot be read: {error}"
            ) from error


def _traceparent(headers: bytes | None) -> str | None:
    """Return one header's value without reading the others."""
    if headers is None:
        return None
    start = headers.find(_TRACE_HEADER)
    if start < 0:
        return None
    start += len(_TRACE_HEADER)
    return headers[start : headers.index(b"\r", start)].strip().decode("ascii", "replace")
