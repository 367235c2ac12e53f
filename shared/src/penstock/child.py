"""Child processes of one service each, and the small questions asked of them.

Standard library only: the supervisor that imports this lives as long as the stack.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

LOOPBACK: Final = "127.0.0.1"
FIRST_RESTART_SECONDS: Final = 0.1
LAST_RESTART_SECONDS: Final = 5.0
STEADY_SECONDS: Final = 10.0
"""A child that lived so long starts its back-off anew."""

_PORTS: Final = range(15_000, 32_000)
_METRICS: Final = "PENSTOCK_METRICS_PORT"
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class Service(NamedTuple):
    """One kind of child: its name, the module to run, and variables beyond the shared ones."""

    name: str
    module: str
    env: Mapping[str, str] = {}


def die_with_parent(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a ``preexec_fn`` that ties the child's life to the calling thread's (Linux)."""
    parent = os.getpid()

    def tie() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal_number)
            if os.getppid() != parent:
                os._exit(1)

    return tie


def free_ports(count: int) -> list[int]:
    """Return free ports of loopback, all different.

    They lie below the range that the system takes for outgoing connections: from inside it, a
    client of anything could grab a port before the service that it is meant for, or while that
    service is being started again.
    """
    with contextlib.ExitStack() as opened:
        ports: list[int] = []
        while len(ports) < count:
            drawn = int.from_bytes(os.urandom(4), "big") % (_PORTS.stop - _PORTS.start)
            port = _PORTS.start + drawn
            listener = opened.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind((LOOPBACK, port))
                ports.append(port)
        return ports


def http_get(
    port: int, path: str, *, host: str = LOOPBACK, within: float = 1.5
) -> tuple[int, bytes]:
    """Fetch a small answer without a client library; status 0 if there was none."""
    request = f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nAccept: application/json\r\n\r\n"
    try:
        with socket.create_connection((host, port), timeout=within) as connection:
            connection.sendall(request.encode())
            received = b""
            while data := connection.recv(65536):
                received += data
    except OSError:
        return 0, b""
    head, _, body = received.partition(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    return (int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else 0), body


class Child:
    """One service's process, over all its restarts."""

    def __init__(self, service: Service, env: Mapping[str, str], metrics_port: int) -> None:
        """Describe it; nothing starts yet."""
        self.service = service
        self.metrics_port = metrics_port
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.restarts = 0
        self.failures = 0
        self.start_at = 0.0
        self._env = env
        self._delay = FIRST_RESTART_SECONDS
        self._started_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        return None if self.process is None else self.process.pid

    def start(self, log_file: Path | None) -> None:
        """Start the process, writing to ``log_file`` or, without one, to our own output."""
        command = [sys.executable, "-m", self.service.module]
        with contextlib.ExitStack() as opened:
            output = None if log_file is None else opened.enter_context(log_file.open("ab"))
            self.process = subprocess.Popen(  # noqa: S603 - our interpreter, our modules
                command,
                env={**self._env, _METRICS: str(self.metrics_port), **self.service.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Its own session: Ctrl-C reaches the supervisor alone, which ends all in order.
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - the supervisor has one thread
            )
        self._started_at = time.monotonic()

    def died(self) -> int | None:
        """Return the exit code if the process has ended, and plan its restart."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        now = time.monotonic()
        if now - self._started_at > STEADY_SECONDS:
            self._delay = FIRST_RESTART_SECONDS
        elif code > 0:
            # Another process may have taken the port before this one, and answer the probes.
            (self.metrics_port,) = free_ports(1)
        self.failures = 0 if self.ready else self.failures + 1
        self.process, self.ready = None, False
        self.restarts += 1
        self.start_at = now + self._delay
        self._delay = min(self._delay * 2, LAST_RESTART_SECONDS)
        return code

    def probe(self) -> bool:
        """Ask the process whether it is ready, until it once was."""
        if not self.ready and self.process is not None:
            self.ready = http_get(self.metrics_port, "/readyz")[0] == 200
        return self.ready
