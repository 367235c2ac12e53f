"""A whole Penstock as a user starts it: ``penstock dev`` with free ports and an empty folder."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from penstock.bus.connection import Bus
from penstock.child import die_with_parent
from penstock.contracts import subjects
from penstock.stack import StackError, StackState, read_stack_file

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.005


class PenstockStack:
    """A running stack; ``penstock_stack`` makes one."""

    def __init__(self, data_dir: Path, started_at: float) -> None:
        """Describe the stack that has just become ready in ``data_dir``."""
        self._data_dir = data_dir
        self.started_at = started_at
        """When the command was started, by ``time.perf_counter``."""
        self.ready_seconds = time.perf_counter() - started_at

    @property
    def _state(self) -> StackState:
        if (state := read_stack_file(self._data_dir)) is None:
            raise StackError(f"the stack in {self._data_dir} is gone")
        return state

    @property
    def http_port(self) -> int:
        """Port of the gateway."""
        return int(self._state.url.rpartition(":")[2])

    @property
    def nats_url(self) -> str:
        """URL of the bus."""
        return self._state.nats_url

    @property
    def restarts(self) -> int:
        """How often any process had to be started again."""
        return sum(process.restarts for process in self._state.processes.values())

    def metrics_port(self, name: str) -> int:
        """Return the port at which a process shows its metrics."""
        port = self._state.processes[name].metrics_port
        if port is None:
            raise StackError(f"{name} has no metrics port")
        return port

    def processes(self) -> dict[str, int]:
        """Return all process ids by name, those that live."""
        state = self._state
        found = {"supervisor": state.supervisor_pid}
        for name, process in state.processes.items():
            if process.pid is not None:
                found[name] = process.pid
        return found


@contextlib.contextmanager
def penstock_stack(data_dir: Path, *, durable: bool) -> Iterator[PenstockStack]:
    """Start a stack, wait until it is ready, and end it afterwards.

    Raises:
        StackError: It ended, or was not ready in time.
    """
    command = [str(Path(sys.executable).with_name("penstock")), "dev", "--port", "0"]
    command += ["--nats-port", "0", "--data-dir", str(data_dir)]
    command += ["--durable"] if durable else []
    data_dir.mkdir(parents=True, exist_ok=True)
    log_file = data_dir / "penstock-dev.log"
    with log_file.open("ab") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - the bench has one thread
        )
    try:
        _wait_ready(process, data_dir, log_file)
        yield PenstockStack(data_dir, started)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Its children are tied to its life.
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], data_dir: Path, log_file: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        state = read_stack_file(data_dir)
        if state is not None and state.ready_seconds is not None:
            return
        if process.poll() is not None or time.monotonic() > deadline:
            words = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise StackError(f"the stack is not ready: {' | '.join(words) or 'it said nothing'}")
        time.sleep(_POLL_SECONDS)


async def backlog(bus: Bus) -> dict[str, int]:
    """Return by durable how many facts it has yet to take in; those with none are left out."""
    consumers: list[dict[str, Any]] = []
    total = 1
    while len(consumers) < total:
        answer = await bus.api(f"CONSUMER.LIST.{subjects.RUNS}", {"offset": len(consumers)})
        consumers += answer["consumers"] or []
        total = min(int(answer["total"]), len(consumers) + len(answer["consumers"] or []))
    waiting = {c["name"]: int(c["num_pending"]) + int(c["num_ack_pending"]) for c in consumers}
    return {name: count for name, count in waiting.items() if count}


async def stored_facts(bus: Bus) -> int:
    """Return how many facts the log holds."""
    answer = await bus.api(f"STREAM.INFO.{subjects.RUNS}")
    return int(answer["state"]["messages"])
