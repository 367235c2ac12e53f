"""Where outgoing HTTP may go: only to public addresses, unless a setting names more.

A name is resolved once, every address it has is checked, and the connection goes to an address
that was checked: a name that answers differently the second time changes nothing. TLS and the
``Host`` header still see the name. Import this only where HTTP is spoken: httpx is heavy.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpcore
import httpx

from penstock.contracts.errors import RejectedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_ADDRESSES_TRIED: Final = 3

_PUBLIC_IPV6: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(network)
    for network in (
        # IANA's special-purpose addresses, written out: Python's own idea of them has changed.
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "168.63.129.16/32",  # Azure's host agent, in public space
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "3fff::/20",
    )
)
_SIXTOFOUR: Final = ipaddress.IPv6Network("2002::/16")


def is_public(address: Address) -> bool:
    """Return whether an address is an ordinary one of the public internet."""
    if any(address in network for network in _REFUSED if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _SIXTOFOUR:
        return is_public(ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF))
    # All else outside of 2000::/3 is local, reserved, multicast or a disguise of IPv4.
    return address in _PUBLIC_IPV6


class EgressGuard:
    """Decides which hosts may be reached."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        """Read the exceptions.

        Args:
            allow: Host names, patterns such as ``*.corp.example``, addresses and networks.
        """
        self._networks: list[Network] = []
        self._hosts: list[str] = []
        for item in allow:
            try:
                self._networks.append(ipaddress.ip_network(item, strict=False))
            except ValueError:
                self._hosts.append(item.lower().rstrip("."))

    def _host_allowed(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._hosts)

    def allows(self, address: Address) -> bool:
        """Return whether an address may be reached, under any name."""
        plain: Address = address
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            plain = address.ipv4_mapped
        if any(plain in network for network in self._networks if network.version == plain.version):
            return True
        return plain is address and is_public(address)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host, all of them checked.

        Raises:
            RejectedError: ``address_refused``: at least one of them is not allowed.
            OSError: The name is unknown.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # An IPv6 address may come with a zone, which only local addresses have.
        addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
        if not self._host_allowed(host):
            for address in addresses:
                if not self.allows(ipaddress.ip_address(address)):
                    raise RejectedError(
                        "address_refused",
                        f"{host!r} is not a public address; PENSTOCK_HTTP_ALLOW may allow it",
                    )
        return addresses


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections only to addresses that a guard has checked."""

    def __init__(self, guard: EgressGuard) -> None:
        self._guard = guard
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as inherited
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._guard.resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses[:MAX_ADDRESSES_TRIED]:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over a pool whose connections are guarded."""

    def __init__(self, guard: EgressGuard, context: ssl.SSLContext, connections: int) -> None:
        super().__init__(verify=context)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            http1=True,
            http2=False,
            network_backend=_GuardedBackend(guard),
        )


def guarded_client(
    allow: Sequence[str] = (), *, connections: int = 1000, context: ssl.SSLContext | None = None
) -> httpx.AsyncClient:
    """Return a client that reaches allowed addresses only and neither retries nor redirects.

    Args:
        allow: See ``EgressGuard``.
        connections: Most at the same time; more than a runner has steps in work.
        context: For TLS; the system's trust store if not given.
    """
    context = context if context is not None else httpx.create_ssl_context()
    transport = _GuardedTransport(EgressGuard(allow), context, connections)
    # Proxies of the environment would connect in our place, to any address.
    return httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After`` header (seconds or a date, RFC 9110); else ``None``."""
    if value is None:
        return None
    text = value.strip()
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
