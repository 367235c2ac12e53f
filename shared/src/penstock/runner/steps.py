"""One step, from its message to its recorded outcome.

Invariant: it returns (so that the message is acknowledged) only when the outcome is in the log,
or when nobody waits for one: the run was stopped, or somebody else recorded the outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from penstock.bus.claims import is_claim
from penstock.bus.consumer import Delivery
from penstock.contracts import subjects
from penstock.contracts.errors import (
    ConflictError,
    ErrorFamily,
    ErrorInfo,
    InvariantError,
    TransientError,
)
from penstock.contracts.facts import StepKind, StepScheduled
from penstock.contracts.subjects import FactSubject
from penstock.runner.attempt import EXPIRED, Attempt
from penstock.runner.context import StepContext
from penstock.runner.handlers import Handler
from penstock.runner.harness import Harness
from penstock.telemetry.logs import bind_task
from penstock.telemetry.metrics import step_metrics
from penstock.telemetry.tracing import TRACEPARENT, exporting, span

STALE_AFTER: Final = timedelta(seconds=2)
"""A step that is older, or comes again, may belong to a run that has ended meanwhile."""

_STEP: Final[TypeAdapter[StepScheduled]] = TypeAdapter(StepScheduled)
_TRACE_HEADER: Final = f"{TRACEPARENT}:".encode()
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
        if stops.stopped(run_id):
            self._metrics.refused.inc()
            return
        now = datetime.now(UTC)
        stale = delivery.deliveries > 1 or now - delivery.stored_at > STALE_AFTER
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
        attempt = Attempt((step.expires_at - now).total_seconds())
        ctx = StepContext(subject, step, attempt, self._harness.bus, traceparent)
        stops.enter(run_id, attempt)
        try:
            if exporting():
                await self._traced(ctx, attempt, now)
            else:
                await self._perform(ctx, attempt, now)
        finally:
            stops.leave(run_id, attempt)

    async def _traced(self, ctx: StepContext, attempt: Attempt, now: datetime) -> None:
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
            await self._perform(ctx, attempt, now)
            if attempt.failure is not None:
                traced.fail(attempt.failure.code, attempt.failure.message)

    async def _perform(self, ctx: StepContext, attempt: Attempt, now: datetime) -> None:
        """Run the handler and record the outcome, unless nobody waits for it any more."""
        output: object = None
        if attempt.seconds <= 0:
            attempt.failure = EXPIRED
        else:
            clock = perf_counter()
            with attempt:
                output = await self._call(ctx)
            self._metrics.seconds.observe(perf_counter() - clock)
            deltas = ctx.emitted
            if attempt.halt == "stopped":
                self._metrics.refused.inc()
                if deltas is not None:
                    deltas.abandon()
                return
            if deltas is not None:
                await deltas.close()
        body = self._body(ctx, now, output, attempt)
        headers = None if ctx.traceparent is None else {TRACEPARENT: ctx.traceparent}
        try:
            await self._harness.writer.append(ctx.result_subject, body, headers=headers)
        except ConflictError as error:
            if error.code != "duplicate_fact":
                raise
            # Somebody else did the same attempt and was faster: theirs counts.
            self._metrics.late.inc()
        else:
            (self._metrics.succeeded if attempt.failure is None else self._metrics.failed).inc()

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

    async def _call(self, ctx: StepContext) -> Any:
        handler = self._handlers.get(ctx.name, self._catch_all)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise TransientError(
                "no_handler",
                f"runner {self._runner_id} has no {self._kind.value} {ctx.name!r}; it has: {known}",
            )
        positional, named = handler.arguments(ctx, ctx.input)
        if handler.is_async:
            return await handler.function(*positional, **named)
        call = partial(handler.function, *positional, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

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
        if attempt.failure is None:
            try:
                return to_json(
                    {**fields, "status": "succeeded", "output": output}, inf_nan_mode="null"
                )
            except (PydanticSerializationError, ValueError) as error:
                attempt.failure = ErrorInfo(
                    code="invalid_output",
                    message=f"the handler's return value has no JSON form: {error}",
                    family=ErrorFamily.REJECTED,
                )
        return to_json({**fields, "status": "failed", "error": attempt.failure})


def _traceparent(headers: bytes | None) -> str | None:
    """Return one header's value without reading the others."""
    if headers is None:
        return None
    start = headers.find(_TRACE_HEADER)
    if start < 0:
        return None
    start += len(_TRACE_HEADER)
    return headers[start : headers.index(b"\r", start)].strip().decode("ascii", "replace")
