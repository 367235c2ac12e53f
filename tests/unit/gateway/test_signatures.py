from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest

from penstock.contracts.errors import RejectedError
from penstock_gateway.core.signatures import (
    Delivery,
    check,
    github_signature,
    secret_bytes,
    standard_signature,
)

NOW = 1_614_265_330.0
# The example of the Standard Webhooks specification's own libraries.
SECRET = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
BODY = b'{"test": 2432232314}'
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def checked(
    headers: Mapping[str, str], body: bytes = BODY, now: float = NOW, *secrets: bytes
) -> Delivery:
    return check(headers, body, secrets=secrets or (SECRET,), now=now, tolerance_seconds=300)


def code_of(headers: Mapping[str, str], body: bytes = BODY, now: float = NOW) -> str:
    with pytest.raises(RejectedError) as caught:
        checked(headers, body, now)
    return caught.value.code


def test_standard_signature_of_the_specification_is_accepted() -> None:
    assert checked(HEADERS) == Delivery("msg_p5jXN8AQM9LWM0D4loKWxJek", signed=True)
    signature = standard_signature(SECRET, HEADERS["webhook-id"], "1614265330", BODY)
    assert signature == HEADERS["webhook-signature"]


def test_one_fitting_signature_among_several_is_enough() -> None:
    several = f"v1,{base64.b64encode(b'x' * 32).decode()} {HEADERS['webhook-signature']} v2,abc"
    assert checked({**HEADERS, "webhook-signature": several}).signed


def test_any_of_the_secrets_may_have_signed() -> None:
    assert checked(HEADERS, BODY, NOW, b"another", SECRET).signed


@pytest.mark.parametrize("offset", [-300, 300])
def test_timestamp_at_the_edge_of_the_tolerance_is_accepted(offset: int) -> None:
    assert checked(HEADERS, BODY, NOW + offset).signed


@pytest.mark.parametrize("offset", [-301, 301])
def test_timestamp_beyond_the_tolerance_is_refused(offset: int) -> None:
    assert code_of(HEADERS, BODY, NOW + offset) == "signature_expired"


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": "msg_other"},
        {"webhook-timestamp": "1614265331"},
        {"webhook-timestamp": "not a number"},
        {"webhook-timestamp": "²"},
        {"webhook-timestamp": ""},
        {"webhook-id": ""},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
        {"webhook-signature": "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
        {"webhook-signature": "v1,é"},
    ],
)
def test_whatever_is_signed_cannot_be_changed(changed: dict[str, str]) -> None:
    assert code_of({**HEADERS, **changed}) == "signature_invalid"


def test_body_is_compared_byte_by_byte() -> None:
    assert code_of(HEADERS, BODY + b" ") == "signature_invalid"


def test_signature_is_needed_where_there_are_secrets() -> None:
    assert code_of({"webhook-id": "x"}) == "signature_missing"


def test_github_signature_is_accepted_with_its_delivery_id() -> None:
    headers = {
        "x-hub-signature-256": github_signature(SECRET, BODY),
        "x-github-delivery": "72d3162e",
    }
    assert checked(headers) == Delivery("72d3162e", signed=True)
    assert code_of({**headers, "x-hub-signature-256": "sha256=00"}) == "signature_invalid"
    assert code_of(headers, BODY + b"x") == "signature_invalid"


def test_github_signature_of_the_documentation_fits() -> None:
    # docs.github.com, "Validating webhook deliveries".
    signature = github_signature(b"It's a Secret to Everybody", b"Hello, World!")
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signature == f"sha256={digest}"


def test_github_delivery_without_an_id_is_named_by_what_is_signed() -> None:
    headers = {"x-hub-signature-256": github_signature(SECRET, BODY)}
    again = checked(headers)
    assert again == checked(headers)
    assert again.delivery_id is not None
    assert len(again.delivery_id) == 64


def test_without_secrets_only_the_senders_id_counts() -> None:
    def unsigned(headers: Mapping[str, str]) -> Delivery:
        return check(headers, BODY, secrets=(), now=NOW, tolerance_seconds=300)

    assert unsigned({"webhook-id": "a"}) == Delivery("a", signed=False)
    assert unsigned({}) == Delivery(None, signed=False)


def test_secret_that_is_not_base64_is_refused() -> None:
    with pytest.raises(RejectedError) as caught:
        secret_bytes("whsec_not base64!")
    assert caught.value.code == "invalid_secret"
    assert secret_bytes("plain") == b"plain"
