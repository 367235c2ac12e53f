from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest

from penstock.contracts.errors import InvariantError, RejectedError
from penstock.contracts.json import Json
from penstock.contracts.runners import HmacForm, WebhookRecord
from penstock_gateway.core.signatures import (
    SCHEMES,
    Delivery,
    Scheme,
    challenge_of,
    check,
    github_signature,
    identified,
    is_credential,
    scheme_of,
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
    headers: Mapping[str, str],
    body: bytes = BODY,
    now: float = NOW,
    *secrets: bytes,
    scheme: str = "standard",
) -> Delivery:
    return check(
        headers,
        body,
        scheme=SCHEMES[scheme],
        secrets=secrets or (SECRET,),
        now=now,
        tolerance_seconds=300,
    )


def code_of(
    headers: Mapping[str, str], body: bytes = BODY, now: float = NOW, scheme: str = "standard"
) -> str:
    with pytest.raises(RejectedError) as caught:
        checked(headers, body, now, scheme=scheme)
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
    assert checked(headers, scheme="github") == Delivery("72d3162e", signed=True)
    changed = {**headers, "x-hub-signature-256": "sha256=00"}
    assert code_of(changed, scheme="github") == "signature_invalid"
    assert code_of(headers, BODY + b"x", scheme="github") == "signature_invalid"


def test_github_signature_of_the_documentation_fits() -> None:
    # docs.github.com, "Validating webhook deliveries".
    signature = github_signature(b"It's a Secret to Everybody", b"Hello, World!")
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signature == f"sha256={digest}"


def test_github_delivery_without_an_id_is_named_by_what_is_signed() -> None:
    headers = {"x-hub-signature-256": github_signature(SECRET, BODY)}
    again = checked(headers, scheme="github")
    assert again == checked(headers, scheme="github")
    assert again.delivery_id is not None
    assert len(again.delivery_id) == 64


def test_without_secrets_only_the_senders_id_counts() -> None:
    def unsigned(headers: Mapping[str, str]) -> Delivery:
        scheme = SCHEMES["standard"]
        return check(headers, BODY, scheme=scheme, secrets=(), now=NOW, tolerance_seconds=300)

    assert unsigned({"webhook-id": "a"}) == Delivery("a", signed=False)
    assert unsigned({}) == Delivery(None, signed=False)


def test_secret_that_is_not_base64_is_the_key_as_it_is() -> None:
    assert secret_bytes("whsec_not base64!!!") == b"whsec_not base64!!!"
    assert secret_bytes("plain old secret") == b"plain old secret"
    encoded = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert secret_bytes(encoded, SCHEMES["stripe"]) == encoded.encode()


@pytest.mark.parametrize("secret", ["", "whsec_", "fifteen bytes..", "whsec_c2hvcnQ="])
def test_secret_that_is_too_short_is_refused(secret: str) -> None:
    with pytest.raises(InvariantError) as caught:
        secret_bytes(secret)
    assert caught.value.code == "secret_too_short"


def test_id_with_a_dot_is_refused_for_it_could_be_read_in_two_ways() -> None:
    # Signed as id `a`, and sent as id `a.1614265330` with the same bytes.
    body = b"1614265330." + BODY
    signature = standard_signature(SECRET, "a", "1614265330", body)
    headers = {**HEADERS, "webhook-id": "a", "webhook-signature": signature}
    assert checked(headers, body).signed
    assert code_of({**headers, "webhook-id": "a.1614265330"}, BODY) == "signature_invalid"


def test_delivery_of_one_scheme_is_none_of_another() -> None:
    # The sender signs a body that reads as id, time and body of Standard Webhooks.
    body = b"msg_1.1614265330." + BODY
    digest = bytes.fromhex(github_signature(SECRET, body).removeprefix("sha256="))
    forged = {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1614265330",
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
    assert checked(forged).signed  # one key for two schemes would be unsafe
    assert code_of(forged, scheme="github") == "signature_missing"


SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
    b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
    b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
    b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
GENERIC = HmacForm(
    header="X-Signature",
    algorithm="sha512",
    encoding="base64",
    signed="{id}:{timestamp}:{body}",
    timestamp_header="X-Time",
    id_header="X-Id",
)
# Those of Svix, GitHub, Slack and Bitbucket are examples of their documentation; the others were
# computed with `openssl dgst -hmac`.
VECTORS: list[tuple[str, str, dict[str, str], bytes, float, Json, str | None]] = [
    (
        "svix",
        "whsec_plJ3nmyCDGBKInavdOK15jsl",
        {
            "svix-id": "msg_loFOjxBNrRLzqYUf",
            "svix-timestamp": "1731705121",
            "svix-signature": "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
        },
        b'{"event_type":"ping","data":{"success":true}}',
        1731705121.0,
        None,
        "msg_loFOjxBNrRLzqYUf",
    ),
    (
        "github",
        "It's a Secret to Everybody",
        {
            "x-hub-signature-256": "sha256="
            "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
            "x-github-delivery": "72d3162e",
        },
        b"Hello, World!",
        NOW,
        None,
        "72d3162e",
    ),
    (
        "stripe",
        "whsec_5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH",
        {
            "stripe-signature": "t=1492774577,v0=00,v1=00,"
            "v1=8e3449aa5f9f13c100bbe6b072fceb0cdc6f0339d331707b91830fba46050ba0"
        },
        b'{"id": "evt_1", "object": "event"}',
        1492774577.0,
        {"id": "evt_1", "object": "event"},
        "evt_1",
    ),
    (
        "slack",
        "8f742231b10e8888abcd99yyyzzz85a5",
        {
            "x-slack-request-timestamp": "1531420618",
            "x-slack-signature": "v0="
            "a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        },
        SLACK_BODY,
        1531420618.0,
        {"trigger_id": "398738663015"},
        "398738663015",
    ),
    (
        "shopify",
        "hush-hush-hush-hush",
        {
            "x-shopify-hmac-sha256": "a5Iw/k0oi+gX4XJFgHr83SAC396nlrX06Yl0iMjscAY=",
            "x-shopify-webhook-id": "b54557e4",
        },
        b'{"id": 820982911946154508}',
        NOW,
        None,
        "b54557e4",
    ),
    (
        "gitlab",
        "a token of GitLab",
        {"x-gitlab-token": "a token of GitLab", "idempotency-key": "f5e5f430"},
        b"{}",
        NOW,
        None,
        "f5e5f430",
    ),
    (
        "linear",
        "lin_wh_0123456789abcdef",
        {
            "linear-signature": "b275154b2d2342530763477b3d028c1915656cb437226f597ad18a0514968aee",
            "linear-delivery": "234d1a4e",
        },
        b'{"action":"create","webhookTimestamp":1676056940508}',
        1676056940.0,
        {"action": "create", "webhookTimestamp": 1676056940508},
        "234d1a4e",
    ),
    (
        "sentry",
        "0123456789abcdef0123456789abcdef",
        {
            "sentry-hook-signature": "30d109dcb5a1ec12a1871a1052d45c4b"
            "2c89abbabc979a3724fe55a102c3a705",
            "request-id": "7d1f",
        },
        b'{"action":"created"}',
        NOW,
        None,
        "7d1f",
    ),
    (
        "bitbucket",
        "It's a Secret to Everybody",
        {
            "x-hub-signature": "sha256="
            "a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9",
            "x-request-uuid": "e9f1",
        },
        b"Hello World!",
        NOW,
        None,
        "e9f1",
    ),
    (
        "meta",
        "fedcba9876543210fedcba9876543210",
        {
            "x-hub-signature-256": "sha256="
            "acf462aa377271690671d7003c641b306bd0e316a06d4bb1566fce82abe5f835"
        },
        b'{"object":"page","entry":[]}',
        NOW,
        None,
        "977198d6",  # begins the digest of the body
    ),
    (
        "hmac",
        "0123456789abcdef",
        {
            "x-id": "abc",
            "x-time": "1676056940",
            "x-signature": "BtKgVP7dDm/fef+ra9QLe/bwsTS/CX7mz5CkiVAZ/jH1spvWMwjeSfTQBr0MLj5xu+0y"
            "hMKItcX/yBmDDFiDKQ==",
        },
        b'{"a": 1}',
        1676056940.0,
        None,
        "abc",
    ),
]


def scheme_named(name: str) -> Scheme:
    form = GENERIC if name == "hmac" else None
    record = {"name": "w", "target": "t", "scheme": name, "hmac": form}
    return scheme_of(WebhookRecord.model_validate(record))


@pytest.mark.parametrize(
    ("name", "secret", "headers", "body", "now", "payload", "delivery_id"),
    VECTORS,
    ids=[vector[0] for vector in VECTORS],
)
def test_delivery_of_each_scheme_is_recognised_and_nothing_of_it_can_be_changed(
    name: str,
    secret: str,
    headers: dict[str, str],
    body: bytes,
    now: float,
    payload: Json,
    delivery_id: str,
) -> None:
    scheme = scheme_named(name)
    key = secret_bytes(secret, scheme)

    def received(
        headers: Mapping[str, str], body: bytes = body, at: float = now, key: bytes = key
    ) -> Delivery:
        found = check(headers, body, scheme=scheme, secrets=[key], now=at, tolerance_seconds=300)
        return identified(found, payload, scheme=scheme, now=at, tolerance_seconds=300)

    delivery = received(headers)
    assert delivery.signed
    assert delivery.delivery_id is not None
    assert delivery.delivery_id.startswith(delivery_id)
    with pytest.raises(RejectedError):
        received(headers, key=b"another key of 16 bytes")
    if not scheme.token:
        with pytest.raises(RejectedError):
            received(headers, body + b" ")
    for header in {scheme.header, scheme.timestamp or scheme.header} & headers.keys():
        for value in ("", "1", headers[header] + "0", "é"):
            with pytest.raises(RejectedError):
                received({**headers, header: value})
        with pytest.raises(RejectedError):
            received({one: value for one, value in headers.items() if one != header})
    if scheme.timestamp or scheme.timestamp_member:
        for offset in (-302, 302):
            with pytest.raises(RejectedError) as caught:
                received(headers, at=now + offset)
            assert caught.value.code == "signature_expired"


@pytest.mark.parametrize("at", [10**400, -(10**400), "now", None, True])
def test_time_in_a_payload_may_be_anything(at: Json) -> None:
    delivery = Delivery("d", signed=True)
    with pytest.raises(RejectedError) as caught:
        identified(
            delivery,
            {"webhookTimestamp": at},
            scheme=SCHEMES["linear"],
            now=NOW,
            tolerance_seconds=300,
        )
    assert caught.value.code == "signature_expired"


@pytest.mark.parametrize(
    "header",
    [
        "x-api-key",
        "x-auth-token",
        "cookie",
        "proxy-authorization",
        "x-gitlab-token",
        "x-webhook-secret",
    ],
)
def test_headers_with_credentials_are_recognised(header: str) -> None:
    assert is_credential(header)
    assert not is_credential("idempotency-key")
    assert not is_credential("x-github-event")


def test_every_scheme_has_a_vector() -> None:
    assert {vector[0] for vector in VECTORS} | {"standard"} == {*SCHEMES, "hmac"}


def test_challenge_of_slack_is_found_and_of_others_is_payload() -> None:
    payload: Json = {"type": "url_verification", "challenge": "3eZbrw1a", "token": "x"}
    assert challenge_of("slack", payload) == "3eZbrw1a"
    assert challenge_of("standard", payload) is None
    assert challenge_of("slack", {"type": "event_callback", "challenge": "x"}) is None
    assert challenge_of("slack", "text") is None
