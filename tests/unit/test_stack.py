import json
from pathlib import Path

import pytest

from penstock.child import Service
from penstock.stack import (
    SERVICES,
    StackError,
    StackOptions,
    is_loopback,
    parse_options,
    private_folder,
)
from penstock.supervisor import reachable


def test_options_survive_the_way_to_the_supervisor() -> None:
    options = StackOptions(port=0, durable=True, services=(Service("a", "b", {"C": "d"}),))
    assert parse_options(json.dumps(options._asdict())) == options


def test_options_left_out_have_their_defaults() -> None:
    assert parse_options("{}") == StackOptions(services=SERVICES)


@pytest.mark.parametrize("text", ["", "[1]", '{"colour": "red"}', '{"services": [[]]}'])
def test_options_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(StackError, match="not the options of a stack"):
        parse_options(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.7", False),
        ("127.0.0.1.example.test", False),
        ("", False),
    ],
)
def test_is_loopback_of_an_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1"), ("10.1.2.3", "10.1.2.3")],
)
def test_reachable_address_of_a_listener(host: str, address: str) -> None:
    assert reachable(host) == address


def test_data_folder_is_private_also_where_it_exists(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    folder.mkdir(parents=True, mode=0o755)
    private_folder(folder)
    private_folder(tmp_path / "other")
    assert {path.stat().st_mode & 0o777 for path in (folder, tmp_path / "other")} == {0o700}
