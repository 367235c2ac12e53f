"""Which addresses may be reached."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

import pytest

from penstock.contracts.errors import RejectedError
from penstock.egress import EgressGuard, is_public, retry_after_seconds

REFUSED = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "2606:4700:4700::1111",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert address == "::ffff:8.8.8.8" or not EgressGuard().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ALLOWED)
def test_public_address_is_allowed(address: str) -> None:
    assert EgressGuard().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "::1"],
)
async def test_loopback_by_any_name_is_refused(host: str) -> None:
    with pytest.raises((RejectedError, OSError)) as caught:
        await EgressGuard().resolve(host, 80)
    assert not isinstance(caught.value, RejectedError) or caught.value.code == "address_refused"


async def test_setting_allows_networks_hosts_and_patterns() -> None:
    assert await EgressGuard(["127.0.0.0/8"]).resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert await EgressGuard(["127.0.0.1"]).resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert await EgressGuard(["LocalHost", "::1"]).resolve("localhost", 80)
    assert await EgressGuard(["local*"]).resolve("localhost", 80)
    with pytest.raises(RejectedError):
        await EgressGuard(["10.0.0.0/8", "other"]).resolve("127.0.0.1", 80)


def test_allowed_network_covers_the_mapped_form() -> None:
    guard = EgressGuard(["127.0.0.0/8"])
    assert guard.allows(ipaddress.ip_address("::ffff:127.0.0.1"))
    assert not guard.allows(ipaddress.ip_address("::ffff:10.0.0.1"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        (None, None),
    ],
)
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    now = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    assert retry_after_seconds(value, now) == seconds
