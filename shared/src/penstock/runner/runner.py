"""The runner: handlers for one queue of steps, and their life from start to drain."""

from __future__ import annotations

import asyncio
import importlib.metadata
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from penstock import clock
from penstock.contracts.facts import StepKind
from penstock.contracts.ids import require_token
from penstock.contracts.json import Json
from penstock.contracts.runners import Capability, RunnerRecord
from penstock.runner.handlers import Handler
from penstock.telemetry.logs import EventLog

if TYPE_CHECKING:
    from penstock.bus.consumer import Consumer
    from penstock.runner.harness import Harness
    from penstock.runner.settings import RunnerSettings
    from penstock.runner.steps import StepWorker

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONCURRENCY: Final = 64
MAX_THREADS: Final = 64

log = EventLog(__name__)


class Runner:
    """Executes the steps of one queue with its handlers.

    Any number of processes may run the same queue: each step goes to one of them. ::

        runner = Runner(kind="tool", queue="weather")

        @runner.tool("forecast")
        async def forecast(city: str, days: int = 1) -> dict[str, float]:
            ...

        if __name__ == "__main__":
            runner.run()
    """

    def __init__(
        self,
        *,
        kind: StepKind | str = StepKind.TOOL,
        queue: str,
        concurrency: int = DEFAULT_CONCURRENCY,
        version: str | None = None,
    ) -> None:
        """Create a runner without handlers.

        Args:
            kind: ``tool`` or ``agent``.
            queue: Name of the queue, one subject token.
            concurrency: Most steps in work at the same time.
            version: Shown in the list of runners; Penstock's own version if not given.

        Raises:
            RejectedError: ``invalid_token``: the queue's name is none.
            ValueError: An unknown kind, or a concurrency below 1.
        """
        if concurrency < 1:
            raise ValueError("a runner's concurrency is at least 1")
        self.kind = StepKind(kind)
        self.queue = require_token(queue, path="queue")
        self.concurrency = concurrency
        self._version = version
        self._handlers: dict[str, Handler] = {}
        self._catch_all: Handler | None = None
        self._started_at = clock.now()
        self._draining = False
        self._runner_id = ""
        self._ttl_seconds = 0.0
        self._worker: StepWorker | None = None
        self._consumer: Consumer | None = None
        self._threads: ThreadPoolExecutor | None = None

    # -- handlers ----------------------------------------------------------------------------

    def tool(
        self,
        name: str,
        *,
        description: str | None = None,
        parameters: Mapping[str, Json] | None = None,
    ) -> Callable[[F], F]:
        """Register a function as a tool.

        Its parameters, or its one parameter that is a pydantic model, say what arguments it
        takes; a parameter annotated ``StepContext`` gets the context.

        Args:
            name: The tool's name.
            description: What it does; the docstring's first line if not given.
            parameters: JSON Schema to advertise instead of the derived one.

        Raises:
            TypeError: The signature cannot be called by names, or this is no runner of tools.
            ValueError: The name is taken.
        """
        return self._register(StepKind.TOOL, name, description, parameters)

    def agent(self, name: str, *, description: str | None = None) -> Callable[[F], F]:
        """Register a function as an agent: it takes ``messages`` and returns an action.

        Raises:
            TypeError: The signature cannot be called by names, or this is no runner of agents.
            ValueError: The name is taken.
        """
        return self._register(StepKind.AGENT, name, description, None)

    def step(self) -> Callable[[F], F]:
        """Register a function for every step that has no other handler.

        Its one parameter besides the context, if any, takes the whole input.

        Raises:
            TypeError: It has more parameters.
            ValueError: There is one already.
        """

        def register(function: F) -> F:
            if self._catch_all is not None:
                raise ValueError("this runner has a handler for all other steps already")
            self._catch_all = Handler("step", function, closed=False, whole=True)
            return function

        return register

    def _register(
        self,
        kind: StepKind,
        name: str,
        description: str | None,
        parameters: Mapping[str, Json] | None,
    ) -> Callable[[F], F]:
        if kind is not self.kind:
            raise TypeError(f"a runner of kind {self.kind.value!r} has no {kind.value}s")
        require_token(name, path="name")

        def register(function: F) -> F:
            if name in self._handlers:
                raise ValueError(f"{kind.value} {name!r} has a handler already")
            self._handlers[name] = Handler(
                name,
                function,
                description=description,
                parameters=parameters,
                closed=kind is StepKind.TOOL,
            )
            return function

        return register

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by name of agent or tool."""
        return self._handlers

    @property
    def catch_all(self) -> Handler | None:
        """The handler of every other step."""
        return self._catch_all

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What this runner advertises."""
        return tuple(handler.capability for handler in self._handlers.values())

    # -- life --------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Steps in work."""
        return 0 if self._consumer is None else self._consumer.in_flight

    def record(self) -> RunnerRecord:
        """Return the record of this runner in the heartbeat; safe to call from any thread."""
        now = clock.now()
        return RunnerRecord(
            runner_id=self._runner_id,
            kind=self.kind.value,
            queue=self.queue,
            version=self._version or importlib.metadata.version("penstock"),
            host=socket.gethostname(),
            capabilities=self.capabilities,
            concurrency=self.concurrency,
            in_flight=self.in_flight,
            draining=self._draining,
            steps=() if self._worker is None else self._worker.in_work(now),
            started_at=self._started_at,
            beat_at=now,
            ttl_seconds=self._ttl_seconds,
        )

    async def start(self, harness: Harness) -> None:
        """Begin to take steps.

        Raises:
            InvariantError: ``topology_differs``.
            TransientError: The bus does not answer.
        """
        # Here, because a module that only declares handlers should import fast.
        from penstock.bus.consumer import Consumer  # noqa: PLC0415
        from penstock.bus.topology import ensure_runner_consumer  # noqa: PLC0415
        from penstock.contracts.subjects import RUNS  # noqa: PLC0415
        from penstock.runner.steps import StepWorker  # noqa: PLC0415

        settings = harness.settings
        self._runner_id = settings.instance_id
        self._ttl_seconds = settings.runner_ttl_seconds
        self._threads = ThreadPoolExecutor(
            max_workers=min(self.concurrency, MAX_THREADS), thread_name_prefix=f"{self.queue}-step"
        )
        self._worker = StepWorker(
            harness,
            kind=self.kind,
            queue=self.queue,
            runner_id=self._runner_id,
            handlers=self._handlers,
            catch_all=self._catch_all,
            threads=self._threads,
        )

        async def ensure() -> str:
            return await ensure_runner_consumer(harness.bus, settings, self.kind.value, self.queue)

        self._consumer = Consumer(
            harness.bus,
            RUNS,
            await ensure(),
            self._worker.handle,
            concurrency=self.concurrency,
            ack_wait_seconds=settings.ack_wait_seconds,
            recreate=ensure,
        )
        await self._consumer.start()
        log.info(
            "runner.started",
            kind=self.kind.value,
            queue=self.queue,
            concurrency=self.concurrency,
            handlers=sorted(self._handlers),
        )

    def begin_drain(self) -> None:
        """Announce the drain in the next heartbeat."""
        self._draining = True

    async def drain(self, grace_seconds: float) -> None:
        """Take no more steps; finish those in work, or hand them back after the grace."""
        self._draining = True
        if self._consumer is not None:
            await self._consumer.drain(grace_seconds=grace_seconds)
            # Those handed back were cancelled; let them unwind.
            await asyncio.sleep(0)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        log.info("runner.drained", kind=self.kind.value, queue=self.queue)

    def run(self, settings: RunnerSettings | None = None) -> None:
        """Run as the only thing of this process, until SIGTERM or SIGINT, then exit with 0.

        Args:
            settings: Built from ``PENSTOCK_*`` variables if not given; without
                ``PENSTOCK_NATS_URL`` the bus is that of the stack running in ``.penstock``.

        Raises:
            SystemExit: Always, at the end.
        """
        from penstock.runner.process import run  # noqa: PLC0415 - the rest is heavier

        run([self], settings=settings, service=f"runner-{self.queue}")
