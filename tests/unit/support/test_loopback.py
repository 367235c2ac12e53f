import socket

import pytest

from tests.support.loopback import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "169.254.169.254", "0.0.0.0", "::", "api.example"])
def test_everything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_guard_refuses_other_hosts_in_every_test() -> None:
    with socket.socket() as client, pytest.raises(AssertionError, match=r"203\.0\.113\.1"):
        client.connect(("203.0.113.1", 80))
