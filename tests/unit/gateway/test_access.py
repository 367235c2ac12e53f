from __future__ import annotations

import pytest

from penstock.contracts.errors import RejectedError
from penstock.contracts.runners import KeyRecord
from penstock_gateway.core.access import bearer_key, caller_of, key_digest
from penstock_gateway.middleware.entry import Authenticator
from penstock_gateway.raw import Answer
from penstock_gateway.settings import GatewaySettings, is_loopback

KEY = b"pk_test"


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("admin", {"admin", "operator", "viewer", "runner"}),
        ("operator", {"operator", "viewer"}),
        ("viewer", {"viewer"}),
        ("runner", {"runner"}),
    ],
)
def test_role_includes_those_below_it(role: str, may: set[str]) -> None:
    record = KeyRecord.model_validate({"key_id": "k", "tenant": "t", "roles": [role]})
    assert caller_of(record).may == may


def test_roles_add_up() -> None:
    record = KeyRecord(key_id="k", tenant="t", roles=("viewer", "runner"))
    assert caller_of(record).may == {"viewer", "runner"}


def test_tenant_comes_from_the_key_alone() -> None:
    record = KeyRecord(key_id="k", tenant="acme", roles=("operator",))
    door = Authenticator(GatewaySettings(), {key_digest(KEY): caller_of(record)})
    headers = {b"authorization": b"bEARER " + KEY, b"x-tenant": b"other"}
    assert door.caller(headers).tenant == "acme"


def test_development_gateway_still_checks_a_key_that_is_given() -> None:
    door = Authenticator(GatewaySettings(auth_required=False), {})
    assert door.caller({b"host": b"localhost:8080"}).tenant == "default"
    with pytest.raises(RejectedError):
        door.caller({b"authorization": b"Bearer nonsense"})


@pytest.mark.parametrize(
    ("host", "origin", "served"),
    [
        (b"127.0.0.1:8080", None, True),
        (b"localhost", None, True),
        (b"[::1]:8080", None, True),
        (b"127.0.0.1:8080", b"http://127.0.0.1:8080", True),
        (b"127.0.0.1:8080", b"http://127.0.0.1:9090", False),
        (b"127.0.0.1:8080", b"https://evil.example", False),
        (b"127.0.0.1:8080", b"null", False),
        (b"rebound.example:8080", None, False),
        (b"10.0.0.1:8080", None, False),
    ],
)
def test_development_gateway_serves_this_machines_pages_only(
    host: bytes, origin: bytes | None, served: bool
) -> None:
    door = Authenticator(GatewaySettings(auth_required=False), {})
    headers = {b"host": host, **({b"origin": origin} if origin else {})}
    if served:
        assert door.caller(headers).key_id == "development"
    else:
        with pytest.raises(RejectedError) as caught:
            door.caller(headers)
        assert caught.value.code == "origin_refused"


@pytest.mark.parametrize("value", [b"", b"Bearer", b"Bearer ", b"Basic eDp5", b"pk_test"])
def test_header_of_another_form_is_refused(value: bytes) -> None:
    with pytest.raises(RejectedError):
        bearer_key(value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_told_from_public(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_answer_announces_its_length() -> None:
    answer = Answer(b"12345", 201, [(b"location", b"/x")])
    assert (b"content-length", b"5") in answer.raw_headers
    assert answer.headers["location"] == "/x"
