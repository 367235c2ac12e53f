"""A guard that keeps tests on this machine."""

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

Connect = Callable[[socket.socket, Any], None]


def refuse_other_hosts(connect: Connect) -> Connect:
    """Wrap `socket.connect` so that only loopback and Unix sockets are reached."""

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and not is_loopback(address[0]):
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    return guarded


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine: `localhost` or a loopback address."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
