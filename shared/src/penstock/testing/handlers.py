"""A runner's handlers in one process, without a bus.

Steps are executed by the code that also executes them in a process of runners; only the log, the
notes of attempts and the bus are in memory. No test has to wait: a deadline passes, a heartbeat
is missed and a run is stopped when the test asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal, TypedDict, Unpack

from pydantic_core import from_json

from penstock import clock
from penstock.contracts.errors import ConflictError, ErrorInfo
from penstock.contracts.facts import Decision, SecretRef, StepKind, StepScheduled
from penstock.contracts.json import Json
from penstock.contracts.subjects import FactSubject
from penstock.contracts.usage import Usage
from penstock.expressions.templates import render_with_secrets
from penstock.runner.attempt import Attempt
from penstock.runner.context import StepContext
from penstock.runner.execution import StepExecutor, StepServices
from penstock.runner.limits import Permit
from penstock.runner.runner import Runner
from penstock.runner.secrets import SECRET_PREFIX, Secrets

Status = Literal["succeeded", "failed", "unknown", "stopped"]

RUN_ID: Final = "01TESTTESTTESTTESTTESTTEST"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one attempt, as it would be recorded."""

    status: Status
    output: Json = None
    """The return value as JSON."""
    error: ErrorInfo | None = None
    """The failure with its code and family."""
    usage: Usage | None = None
    model: str | None = None
    heartbeats: tuple[Json, ...] = ()
    """Details of the heartbeats, in order."""
    deltas: tuple[str, ...] = ()
    """Pieces of text, in order."""

    @property
    def text(self) -> str:
        """All text that the handler emitted."""
        return "".join(self.deltas)


class StepOptions(TypedDict, total=False):
    """The parts of a step that have a default."""

    config: Json
    """The definition's settings beyond the input; default: none."""
    attempt: int
    """Number of the attempt; default: 1."""
    step_id: str
    """The same id means the same idempotency key; default: ``step``."""
    deadline_seconds: float
    """Time until the deadline; default: 30."""
    heartbeat_seconds: float | None
    """Longest time without a heartbeat; default: unlimited."""
    at_most_once: bool
    """Whether the step must not be repeated; default: it may."""


class LocalRunner:
    """Calls the handlers of a runner without a server."""

    def __init__(self, runner: Runner, *, secrets: Mapping[str, str] | None = None) -> None:
        """Prepare the runner; nothing is started.

        Args:
            runner: Its handlers are called.
            secrets: Values by name. With any, ``{{ secrets.NAME }}`` in input and config is
                filled in.
        """
        self._runner = runner
        self._secrets = secrets or {}
        environment = {SECRET_PREFIX + name: value for name, value in self._secrets.items()}
        self._log = _MemoryLog()
        self._executor = StepExecutor(
            kind=runner.kind,
            queue=runner.queue,
            runner_id="local",
            handlers=runner.handlers,
            catch_all=runner.catch_all,
            threads=ThreadPoolExecutor(thread_name_prefix="local-step"),
            services=StepServices(
                log=self._log,
                limits=_NoLimits(),
                once=_MemoryNotes(),
                secrets=Secrets(environment),
            ),
        )

    async def call(
        self,
        name: str,
        input: Json = None,  # noqa: A002 - as in the step
        **options: Unpack[StepOptions],
    ) -> Outcome:
        """Execute one attempt at a step and return its outcome."""
        return await self.start(name, input, **options)

    def start(
        self,
        name: str,
        input: Json = None,  # noqa: A002 - as in the step
        **options: Unpack[StepOptions],
    ) -> LocalCall:
        """Begin one attempt at a step; await the call for its outcome.

        Args:
            name: Name of the agent or tool.
            input: A tool's arguments or an agent's messages.
            options: The rest of the step.

        Raises:
            RejectedError: ``invalid_template``: a secret is not named as ``{{ secrets.NAME }}``.
        """
        now = clock.now()
        step_id, attempt = options.get("step_id", "step"), options.get("attempt", 1)
        values: Json = {"input": input, "config": options.get("config")}
        secrets: dict[str, tuple[str | SecretRef, ...]] = {}
        if self._secrets:
            rendered = render_with_secrets(values, {})
            values = rendered.value
            for pointer, pieces in rendered.secrets.items():
                secrets[pointer] = tuple(
                    piece if isinstance(piece, str) else SecretRef(secret=piece["secret"])
                    for piece in pieces
                )
        if not isinstance(values, dict):
            raise TypeError("a step has an input and a config")
        step = StepScheduled(
            occurred_at=now,
            decision=Decision(cause_seq=0),
            node_id=step_id,
            name=name,
            input=values["input"],
            config=values["config"],
            expires_at=now + timedelta(seconds=options.get("deadline_seconds", 30.0)),
            secrets=secrets,
            at_most_once=options.get("at_most_once", False),
            heartbeat_seconds=options.get("heartbeat_seconds"),
        )
        subject = FactSubject(
            tenant="test",
            shard=0,
            run_id=RUN_ID,
            event="step",
            decision=attempt,
            kind=self._runner.kind.value,
            queue=self._runner.queue,
            step_id=step_id,
            attempt=attempt,
        )
        return LocalCall(self._executor, self._log, subject, step)


class LocalCall:
    """One attempt in progress; await it for its outcome."""

    def __init__(
        self, executor: StepExecutor, log: _MemoryLog, subject: FactSubject, step: StepScheduled
    ) -> None:
        """Made by ``LocalRunner.start``, on a running event loop."""
        self._log = log
        self._progress = _Progress(asyncio.get_running_loop())
        self._attempt = _RecordedAttempt(
            (step.expires_at - step.occurred_at).total_seconds(),
            step.heartbeat_seconds,
            self._progress,
        )
        self.ctx: Final = StepContext(subject, step, self._attempt, self._progress)
        """The handler's context."""
        self._task = asyncio.create_task(
            executor.execute(self.ctx, step, self._attempt, step.occurred_at)
        )
        self._task.add_done_callback(lambda _: self._progress.notify())

    def __await__(self) -> Generator[object, None, Outcome]:
        """Wait for the outcome."""
        return self._outcome().__await__()

    @property
    def heartbeats(self) -> tuple[Json, ...]:
        """Details of the heartbeats so far."""
        return tuple(self._progress.heartbeats)

    @property
    def deltas(self) -> tuple[str, ...]:
        """Pieces of text so far."""
        return tuple(self._progress.deltas)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds that depends on heartbeats or text.

        Raises:
            AssertionError: The attempt ended before.
        """
        while not condition():
            if self._task.done():
                raise AssertionError(f"the attempt ended before: {await self._outcome()}")
            await self._progress.next()

    async def stop(self) -> Outcome:
        """Stop the attempt as if its run had been cancelled."""
        return await self._halt("stopped")

    async def expire(self) -> Outcome:
        """Let the deadline pass now."""
        return await self._halt("deadline")

    async def miss_heartbeat(self) -> Outcome:
        """Let the time without a heartbeat pass now."""
        return await self._halt("silent")

    async def _halt(self, halt: Literal["deadline", "silent", "stopped"]) -> Outcome:
        # The handler gets to run first: an attempt that has not begun cannot be interrupted.
        await asyncio.sleep(0)
        self._attempt.stop(halt)
        return await self._outcome()

    async def _outcome(self) -> Outcome:
        await asyncio.wait((self._task,))
        self._task.result()
        ctx, failure = self.ctx, self._attempt.failure
        body = self._log.bodies.get(ctx.result_subject)
        status: Status = "stopped"
        output: Json = None
        if self._attempt.halt != "stopped" and body is not None:
            fields = from_json(body)
            status, output = fields["status"], fields.get("output")
        return Outcome(
            status=status,
            output=output,
            error=failure,
            usage=ctx.usage,
            model=ctx.model,
            heartbeats=self.heartbeats,
            deltas=self.deltas,
        )


@dataclass
class _Acknowledged:
    data: bytes = b"{}"


class _Progress:
    """Records heartbeats and text; takes the place of the bus."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = asyncio.Event()
        self.heartbeats: list[Json] = []
        self.deltas: list[str] = []

    def notify(self) -> None:
        self._changed.set()

    def beat(self, details: Json) -> None:
        self.heartbeats.append(details)
        self._loop.call_soon_threadsafe(self.notify)

    async def next(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def request(
        self, subject: str, body: bytes = b"", *, timeout_seconds: float = 5.0
    ) -> _Acknowledged:
        self.deltas.extend(from_json(body)["texts"])
        self.notify()
        return _Acknowledged()


class _RecordedAttempt(Attempt):
    __slots__ = ("_progress",)

    def __init__(
        self, seconds: float, heartbeat_seconds: float | None, progress: _Progress
    ) -> None:
        super().__init__(seconds, heartbeat_seconds)
        self._progress = progress

    def beat(self, details: Json = None) -> None:
        super().beat(details)
        if details is not None:
            self._progress.beat(details)


@dataclass
class _MemoryLog:
    bodies: dict[str, bytes] = field(default_factory=dict)

    async def append(
        self, subject: str, body: bytes, *, headers: dict[str, str] | None = None
    ) -> None:
        self.bodies[subject] = body


class _NoLimits:
    async def enter(self, kind: StepKind, queue: str, config: Json, holder: str) -> Permit | None:
        return None

    async def block(self, kind: StepKind, config: Json, seconds: float) -> None:
        """Nothing is shared with other runners."""


class _MemoryNotes:
    def __init__(self) -> None:
        self._keys: set[str] = set()

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> None:
        if key in self._keys:
            raise ConflictError("key_exists", key)
        self._keys.add(key)
