"""A guard that keeps tests on this machine."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_PERMITTED: set[str] = set()

Connect = Callable[[socket.socket, Any], None]


def refuse_other_hosts(connect: Connect) -> Connect:
    """Wrap `socket.connect` so that only loopback and Unix sockets are reached."""

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and not is_permitted(address[0]):
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    return guarded


@contextmanager
def permitted(hosts: set[str]) -> Iterator[None]:
    """Permit further hosts inside the `with` block: network namespaces of this machine."""
    added = hosts - _PERMITTED
    _PERMITTED.update(added)
    try:
        yield
    finally:
        _PERMITTED.difference_update(added)


def is_permitted(host: str) -> bool:
    """Return whether `host` is this machine, or a namespace of it that a test has made."""
    return host in _PERMITTED or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine: `localhost` or a loopback address."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
