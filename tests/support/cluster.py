"""Three nats-servers as one cluster, each of which can be killed, stopped and cut off.

With root and `ip` each server has a network namespace of its own behind a bridge, and is cut off
by taking its link down. Elsewhere all three listen on loopback and a server is cut off by
stopping its process; `Cluster.partition` says which of both it is, and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.child import LOOPBACK, die_with_parent, free_ports, http_get
from penstock.contracts.subjects import RUNS
from penstock.embedded import find_nats_server
from tests.support.loopback import permitted

SIZE = 3
READY_SECONDS = 30.0
CLIENT_PORT, ROUTE_PORT, MONITOR_PORT = 4222, 6222, 8222
_SUBNET = "10.213"

Means = Literal["network namespaces", "SIGSTOP"]


class NamespaceError(Exception):
    """This machine does not let us have network namespaces; the text says why."""


@dataclass(frozen=True)
class Address:
    """Where one server listens."""

    host: str
    client_port: int
    route_port: int
    monitor_port: int
    namespace: str = ""
    link: str = ""
    """Name of the server's cable, at our end."""


class Node:
    """One server of the cluster."""

    def __init__(self, name: str, directory: Path, address: Address, routes: list[str]) -> None:
        """Describe it; nothing starts yet."""
        self.name = name
        self.address = address
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self._config = directory / "nats-server.conf"
        self._config.write_text(_config(name, directory, address, routes), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"nats://{self.address.host}:{self.address.client_port}"

    def start(self) -> None:
        """Start the process; it is ready a little later."""
        enter = ["ip", "netns", "exec", self.address.namespace] if self.address.namespace else []
        with (self._directory / "nats-server.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*enter, str(find_nats_server()), "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - started from the main thread
            )

    def kill(self) -> None:
        """End it at once; harmless if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def look(self, path: str) -> dict[str, Any]:
        """Return what the server's monitoring says; empty if it does not answer."""
        status, body = http_get(self.address.monitor_port, path, host=self.address.host)
        found: dict[str, Any] = json.loads(body) if status == 200 else {}
        return found

    def healthy(self) -> bool:
        """Return whether it takes part: all its streams and consumers are up to date."""
        return self.look("/healthz").get("status") == "ok"


class Cluster:
    """Three servers; also a context manager that starts and ends them."""

    def __init__(self, directory: Path) -> None:
        """Find out how servers can be cut off here, and describe them."""
        self._undo = contextlib.ExitStack()
        try:
            addresses = self._undo.enter_context(_namespaces())
            self.means: Means = "network namespaces"
            self.partition = "network namespaces"
        except NamespaceError as refused:
            addresses = _on_loopback()
            self.means = "SIGSTOP"
            self.partition = f"SIGSTOP, for there are no network namespaces here: {refused}"
        routes = [f"nats://{a.host}:{a.route_port}" for a in addresses]
        self.nodes = [
            Node(f"n{number}", directory / f"n{number}", address, routes)
            for number, address in enumerate(addresses, 1)
        ]

    def __enter__(self) -> Cluster:
        try:
            self._undo.enter_context(permitted({node.address.host for node in self.nodes}))
            for node in self.nodes:
                node.start()
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        self._undo.close()

    @property
    def url(self) -> str:
        """The URLs of all servers, as the services take them."""
        return ",".join(node.url for node in self.nodes)

    @property
    def healthy(self) -> bool:
        """Whether every server takes part and is up to date."""
        return all(node.healthy() for node in self.nodes)

    def meta_leader(self) -> Node | None:
        """Return who decides where streams are; ``None`` during an election."""
        names = {n.look("/jsz").get("meta_cluster", {}).get("leader") for n in self.nodes}
        return self._of_name(names - {None, ""})

    def stream_leader(self, stream: str = RUNS) -> Node | None:
        """Return who leads a stream; ``None`` during an election."""
        leaders: set[str] = set()
        for node in self.nodes:
            for account in node.look("/jsz?streams=true").get("account_details", ()):
                leaders |= {
                    found["cluster"].get("leader", "")
                    for found in account.get("stream_detail", ())
                    if found["name"] == stream and "cluster" in found
                }
        return self._of_name(leaders - {""})

    def isolate(self, node: Node) -> None:
        """Cut a server off from the other servers and from all clients."""
        if self.means == "SIGSTOP":
            node.signal(signal.SIGSTOP)
        else:
            _ip("link", "set", node.address.link, "down")

    def heal(self, node: Node) -> None:
        """Connect it again."""
        if self.means == "SIGSTOP":
            node.signal(signal.SIGCONT)
        else:
            _ip("link", "set", node.address.link, "up")

    def _of_name(self, names: set[str]) -> Node | None:
        if len(names) != 1:
            return None  # none, or the old one does not know yet
        name = names.pop()
        return next(node for node in self.nodes if node.name == name)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self.meta_leader() is None or not self.healthy:
            if time.monotonic() > deadline:
                raise AssertionError(f"no cluster within {READY_SECONDS:g} s: {self.url}")
            time.sleep(0.05)


def _config(name: str, directory: Path, address: Address, routes: list[str]) -> str:
    return "\n".join(
        (
            f"server_name: {name}",
            f"listen: {json.dumps(f'{address.host}:{address.client_port}')}",
            f"http: {json.dumps(f'{address.host}:{address.monitor_port}')}",
            f"jetstream {{ store_dir: {json.dumps(str(directory / 'store'))} }}",
            "cluster {",
            "  name: penstock",
            f"  listen: {json.dumps(f'{address.host}:{address.route_port}')}",
            f"  routes: {json.dumps(routes)}",
            "}",
            "",
        )
    )


def _on_loopback() -> list[Address]:
    ports = free_ports(3 * SIZE)
    of_each = zip(ports[0::3], ports[1::3], ports[2::3], strict=True)
    return [Address(LOOPBACK, client, route, monitor) for client, route, monitor in of_each]


@contextlib.contextmanager
def _namespaces() -> Iterator[list[Address]]:
    """Lay a bridge and a namespace for each server; take all away at the end.

    Raises:
        NamespaceError: This machine does not allow it.
    """
    if os.name != "posix" or os.geteuid() != 0:
        raise NamespaceError("not run by root")
    if shutil.which("ip") is None:
        raise NamespaceError("there is no `ip`")
    # Of this process alone: others may run a cluster on this machine as well.
    node_record = os.getpid() % 65_000
    net = f"{_SUBNET}.{node_record % 250}"
    bridge = f"pst{node_record}b"
    with contextlib.ExitStack() as undo:
        _ip("link", "add", bridge, "type", "bridge")
        undo.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{net}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        addresses: list[Address] = []
        for number in range(1, SIZE + 1):
            namespace, link = f"pst{node_record}n{number}", f"pst{node_record}v{number}"
            _ip("netns", "add", namespace)
            undo.callback(_ip, "netns", "del", namespace)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            undo.callback(_ip, "link", "del", link)
            _ip("link", "set", link, "master", bridge, "up")
            inside = ("-n", namespace)
            _ip(*inside, "addr", "add", f"{net}.{number}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
            addresses.append(
                Address(f"{net}.{number}", CLIENT_PORT, ROUTE_PORT, MONITOR_PORT, namespace, link)
            )
        yield addresses


def _ip(*arguments: str) -> None:
    done = subprocess.run(
        ["ip", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NamespaceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
