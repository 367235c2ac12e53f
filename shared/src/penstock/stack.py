"""One stack of Penstock on this machine: what can be chosen about it, and a handle to run one.

``Stack`` starts the supervisor (``penstock.supervisor``) as a child process and finds out from
its ``stack.json`` where everything is; so does the CLI. Light, for the supervisor imports it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from penstock.child import LOOPBACK, Service, die_with_parent

STACK_FILE: Final = "stack.json"
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0

SERVICES: Final = (
    Service("registry", "penstock_registry"),
    Service("gateway", "penstock_gateway"),
    Service("projector", "penstock_archive"),
    Service("engine", "penstock_orchestrator"),
    Service("agent-runner", "penstock_agent_runner"),
    Service("tool-runner", "penstock_tool_runner"),
)
"""In the order of their start: what takes longest comes first."""


class StackError(Exception):
    """The stack cannot start, or did not; the text says why, in one line."""


class StackOptions(NamedTuple):
    """What can be chosen about a stack. A port of 0 takes a free one."""

    data_dir: str = ".penstock"
    host: str = LOOPBACK
    port: int = 8080
    nats_port: int = 4222
    durable: bool = False
    auth: bool = False
    verbose: bool = False
    services: tuple[Service, ...] = SERVICES


def parse_options(text: str) -> StackOptions:
    """Read options from a JSON object; missing ones have their default.

    Raises:
        StackError: It is not such an object.
    """
    try:
        raw = json.loads(text)
        if "services" in raw:
            raw["services"] = tuple(Service(*service) for service in raw["services"])
        return StackOptions(**raw)
    except (ValueError, TypeError) as error:
        raise StackError(f"not the options of a stack: {error}") from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``."""
    if host in ("localhost", "::1"):
        return True
    try:
        return socket.inet_aton(host)[0] == 127 and host.count(".") == 3
    except OSError:
        return False


class ProcessState(NamedTuple):
    """One process of a running stack."""

    pid: int | None
    """``None`` while it is dead."""
    restarts: int
    ready: bool | None = None
    """Reply of its ``/readyz``; ``None`` for nats-server, which has none."""
    metrics_port: int | None = None


class StackState(NamedTuple):
    """Content of ``stack.json``: the addresses and processes of a running stack."""

    supervisor_pid: int
    ready_seconds: float | None
    """Duration of the start; ``None`` until every service is ready."""
    url: str
    """Of the gateway."""
    nats_url: str
    monitor_url: str | None
    """Monitoring HTTP of nats-server."""
    data_dir: str
    durable: bool
    auth: bool
    processes: dict[str, ProcessState]
    """By service, and ``nats-server``."""

    def to_json(self) -> Mapping[str, object]:
        """Return it as a JSON object."""
        processes = {name: process._asdict() for name, process in self.processes.items()}
        return {**self._asdict(), "processes": processes}


def read_stack_file(data_dir: Path) -> StackState | None:
    """Return the state of the living stack in ``data_dir``, or ``None`` if there is none."""
    try:
        raw = json.loads((data_dir / STACK_FILE).read_bytes())
        processes = {
            name: ProcessState(**_known(ProcessState._fields, process))
            for name, process in raw["processes"].items()
        }
        state = StackState(**{**_known(StackState._fields, raw), "processes": processes})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return state if _lives(state.supervisor_pid) else None


def private_folder(path: Path) -> None:
    """Create a folder that only its owner reads: it holds logs, databases and tokens."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid == os.getuid():
        path.chmod(0o700)


def _known(fields: tuple[str, ...], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out fields that another version has written."""
    return {name: value for name, value in raw.items() if name in fields}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Stack:
    """A stack under this process; also a context manager that starts and stops it.

    It ends with the thread that started it, so start it from the main thread.
    """

    def __init__(self, options: StackOptions, *, env: Mapping[str, str] | None = None) -> None:
        """Describe the stack; nothing starts yet.

        Args:
            options: Ports of 0 are chosen at each start.
            env: Variables for all services, beyond our own environment.
        """
        self._options = options
        self._env = dict(env or {})
        self._data_dir = Path(options.data_dir).absolute()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def state(self) -> StackState:
        """The content of ``stack.json`` now.

        Raises:
            StackError: No stack runs there.
        """
        if (state := read_stack_file(self._data_dir)) is None:
            raise StackError(f"no stack runs in {self._data_dir}")
        return state

    @property
    def url(self) -> str:
        """The gateway's URL."""
        return self.state.url

    @property
    def nats_url(self) -> str:
        """The bus's URL."""
        return self.state.nats_url

    @property
    def ready_seconds(self) -> float:
        """Duration of the start.

        Raises:
            StackError: It has not ended yet.
        """
        seconds = self.state.ready_seconds
        if seconds is None:
            raise StackError("the stack is still starting")
        return seconds

    @property
    def log_file(self) -> Path:
        """What the supervisor wrote, over all starts."""
        return self._data_dir / "stack.log"

    def pid(self, name: str) -> int:
        """Return the process id of a service, of ``nats-server`` or of ``supervisor``.

        Raises:
            StackError: There is none of that name, or it is dead at the moment.
        """
        state = self.state
        if name == "supervisor":
            return state.supervisor_pid
        process = state.processes.get(name)
        if process is None or process.pid is None:
            raise StackError(f"{name} is not running")
        return process.pid

    def start(self, within: float = READY_SECONDS) -> None:
        """Start and wait until all services are ready.

        Args:
            within: Seconds to wait.

        Raises:
            StackError: It ended, or was not ready in time (it is stopped).
        """
        private_folder(self._data_dir)
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our interpreter, our module
                [sys.executable, "-m", "penstock.supervisor", json.dumps(self._options._asdict())],
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - see the class
            )
        deadline = time.monotonic() + within
        while not self._ready():
            if self._process.poll() is not None:
                self._process = None
                raise StackError(f"the stack ended: {self._last_words()}")
            if time.monotonic() > deadline:
                waiting = self._not_ready()
                self.stop()
                raise StackError(f"not ready within {within:g} s: {waiting}")
            time.sleep(0.02)

    def stop(self, within: float = STOP_SECONDS) -> None:
        """End it in good order, by force after ``within`` seconds; harmless if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the supervisor at once, and with it everything (``SIGKILL``)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ready(self) -> bool:
        state = read_stack_file(self._data_dir)
        return (
            state is not None
            and self._process is not None
            and state.supervisor_pid == self._process.pid
            and state.ready_seconds is not None
        )

    def _not_ready(self) -> str:
        state = read_stack_file(self._data_dir)
        if state is None:
            return self._last_words()
        waiting = [name for name, process in state.processes.items() if process.ready is False]
        return ", ".join(waiting) or "the gateway's /health and /v1/runners"

    def _last_words(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-3:]) if lines else "it wrote nothing"
