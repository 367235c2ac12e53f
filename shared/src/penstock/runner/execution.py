"""One step: call its handler under a deadline and record the outcome in the log."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import Any, Final, Literal, Protocol

from pydantic_core import PydanticSerializationError, to_jsonable_python

from penstock import clock
from penstock.contracts.envelope import MAX_DEPTH, search, within
from penstock.contracts.errors import (
    THROTTLED,
    ConflictError,
    ErrorInfo,
    RejectedError,
    TransientError,
)
from penstock.contracts.facts import StepKind, StepResult, StepScheduled, fact_bytes
from penstock.contracts.json import Json
from penstock.contracts.structs import MalformedError, decode, encode
from penstock.contracts.usage import Usage
from penstock.failpoints import reach
from penstock.masks import Mask
from penstock.runner.attempt import (
    EXPIRED,
    OUTCOME_UNKNOWN,
    Attempt,
    failure_of,
    uncertain,
)
from penstock.runner.context import StepContext
from penstock.runner.deltas import DeltaStream
from penstock.runner.handlers import Handler
from penstock.runner.limits import Permit
from penstock.runner.secrets import Secrets
from penstock.telemetry.metrics import step_metrics
from penstock.telemetry.tracing import TRACEPARENT

ONCE_KEPT_SECONDS: Final = 86_400.0
"""How long after its deadline it is known that an attempt had begun."""


class ResultLog(Protocol):
    """The log, as far as outcomes are recorded in it."""

    async def append(
        self, subject: str, body: bytes, *, headers: dict[str, str] | None = None
    ) -> object:
        """Append one message and return when it is acknowledged."""


class Limiter(Protocol):
    """Rate limits."""

    async def enter(self, kind: StepKind, queue: str, config: Json, holder: str) -> Permit | None:
        """Return a permit, or ``None`` where nothing limits the step."""

    async def block(self, kind: StepKind, config: Json, seconds: float) -> None:
        """Keep all runners from the step's provider for a while."""


class OnceNotes(Protocol):
    """Notes of the attempts that began and must not be repeated."""

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> object:
        """Write a note; raises ``ConflictError`` if there is one."""


@dataclass(frozen=True, slots=True)
class StepServices:
    """What the execution of steps needs beside their handlers."""

    log: ResultLog
    limits: Limiter
    once: OnceNotes
    secrets: Secrets


class StepExecutor:
    """Executes the steps of one queue; shared by all its tasks."""

    def __init__(
        self,
        *,
        kind: StepKind,
        queue: str,
        runner_id: str,
        handlers: Mapping[str, Handler],
        catch_all: Handler | None,
        threads: Executor,
        services: StepServices,
    ) -> None:
        """Prepare the executor.

        Args:
            kind: Kind of the steps.
            queue: Queue of the steps.
            runner_id: Recorded in every result.
            handlers: By name of agent or tool.
            catch_all: For all other names.
            threads: Run plain functions.
            services: Record outcomes, limit rates, fill in secrets.
        """
        self._kind = kind
        self._queue = queue
        self._runner_id = runner_id
        self._handlers = handlers
        self._catch_all = catch_all
        self._threads = threads
        self._log = services.log
        self._limits = services.limits
        self._once = services.once
        self._secrets = services.secrets
        self._metrics = step_metrics(kind.value, queue)

    async def execute(
        self, ctx: StepContext, step: StepScheduled, attempt: Attempt, now: datetime
    ) -> None:
        """Run the handler and record the outcome, unless the step was stopped.

        Raises:
            TransientError: The outcome, or text of the handler, could not be recorded.
            ConflictError: The log refuses the outcome as more than a duplicate.
        """
        output: Json = None
        deltas: DeltaStream | None = None
        if attempt.seconds <= 0:
            attempt.failure = EXPIRED
        else:
            clock = perf_counter()
            with attempt:
                # Inside the attempt: the handler's generators and classes run here.
                output = _as_json(await self._call(ctx, step, attempt))
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
            attempt.failure = uncertain(attempt.failure)
        reach("runner.handler_done")
        count = 0 if deltas is None else deltas.count
        body = self._body(ctx, step.name, count, now, output, attempt)
        headers = None if ctx.traceparent is None else {TRACEPARENT: ctx.traceparent}
        try:
            await self._log.append(ctx.result_subject, body, headers=headers)
            reach("runner.result_stored")
        except ConflictError as error:
            if error.code != "duplicate_fact":
                raise
            # Another runner completed the same attempt first: its result counts.
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

    async def _call(self, ctx: StepContext, step: StepScheduled, attempt: Attempt) -> Any:
        handler = self._handlers.get(step.name, self._catch_all)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise TransientError(
                "no_handler",
                f"runner {self._runner_id} has no {self._kind.value} {step.name!r};"
                f" it has: {known}",
            )
        filled = ctx.fill(self._secrets.fill(step)) if step.secrets else step
        positional, named = handler.arguments(ctx, step.name, filled.input)
        call = partial(handler.function, *positional, **named)
        limits = self._limits
        permit = await limits.enter(self._kind, self._queue, step.config, ctx.idempotency_key)
        try:
            if step.at_most_once:
                await self._begin(ctx, attempt)
            if handler.is_async:
                if step.heartbeat_seconds is not None:
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
            if attempt.watched:
                # Only now: it may have waited for a thread, and shows no progress meanwhile.
                loop.call_soon_threadsafe(attempt.watch)
            try:
                return call()
            except StopIteration as error:
                raise RuntimeError("a future cannot hold StopIteration") from error

        return await loop.run_in_executor(self._threads, work)

    async def _begin(self, ctx: StepContext, attempt: Attempt) -> None:
        """Note that an attempt begins which must not be repeated.

        A crash before leaves nothing, and the step comes again; a crash after leaves the note,
        and no attempt begins a second time.

        Raises:
            TransientError: ``outcome_unknown``: it had begun before.
        """
        kept = ctx.remaining_seconds + ONCE_KEPT_SECONDS
        try:
            # Unique, so that a lost reply is distinguished from the note of another runner.
            note = f"{self._runner_id} {uuid.uuid4()}".encode()
            await self._once.create(ctx.once_key, note, ttl_seconds=kept)
        except ConflictError as error:
            attempt.begun = True
            raise TransientError(
                OUTCOME_UNKNOWN, "a runner had begun this attempt and was lost"
            ) from error
        attempt.begun = True

    def _body(
        self,
        ctx: StepContext,
        name: str,
        deltas: int,
        started_at: datetime,
        output: Json,
        attempt: Attempt,
    ) -> bytes:
        """Return the ``StepResult`` as JSON; what cannot be recorded is a failure."""
        mask, failure = attempt.mask, attempt.failure
        result = partial(
            StepResult,
            occurred_at=clock.now(),
            kind=self._kind,
            name=name,
            runner_id=self._runner_id,
            started_at=started_at,
            deltas=deltas,
        )
        usage: Usage | None = None
        model: str | None = None
        try:
            usage, model = _used(ctx, mask)
            if failure is None:
                value = output if mask is None else mask.value(output)
                succeeded = result(status="succeeded", output=value, usage=usage, model=model)
                return _checked(succeeded)
        except ValueError as error:
            if failure is None:
                failure = attempt.failure = failure_of(_invalid_output(error), mask)
        status: Literal["unknown", "failed"] = (
            "unknown" if failure.code == OUTCOME_UNKNOWN else "failed"
        )
        return fact_bytes(result(status=status, error=failure, usage=usage, model=model))


def _as_json(output: object) -> Json:
    """Return what a handler returned as plain values of JSON.

    Raises:
        RejectedError: ``invalid_output``: it has no such form.
    """
    try:
        value: Json = to_jsonable_python(output)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise _invalid_output(error) from error
    return value


def _invalid_output(error: Exception) -> RejectedError:
    return RejectedError("invalid_output", f"what the handler returned cannot be recorded: {error}")


def _used(ctx: StepContext, mask: Mask | None) -> tuple[Usage | None, str | None]:
    """Return usage and model that the handler set on its context; nothing has checked them before.

    Raises:
        MalformedError: The usage or the model is none.
    """
    usage, model = ctx.usage, ctx.model
    if usage is not None:
        usage = decode(Usage, encode(usage))
    if model is not None:
        if not isinstance(model, str):
            raise MalformedError("the model is not text")
        model = model if mask is None else mask.text(model)
    return usage, model


def _checked(result: StepResult) -> bytes:
    """Return a result as JSON, with its output within the envelope of values.

    Raises:
        MalformedError: The output cannot be recorded.
    """
    body = fact_bytes(result)
    if not within(body, MAX_DEPTH + 1):  # the fact is one level around its output
        search(result.output)
    return body


async def _leave(permit: Permit, ctx: StepContext) -> None:
    # Handlers may set anything, and the permit must go back.
    await permit.leave(tokens=ctx.usage.tokens if isinstance(ctx.usage, Usage) else 0)
