"""A process of runners: composition, signals, drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Final, NoReturn, Protocol

from penstock.bus.connection import connect
from penstock.contracts.errors import PenstockError, TransientError
from penstock.contracts.runners import RunnerRecord
from penstock.memory import settle
from penstock.runner.harness import Harness
from penstock.runner.heartbeat import Heartbeat
from penstock.runner.settings import RunnerSettings, find_settings
from penstock.telemetry.health import HealthServer
from penstock.telemetry.logs import EventLog
from penstock.telemetry.process import observed

EXIT_FAILED: Final = 1

log = EventLog(__name__)


class QueueRunner(Protocol):
    """A runner, as its process uses it."""

    queue: str

    def record(self) -> RunnerRecord:
        """Return the heartbeat's content."""

    async def start(self, harness: Harness) -> None:
        """Begin to take steps."""

    def begin_drain(self) -> None:
        """Announce in the next heartbeat that no more steps are taken."""

    async def drain(self, grace_seconds: float) -> None:
        """Finish the steps in work, or hand them back after the grace."""


def run(
    runners: Sequence[QueueRunner], *, settings: RunnerSettings | None = None, service: str
) -> None:
    """Run until SIGTERM or SIGINT, then drain and leave the process.

    Args:
        runners: At least one; they share a connection and a heartbeat.
        settings: Built from ``PENSTOCK_*`` variables and ``stack.json`` if not given.
        service: Name in logs and traces.

    Raises:
        SystemExit: With 0 after a drain, 1 if it could not start.
    """
    settings = settings if settings is not None else find_settings()
    status = 0
    try:
        with observed(settings, service):
            _run_loop(serve(runners, settings, name=service))
    except PenstockError as error:
        # A server that is away needs no traceback; anything else may be a fault.
        fault = None if isinstance(error, TransientError) else error
        log.error("runner.failed", error=fault, code=error.code, reason=str(error))  # noqa: TRY400 - see above
        status = EXIT_FAILED
    _leave(status)


def _run_loop(serving: Coroutine[object, object, None]) -> None:
    """Run under uvloop where it is installed, else under asyncio's own loop.

    A task or callback of a handler that raises ``SystemExit`` stops the loop, which continues.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        from uvloop import new_event_loop as factory  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        loop = runner.get_loop()
        main = loop.create_task(serving)
        while not main.done():
            try:
                loop.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt) as error:
                log.error("runner.exit_refused", error=error)  # noqa: TRY400 - with its class
        main.result()


def _leave(status: int) -> NoReturn:
    """End the process, also while a plain function still runs in its thread.

    Its step was handed back; Python would wait for the thread until the process is killed.
    """
    left = [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    if not left:
        sys.exit(status)
    log.warning("runner.threads_left", threads=left)
    logging.shutdown()
    os._exit(status)


async def serve(
    runners: Sequence[QueueRunner],
    settings: RunnerSettings,
    *,
    name: str,
    until: asyncio.Event | None = None,
) -> None:
    """Run until a signal, or ``until`` is set; then drain, deregister and close, in this order.

    Raises:
        PenstockError: It could not start.
    """
    ending = until if until is not None else asyncio.Event()
    loop = asyncio.get_running_loop()
    if until is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
    bus = await connect(settings, name=f"{name}-{settings.instance_id}")
    try:
        harness = await Harness(bus, settings).open()
        health = HealthServer(
            host=settings.metrics_host, port=settings.metrics_port, canary=harness.writer.canary
        )
        heartbeat = Heartbeat(settings, partial(_records, runners))
        await health.start()
        try:
            for runner in runners:
                await runner.start(harness)
            await heartbeat.start()
            settle()
            log.info("runner.ready", queues=[runner.queue for runner in runners])
            await ending.wait()
        finally:
            await _drain(runners, harness, heartbeat, settings)
            await health.stop()
    finally:
        await bus.close()


def _records(runners: Sequence[QueueRunner]) -> list[RunnerRecord]:
    return [runner.record() for runner in runners]


async def _drain(
    runners: Sequence[QueueRunner], harness: Harness, heartbeat: Heartbeat, settings: RunnerSettings
) -> None:
    for runner in runners:
        runner.begin_drain()
    heartbeat.beat_now()
    await asyncio.gather(*(runner.drain(settings.drain_seconds) for runner in runners))
    await harness.close()
    # Last, so that the runner does not count as lost while steps are still in work.
    await heartbeat.stop()
