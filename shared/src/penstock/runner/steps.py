"""One step, from its message to its recorded outcome.

Invariant: it returns (so that the message is acknowledged) only when the outcome is in the log,
or when nobody waits for one: the run was stopped, or somebody else recorded the outcome.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from penstock.bus.claims import is_claim
from penstock.bus.consumer import Delivery
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.archive import RESTORED_HEADER
from penstock.contracts.errors import (
    THROTTLED,
    ConflictError,
    ErrorFamily,
    ErrorInfo,
    InvariantError,
    TransientError,
)
from penstock.contracts.facts import StepKind, StepScheduled
from penstock.contracts.subjects import FactSubject
from penstock.failpoints import reach
from penstock.runner.attempt import EXPIRED, Attempt
from penstock.runner.context import StepContext
from penstock.runner.handlers import Handler
from penstock.runner.harness import Harness
from penstock.runner.limits import Permit
from penstock.telemetry.logs import bind_task
from penstock.telemetry.metrics import step_metrics
from penstock.telemetry.tracing import TRACEPARENT, exporting, span

STALE_AFTER: Final = timedelta(seconds=2)
"""A step that is older, or comes again, may belong to a run that has ended meanwhile."""

ONCE_KEPT_SECONDS: Final = 86_400.0
"""How long after its deadline it is known that an attempt had begun."""
OUTCOME_UNKNOWN: Final = "outcome_unknown"
_UNCERTAIN: Final = frozenset(
    {"step_timeout", "step_expired", "heartbeat_timeout", "handler_error", OUTCOME_UNKNOWN}
)
"""Failures that do not tell whether what the handler was to do has been done."""

_STEP: Final[TypeAdapter[StepScheduled]] = TypeAdapter(StepScheduled)
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
        self._runner_id = runner_id
        self._handlers = handlers
        self._catch_all = catch_all
        self._threads = threads
        self._queue = queue
        self._once = Bucket(harness.bus, subjects.LIMITS)
        self._metrics = step_metrics(kind.value, queue)
        self._operation = _OPERATION[kind]

    async def handle(self, delivery: Delivery) -> None:
        """Do a step.

        Raises:
            TransientError: The outcome could not be recorded: the step is to come again.
            InvariantError: The message is no step.
        """
        subject = subjects.parse_fact(delivery.subject)
        run_id = subject.run_id
        stops = self._harness.stops
        if stops.stopped(run_id, subject.step_id):
            self._metrics.refused.inc()
            return
        now = datetime.now(UTC)
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
        # A delivery has a task of its own, so nothing needs to be unbound.
        bind_task(
            tenant=subject.tenant,
            run_id=run_id,
            step_id=subject.step_id,
            trace_id=traceparent[3:35] if traceparent else None,
        )
        attempt = Attempt((step.expires_at - now).total_seconds(), step.heartbeat_seconds)
        ctx = StepContext(subject, step, attempt, self._harness.bus, traceparent)
        if step.at_most_once and attempt.seconds <= 0 and delivery.deliveries > 1:
            attempt.begun = await self._once.get(ctx.once_key) is not None
        reach("runner.step_taken")
        stops.enter(run_id, subject.step_id, attempt)
        try:
            if exporting():
                await self._traced(ctx, step, attempt, now)
            else:
                await self._perform(ctx, step, attempt, now)
        finally:
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
            await self._perform(ctx, step, attempt, now)
            if attempt.failure is not None:
                traced.fail(attempt.failure.code, attempt.failure.message)

    async def _perform(
        self, ctx: StepContext, step: StepScheduled, attempt: Attempt, now: datetime
    ) -> None:
        """Run the handler and record the outcome, unless nobody waits for it any more."""
        output: object = None
        if attempt.seconds <= 0:
            attempt.failure = EXPIRED
        else:
            clock = perf_counter()
            with attempt:
                output = await self._call(ctx, step, attempt)
            self._metrics.seconds.observe(perf_counter() - clock)
            deltas = ctx.emitted
            if attempt.halt == "stopped":
                self._metrics.refused.inc()
                if deltas is not None:
                    deltas.abandon()
                return
            if deltas is not None:
                await deltas.close()
        if step.at_most_once and attempt.begun and attempt.failure is not None:
            attempt.failure = _uncertain(attempt.failure)
        reach("runner.handler_done")
        body = self._body(ctx, now, output, attempt)
        headers = None if ctx.traceparent is None else {TRACEPARENT: ctx.traceparent}
        try:
            await self._harness.writer.append(ctx.result_subject, body, headers=headers)
            reach("runner.result_stored")
        except ConflictError as error:
            if error.code != "duplicate_fact":
                raise
            # Somebody else did the same attempt and was faster: theirs counts.
            self._metrics.late.inc()
        else:
            self._count(attempt.failure)

    def _count(self, failure: ErrorInfo | None) -> None:
        if failure is None:
            self._metrics.succeeded.inc()
        elif failure.code == THROTTLED:
            self._metrics.throttled.inc()
        elif failure.code == OUTCOME_UNKNOWN:
            self._metrics.unknown.inc()
        else:
            self._metrics.failed.inc()

    async def _over(self, subject: FactSubject) -> bool:
        """Whether the log says that nobody waits for this attempt any more."""
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
        if is_claim(body):
            body = await self._harness.claims.unpack(body)
        try:
            return _STEP.validate_json(body)
        except ValidationError as error:
            raise InvariantError(
                "unreadable_step", f"{delivery.subject} cannot be read: {error}"
            ) from error

    async def _call(self, ctx: StepContext, step: StepScheduled, attempt: Attempt) -> Any:
        handler = self._handlers.get(ctx.name, self._catch_all)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise TransientError(
                "no_handler",
                f"runner {self._runner_id} has no {self._kind.value} {ctx.name!r}; it has: {known}",
            )
        if step.secrets:
            ctx.fill(self._harness.secrets.fill(step))
        positional, named = handler.arguments(ctx, ctx.input)
        call = partial(handler.function, *positional, **named)
        limits = self._harness.limits
        permit = await limits.enter(self._kind, self._queue, step.config, ctx.idempotency_key)
        try:
            if step.at_most_once:
                await self._begin(ctx, attempt)
            if handler.is_async:
                attempt.watch()
                return await call()
            return await self._in_thread(call, attempt)
        except TransientError as error:
            if error.code == THROTTLED and error.retry_after_seconds is not None:
                await limits.block(self._kind, step.config, error.retry_after_seconds)
            raise
        finally:
            if permit is not None:
                await _leave(permit, ctx)

    async def _in_thread(self, call: Callable[[], Any], attempt: Attempt) -> Any:
        loop = asyncio.get_running_loop()

        def work() -> Any:
            # Only now: it may have waited for a thread, and shows no progress meanwhile.
            loop.call_soon_threadsafe(attempt.watch)
            return call()

        return await loop.run_in_executor(self._threads, call if not attempt.watched else work)

    async def _begin(self, ctx: StepContext, attempt: Attempt) -> None:
        """Note that an attempt begins which must not be repeated.

        A crash before leaves nothing, and the step comes again; a crash after leaves the note,
        and nobody begins a second time.

        Raises:
            TransientError: ``outcome_unknown``: it had begun before.
        """
        kept = ctx.remaining_seconds + ONCE_KEPT_SECONDS
        try:
            # Unique, so that an answer that was lost is told apart from another's note.
            note = f"{self._runner_id} {uuid.uuid4()}".encode()
            await self._once.create(ctx.once_key, note, ttl_seconds=kept)
        except ConflictError as error:
            attempt.begun = True
            raise TransientError(
                OUTCOME_UNKNOWN, "a runner had begun this attempt and was lost"
            ) from error
        attempt.begun = True

    def _body(
        self, ctx: StepContext, started_at: datetime, output: object, attempt: Attempt
    ) -> bytes:
        """Return the ``StepResult`` as JSON, whatever the handler returned.

        Written from a dictionary: a model would be validated first, for twice the time, and
        would refuse what has a JSON form without being JSON (models, dataclasses, dates).
        """
        fields: dict[str, object] = {
            "type": "step.result",
            "occurred_at": datetime.now(UTC),
            "kind": self._kind.value,
            "name": ctx.name,
            "runner_id": self._runner_id,
            "started_at": started_at,
        }
        # What is absent has its default: everybody who follows the run reads less.
        if ctx.usage is not None:
            fields["usage"] = ctx.usage
        if ctx.model is not None:
            fields["model"] = ctx.model
        if ctx.emitted is not None:
            fields["deltas"] = ctx.emitted.count
        mask = attempt.mask
        if mask is not None and ctx.model is not None:
            fields["model"] = mask.text(ctx.model)
        if attempt.failure is None:
            try:
                if mask is not None:
                    output = mask.value(from_json(to_json(output, inf_nan_mode="null")))
                return to_json(
                    {**fields, "status": "succeeded", "output": output}, inf_nan_mode="null"
                )
            except (PydanticSerializationError, ValueError) as error:
                attempt.failure = ErrorInfo(
                    code="invalid_output",
                    message=f"the handler's return value has no JSON form: {error}",
                    family=ErrorFamily.REJECTED,
                )
                if mask is not None:
                    attempt.failure = mask.info(attempt.failure)
        status = "unknown" if attempt.failure.code == OUTCOME_UNKNOWN else "failed"
        return to_json({**fields, "status": status, "error": attempt.failure})


def _uncertain(failure: ErrorInfo) -> ErrorInfo:
    """Return the failure of an attempt that must not be repeated: is it known what it did?"""
    if failure.code not in _UNCERTAIN:
        return failure
    reason = failure.message
    if failure.code != OUTCOME_UNKNOWN:
        reason = f"{failure.code}: {reason}"
    return ErrorInfo(code=OUTCOME_UNKNOWN, message=reason, details=failure.details)


async def _leave(permit: Permit, ctx: StepContext) -> None:
    await permit.leave(tokens=0 if ctx.usage is None else ctx.usage.tokens)


def _traceparent(headers: bytes | None) -> str | None:
    """Return one header's value without reading the others."""
    if headers is None:
        return None
    start = headers.find(_TRACE_HEADER)
    if start < 0:
        return None
    start += len(_TRACE_HEADER)
    return headers[start : headers.index(b"\r", start)].strip().decode("ascii", "replace")
