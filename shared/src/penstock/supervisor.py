"""The supervisor behind ``penstock dev``: a nats-server and the services as child processes.

Owns start, readiness, restarts and the orderly end of one stack, and describes it in
``{data_dir}/stack.json``. No child outlives it, however it dies. It lives as long as the stack,
so it imports the standard library only; ``python -m penstock.supervisor '{"port": 0}'`` runs it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from penstock.child import LAST_RESTART_SECONDS, LOOPBACK, Child, free_ports, http_get
from penstock.embedded import NatsServer
from penstock.stack import (
    STACK_FILE,
    ProcessState,
    StackError,
    StackOptions,
    StackState,
    is_loopback,
    parse_options,
    private_folder,
)

if TYPE_CHECKING:
    from penstock.contracts.errors import PenstockError

LOCK_FILE: Final = "stack.lock"
PROBE_EVERY_SECONDS: Final = 0.02
SLOW_SECONDS: Final = 20.0
STOP_SECONDS: Final = 10.0
GIVE_UP_AFTER: Final = 4
"""Deaths in a row of a child, after which a stack that was never ready ends."""
LOOK_EVERY_SECONDS: Final = 2.0
"""How often nats-server is asked whether it could write."""
ROOM_BYTES: Final = 16 * 2**20
"""Free space on a disk that was full, from which on nats-server is started again."""

_DISK_FULL: Final = "disk full"
_UNWRITTEN: Final = "unwritten"


class Supervisor:
    """Runs one stack in the foreground until a signal ends it."""

    def __init__(self, options: StackOptions, output: TextIO) -> None:
        """Prepare; ``run`` starts everything.

        Raises:
            StackError: A public address without authentication.
        """
        if not options.auth and not is_loopback(options.host):
            raise StackError(
                f"refusing to listen on {options.host} without authentication: "
                "add --auth and create a key, or keep to 127.0.0.1"
            )
        self._options = options
        self._output = output
        self._data_dir = Path(options.data_dir).absolute()
        self._children: list[Child] = []
        services = options.services
        # Drawn together: ports that are not listened at yet would be drawn again.
        self._monitor_port, nats_port, port, *self._metrics_ports = free_ports(3 + len(services))
        self._nats = NatsServer(
            self._data_dir / "nats",
            port=options.nats_port or nats_port,
            durable=options.durable,
            monitor_port=self._monitor_port,
            die_with_parent=True,
        )
        self._nats_restarts = 0
        self._nats_at = 0.0
        self._look_at = 0.0
        self._troubles: set[str] = set()
        self._port = options.port or port
        self._signals = 0
        self._started_at = time.monotonic()
        self._ready_seconds: float | None = None

    def run(self) -> int:
        """Start all, keep all alive, end all; return the exit code.

        Raises:
            StackError: The stack cannot start; whatever had started is ended.
        """
        private_folder(self._data_dir)
        (self._data_dir / "logs").mkdir(exist_ok=True)
        with _locked(self._data_dir), _signals(self._on_signal) as wakeup:
            try:
                self._start()
                self._supervise(wakeup)
            finally:
                self._end(wakeup)
        return 0

    def _on_signal(self, number: int) -> None:
        if number != signal.SIGCHLD:
            self._signals += 1

    def _start(self) -> None:
        _check_port(self._options.host, self._port, "--port")
        _check_port(LOOPBACK, self._nats.port, "--nats-port")
        self._start_nats()
        environment = self._environment()
        self._children = [
            Child(service, environment, port)
            for service, port in zip(self._options.services, self._metrics_ports, strict=True)
        ]
        for child in self._children:
            child.start(self._log_file(child))
        self._write()

    def _start_nats(self) -> None:
        try:
            self._nats.start()
        except _penstock_error() as error:
            raise StackError(error.message) from error

    def _environment(self) -> dict[str, str]:
        options = self._options
        return {
            **os.environ,
            "PENSTOCK_NATS_URL": self._nats.url,
            "PENSTOCK_NATS_MONITOR_URL": str(self._nats.monitor_url),
            "PENSTOCK_DATA_DIR": str(self._data_dir),
            "PENSTOCK_METRICS_HOST": LOOPBACK,
            "PENSTOCK_HOST": options.host,
            "PENSTOCK_PORT": str(self._port),
            "PENSTOCK_AUTH_REQUIRED": "true" if options.auth else "false",
            "PENSTOCK_LOG_FORMAT": "console" if options.verbose else "json",
        }

    def _log_file(self, child: Child) -> Path | None:
        if self._options.verbose:
            return None
        return self._data_dir / "logs" / f"{child.service.name}.log"

    def _supervise(self, wakeup: int) -> None:
        slow_at = self._started_at + SLOW_SECONDS
        waited_for: list[str] = []
        while not self._signals:
            self._revive()
            if self._ready_seconds is None:
                waiting = [child.service.name for child in self._children if not child.probe()]
                if waiting != waited_for:
                    waited_for = waiting
                    self._write()
                if not waiting and self._gateway_ready():
                    self._became_ready()
                elif time.monotonic() > slow_at:
                    slow_at += SLOW_SECONDS
                    self._say(f"still waiting for {', '.join(waiting) or 'the gateway'}")
            _wait(wakeup, self._pause())

    def _pause(self) -> float:
        if self._ready_seconds is None or not all(child.ready for child in self._children):
            return PROBE_EVERY_SECONDS
        return 1.0

    def _gateway_ready(self) -> bool:
        if not any(child.service.name == "gateway" for child in self._children):
            return True
        host = reachable(self._options.host)
        if http_get(self._port, "/health", host=host)[0] != 200:
            return False
        if self._options.auth:
            return True
        status, body = http_get(self._port, "/v1/runners", host=host)
        return status == 200 and all(kind in body for kind in (b'"agent"', b'"tool"'))

    def _became_ready(self) -> None:
        self._ready_seconds = time.monotonic() - self._started_at
        self._write()
        self._banner()

    def _revive(self) -> None:
        """Restart dead processes, each after its back-off."""
        changed = self._revive_nats()
        for child in self._children:
            if (code := child.died()) is not None:
                changed = True
                self._say(f"{child.service.name} ended with {_how(code)}; starting it again")
                if child.failures >= GIVE_UP_AFTER and self._ready_seconds is None:
                    raise StackError(
                        f"{child.service.name} does not start: {self._last_words(child)}"
                    )
            if child.process is None and time.monotonic() >= child.start_at:
                child.start(self._log_file(child))
                changed = True
            elif self._ready_seconds is not None and not child.ready:
                changed = child.probe() or changed
        if changed or _UNWRITTEN in self._troubles:
            self._write()

    def _revive_nats(self) -> bool:
        """Start nats-server again where it died, or where its disk was full; return whether."""
        now = time.monotonic()
        if now < self._nats_at:
            return False
        if not self._nats.running:
            self._say("nats-server died; starting it again")
        elif self._nats_has_room_again():
            self._say("the disk has room again; starting nats-server again")
        else:
            return False
        self._nats_restarts += 1
        try:
            self._nats.stop()
            self._start_nats()
        except (StackError, OSError) as error:
            if self._ready_seconds is None:
                raise
            self._say(f"nats-server does not start: {error}")
            self._nats_at = now + LAST_RESTART_SECONDS
        return True

    def _nats_has_room_again(self) -> bool:
        """Return whether nats-server failed to write and could write now."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_EVERY_SECONDS
        status, body = http_get(self._monitor_port, "/healthz")
        if status != 503 or b"write error" not in body:
            self._troubles.discard(_DISK_FULL)
            return False
        free = shutil.disk_usage(self._data_dir).free
        if free >= ROOM_BYTES:
            return True
        self._trouble(
            _DISK_FULL,
            f"the disk of {self._data_dir} is full: no run is accepted until "
            f"{ROOM_BYTES // 2**20} MiB are free",
        )
        return False

    def _trouble(self, kind: str, text: str) -> None:
        """Report a trouble once, until it is over."""
        if kind not in self._troubles:
            self._troubles.add(kind)
            self._say(text)

    def _last_words(self, child: Child) -> str:
        log_file = self._log_file(child)
        if log_file is None or not log_file.exists():
            return "see above"
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return f"{lines[-1] if lines else 'it wrote nothing'} ({log_file})"

    def _end(self, wakeup: int) -> None:
        living = [child.process for child in self._children if child.process is not None]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        # A second Ctrl-C is impatience: no more grace.
        while living and time.monotonic() < deadline and self._signals < 2:
            living = [process for process in living if process.poll() is None]
            _wait(wakeup, PROBE_EVERY_SECONDS)
        for process in living:
            process.kill()
            process.wait()
        self._nats.stop()
        (self._data_dir / STACK_FILE).unlink(missing_ok=True)

    def _write(self) -> None:
        """Write the addresses of all processes; one rename, so that readers see a whole file."""
        processes = {
            "nats-server": ProcessState(pid=self._nats.pid, restarts=self._nats_restarts),
            **{
                child.service.name: ProcessState(
                    pid=child.pid,
                    restarts=child.restarts,
                    ready=child.ready,
                    metrics_port=child.metrics_port,
                )
                for child in self._children
            },
        }
        state = StackState(
            supervisor_pid=os.getpid(),
            ready_seconds=self._ready_seconds,
            url=_url(self._options.host, self._port),
            nats_url=self._nats.url,
            monitor_url=self._nats.monitor_url,
            data_dir=str(self._data_dir),
            durable=self._options.durable,
            auth=self._options.auth,
            processes=processes,
        )
        file = self._data_dir / STACK_FILE
        draft = file.with_suffix(".tmp")
        try:
            draft.write_text(json.dumps(state.to_json(), indent=2) + "\n", encoding="utf-8")
            draft.replace(file)
        except OSError as error:
            if self._ready_seconds is None:
                raise
            self._trouble(_UNWRITTEN, f"{file} is out of date: {error.strerror}")
        else:
            self._troubles.discard(_UNWRITTEN)

    def _paint(self, code: str, text: str) -> str:
        if not self._output.isatty() or os.environ.get("NO_COLOR"):
            return text
        return f"\x1b[{code}m{text}\x1b[0m"

    def _say(self, text: str) -> None:
        self._output.write(f"{self._paint('33', 'stack')} {text}\n")
        self._output.flush()

    def _command(self) -> str:
        """The command line that finds this stack from the working directory."""
        if self._options.data_dir == StackOptions().data_dir:
            return "penstock"
        return f"penstock --data-dir {self._options.data_dir}"

    def _banner(self) -> None:
        url = _url(self._options.host, self._port)
        flush = "each message before its ack" if self._options.durable else "every two minutes"
        bold, dim = "1;36", "2"
        lines = [
            "",
            f"  {self._paint(bold, 'Penstock')} is ready after {self._ready_seconds:.1f} s",
            "",
            f"  {self._paint(dim, 'API ')}  {url}   {self._paint(dim, f'docs: {url}/docs')}",
            f"  {self._paint(dim, 'Bus ')}  {self._nats.url}   "
            + self._paint(dim, f"to disk: {flush}"),
            f"  {self._paint(dim, 'Data')}  {self._data_dir}   {self._paint(dim, 'logs in logs/')}",
            "",
            f"  {self._paint(dim, f'Next: {self._command()} apply -f examples/')}",
            f"  {self._paint(dim, 'Ctrl-C ends everything')}",
            "",
        ]
        self._output.write("\n".join(lines) + "\n")
        self._output.flush()


def _penstock_error() -> type[PenstockError]:
    # Asked for only once something was raised; with it comes pydantic, 15 MB.
    from penstock.contracts.errors import PenstockError  # noqa: PLC0415

    return PenstockError


def reachable(host: str) -> str:
    """Return the address under which this machine reaches what listens on ``host``."""
    return {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104


def _url(host: str, port: int) -> str:
    host = reachable(host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"


def _check_port(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise StackError(
                f"cannot listen on {host}:{port} ({error.strerror}): "
                f"choose another by {option}, 0 takes a free one"
            ) from error


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    with (data_dir / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(
                f"another stack uses {data_dir}: end it, or choose another --data-dir"
            ) from error
        yield


@contextlib.contextmanager
def _signals(handle: Callable[[int], None]) -> Iterator[int]:
    """Pass signals to ``handle`` and yield a descriptor that each of them makes readable."""
    numbers = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, lambda n, _: handle(n)) for number in numbers}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _wait(descriptor: int, seconds: float) -> None:
    select.select([descriptor], [], [], seconds)
    with contextlib.suppress(BlockingIOError):
        os.read(descriptor, 512)


def main(arguments: list[str]) -> int:
    """Run a stack in the foreground; the one argument is its options as JSON."""
    try:
        return Supervisor(parse_options(arguments[0] if arguments else "{}"), sys.stdout).run()
    except (StackError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
