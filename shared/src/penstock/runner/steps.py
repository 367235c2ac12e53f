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

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from penstock.bus.claims import is_claim
from penstock.bus.connection import Bus
from penstock.bus.consumer import Delivery
from penstock.contracts import subjects
from penstock.contracts.errors import (
    ConflictError,
    ErrorFamily,
    ErrorInfo,
    InvariantError,
    TransientError,
)
from penstock.contracts.facts import StepKind, StepResult, StepScheduled
from penstock.contracts.subjects import FactSubject
from penstock.runner.attempt import EXPIRED, Attempt
from penstock.runner.context import StepContext
from penstock.runner.handlers import Handler
from penstock.runner.harness import Harness
from penstock.telemetry.logs import EventLog, bind
from penstock.telemetry.metrics import step_metrics
from penstock.telemetry.tracing import TRACEPARENT, span

STALE_AFTER: Final = timedelta(seconds=2)
"""A step that is older, or comes again, may belong to a run that has ended meanwhile."""
DELTA_TIMEOUT_SECONDS: Final = 5.0

_STEP: Final[TypeAdapter[StepScheduled]] = TypeAdapter(StepScheduled)
_RESULT: Final[TypeAdapter[StepResult]] = TypeAdapter(StepResult)
_OPERATION: Final = {StepKind.AGENT: "invoke_agent", StepKind.TOOL: "execute_tool"}

events = EventLog("penstock.runner")


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
        self.in_flight = 0
        """Steps in work, for the heartbeat."""

    async def handle(self, delivery: Delivery) -> None:
        """Do a step.

        Raises:
            TransientError: The outcome could not be recorded: the step is to come again.
            InvariantError: The message is no step.
        """
        subject = subjects.parse_fact(delivery.subject)
        now = datetime.now(UTC)
        stops = self._harness.stops
        if stops.stopped(subject.run_id):
            self._metrics.refused.inc()
            return
        stale = delivery.deliveries > 1 or now - delivery.stored_at > STALE_AFTER
        if stale and await self._over(subject):
            self._metrics.refused.inc()
            return
        step = await self._read(delivery)
        traceparent = delivery.headers.get(TRACEPARENT) if delivery.raw_headers else None
        attempt = Attempt((step.expires_at - now).total_seconds())
        ctx = StepContext(
            subject, step, attempt, partial(send_delta, self._harness.bus, _delta_subject(subject))
        )
        self.in_flight += 1
        stops.enter(subject.run_id, attempt)
        try:
            with (
                span(
                    f"{self._operation} {step.name}", kind="consumer", traceparent=traceparent
                ) as traced,
                bind(
                    tenant=subject.tenant,
                    run_id=subject.run_id,
                    step_id=subject.step_id,
                    trace_id=traced.trace_id,
                ),
            ):
                result = await self._outcome(ctx, attempt, now)
                if result is None:
                    self._metrics.refused.inc()
                    return
                if result.error is not None:
                    traced.fail(result.error.code, result.error.message)
                await self._record(subject, result, traced.traceparent)
        finally:
            stops.leave(subject.run_id, attempt)
            self.in_flight -= 1

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

    async def _outcome(
        self, ctx: StepContext, attempt: Attempt, started_at: datetime
    ) -> StepResult | None:
        """Run the handler and return what came out; ``None``: the run was stopped."""
        if ctx.deadline <= started_at:
            return self._result(ctx, started_at, error=EXPIRED)
        clock = perf_counter()
        output: Any = None
        with attempt:
            output = await self._call(ctx)
        self._metrics.seconds.observe(perf_counter() - clock)
        deltas = ctx.emitted
        if attempt.halt == "stopped":
            if deltas is not None:
                deltas.abandon()
            return None
        if deltas is not None:
            await deltas.close()
        if attempt.failure is not None:
            return self._result(ctx, started_at, error=attempt.failure)
        return self._result(ctx, started_at, output=output)

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

    def _result(
        self,
        ctx: StepContext,
        started_at: datetime,
        *,
        output: Any = None,
        error: ErrorInfo | None = None,
    ) -> StepResult:
        if isinstance(output, BaseModel):
            output = output.model_dump(mode="json")
        deltas = ctx.emitted
        failed = error is not None
        common: dict[str, Any] = {
            "occurred_at": datetime.now(UTC),
            "kind": self._kind,
            "name": ctx.name,
            "usage": ctx.usage,
            "model": ctx.model,
            "runner_id": self._runner_id,
            "started_at": started_at,
            "deltas": 0 if deltas is None else deltas.count,
        }
        if failed:
            return StepResult(status="failed", error=error, **common)
        try:
            return StepResult(status="succeeded", output=output, **common)
        except ValidationError:
            # Not plain JSON; dataclasses, sets, dates and the like have a JSON form.
            return self._converted(output, common)

    def _converted(self, output: object, common: dict[str, Any]) -> StepResult:
        try:
            plain: JsonValue = to_jsonable_python(output)
        except PydanticSerializationError as error:
            info = ErrorInfo(
                code="invalid_output",
                message=f"the handler's return value has no JSON form: {error}",
                family=ErrorFamily.REJECTED,
            )
            return StepResult(status="failed", error=info, **common)
        return StepResult(status="succeeded", output=plain, **common)

    async def _record(self, subject: FactSubject, result: StepResult, traceparent: str) -> None:
        prefix = subjects.run_prefix(subject.tenant, subject.shard, subject.run_id)
        try:
            await self._harness.writer.append(
                subjects.result(prefix, subject.step_id, subject.attempt),
                _RESULT.dump_json(result),
                headers={TRACEPARENT: traceparent} if traceparent else None,
            )
        except ConflictError as error:
            if error.code != "duplicate_fact":
                raise
            # Somebody else did the same attempt and was faster: theirs counts.
            self._metrics.late.inc()
            return
        (self._metrics.succeeded if result.error is None else self._metrics.failed).inc()


def _delta_subject(subject: FactSubject) -> str:
    return subjects.delta(
        subject.tenant, subject.shard, subject.run_id, subject.step_id, subject.attempt
    )


async def send_delta(bus: Bus, subject: str, body: bytes, first: int) -> None:
    """Publish a batch of text; returns when the bus has stored it.

    Raises:
        TransientError: It did not, as far as we know.
    """
    reply = await bus.request(subject, body, timeout_seconds=DELTA_TIMEOUT_SECONDS)
    if b'"error"' in reply.data:
        raise TransientError("delta_refused", f"{subject} from {first}: {reply.data[:200]!r}")
