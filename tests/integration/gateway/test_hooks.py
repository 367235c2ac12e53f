"""Webhooks against a real server: signed, once only, acknowledged before they are accepted."""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import httpx
import pytest

from penstock.contracts.facts import DefinitionKind, RunInvoked
from penstock.contracts.runners import WebhookRecord
from penstock_gateway.core.signatures import github_signature, secret_bytes, standard_signature
from tests.integration.gateway.conftest import CreateGateway, Engine, Running
from tests.support.waiting import eventually

SECRET = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cw=="
OLDER_SECRET = "plain old secret"


@pytest.fixture
async def hooks(gateway: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("PENSTOCK_SECRET_NEW", SECRET)
    monkeypatch.setenv("PENSTOCK_SECRET_OLD", OLDER_SECRET)
    await engine.define_webhook(
        WebhookRecord(
            name="orders",
            target="echo",
            secrets=("NEW", "OLD"),
            input={"order": "{{ payload.id }}"},
        )
    )
    await engine.define_webhook(WebhookRecord(name="open", target="echo"))
    for scheme in ("github", "slack", "meta"):
        await engine.define_webhook(
            WebhookRecord.model_validate(
                {
                    "name": scheme,
                    "target": "echo",
                    "scheme": scheme,
                    "secrets": ["OLD"],
                    "verify_token": "NEW" if scheme == "meta" else None,
                }
            )
        )
    await eventually(lambda: len(gateway.gateway.webhooks.values) >= 5)
    return gateway


def signed(body: bytes, delivery: str, *, at: float | None = None, secret: str = SECRET) -> Any:
    timestamp = str(int(time.time() if at is None else at))
    signature = standard_signature(secret_bytes(secret), delivery, timestamp, body)
    return {
        "webhook-id": delivery,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,AAAA {signature}",
        "content-type": "application/json",
    }


def path(engine: Engine, name: str = "orders") -> str:
    return f"/hooks/{engine.tenant}/{name}"


async def deliver(hooks: Running, engine: Engine, body: bytes, headers: Any) -> httpx.Response:
    return await hooks.client.post(path(engine), content=body, headers=headers)


async def test_signed_delivery_starts_the_run_with_the_mapped_input(
    hooks: Running, engine: Engine
) -> None:
    body = b'{"id": 7}'
    response = await deliver(hooks, engine, body, signed(body, "msg_1"))
    assert response.status_code == 202, response.text
    (entry,) = await engine.log(response.json()["run_id"])
    assert isinstance(entry.fact, RunInvoked)
    assert (entry.fact.input, entry.fact.trigger) == ({"order": 7}, "webhook")


async def test_replayed_delivery_starts_nothing_and_gives_the_same_run(
    hooks: Running, engine: Engine, create_gateway: CreateGateway
) -> None:
    other = await create_gateway()
    await eventually(lambda: len(other.gateway.webhooks.values) >= 2)
    body = b'{"id": 7}'
    first = await deliver(hooks, engine, body, signed(body, "msg_2"))
    # A sender that tries again signs again: another timestamp, another signature, the same id.
    again = await deliver(other, engine, body, signed(body, "msg_2", at=time.time() - 30))
    other_one = await deliver(hooks, engine, body, signed(body, "msg_3"))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["run_id"] == again.json()["run_id"] != other_one.json()["run_id"]
    assert [first.json()["duplicate"], again.json()["duplicate"]] == [False, True]
    assert len(await engine.log(first.json()["run_id"])) == 1


async def test_delivery_signed_with_the_older_secret_is_accepted(
    hooks: Running, engine: Engine
) -> None:
    body = b'{"id": 1}'
    headers = signed(body, "msg_4", secret=OLDER_SECRET)
    assert (await deliver(hooks, engine, body, headers)).status_code == 202


async def test_github_delivery_is_accepted_and_its_replay_starts_nothing(
    hooks: Running, engine: Engine
) -> None:
    body = b'{"id": 2}'
    headers = {
        "x-github-delivery": "8d0c7b5e",
        "x-hub-signature-256": github_signature(OLDER_SECRET.encode(), body),
    }
    url = path(engine, "github")
    first = await hooks.client.post(url, content=body, headers=headers)
    again = await hooks.client.post(url, content=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["run_id"] == again.json()["run_id"]
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("offset", [-301, 302])
async def test_delivery_outside_the_tolerance_is_refused(
    hooks: Running, engine: Engine, offset: int
) -> None:
    body = b'{"id": 1}'
    response = await deliver(
        hooks, engine, body, signed(body, f"late{offset}", at=time.time() + offset)
    )
    assert (response.status_code, response.json()["code"]) == (401, "signature_invalid")


async def test_delivery_with_changed_bytes_is_refused(hooks: Running, engine: Engine) -> None:
    response = await deliver(hooks, engine, b'{"id":7}', signed(b'{"id": 7}', "msg_5"))
    assert (response.status_code, response.json()["code"]) == (401, "signature_invalid")


async def test_delivery_without_signature_is_refused(hooks: Running, engine: Engine) -> None:
    response = await deliver(hooks, engine, b"{}", {"webhook-id": "x"})
    assert (response.status_code, response.json()["code"]) == (401, "signature_invalid")


async def test_delivery_whose_payload_lacks_a_field_is_refused_with_its_path(
    hooks: Running, engine: Engine
) -> None:
    body = b'{"other": 1}'
    response = await deliver(hooks, engine, body, signed(body, "msg_6"))
    assert response.status_code == 422
    assert response.json()["errors"][0]["path"] == "payload.id"


async def test_unsigned_webhook_takes_anything_and_its_ids_count(
    hooks: Running, engine: Engine
) -> None:
    url = path(engine, "open")
    runs = [
        (await hooks.client.post(url, content=b"plain text", headers=headers)).json()["run_id"]
        for headers in ({}, {}, {"webhook-id": "a"}, {"webhook-id": "a"})
    ]
    assert len(set(runs)) == 3
    assert runs[2] == runs[3]


async def test_unknown_webhook_is_not_found(hooks: Running, engine: Engine) -> None:
    response = await hooks.client.post(path(engine, "nothing"), content=b"{}")
    assert response.status_code == 404


async def test_missing_secret_is_our_fault_and_says_no_more(
    hooks: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PENSTOCK_SECRET_OLD")
    response = await deliver(hooks, engine, b"{}", signed(b"{}", "x"))
    assert (response.status_code, response.json()["code"]) == (500, "secret_missing")
    assert "OLD" not in response.text


async def test_generic_webhook_starts_the_workflow_that_it_names(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish("flow", DefinitionKind.WORKFLOW)
    body = {"workflow_name": "flow", "inputs": {"a": 1}, "webhook_id": "w1"}
    first = await gateway.client.post("/webhooks/generic", json=body)
    again = await gateway.client.post("/webhooks/generic", json=body)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["run_id"] == again.json()["run_id"]


async def test_generic_webhook_with_a_secret_checks_signatures(
    create_gateway: CreateGateway, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.publish("flow", DefinitionKind.WORKFLOW)
    gateway = await create_gateway(generic_webhook_scheme="github")
    monkeypatch.setenv("WEBHOOK_SECRET", OLDER_SECRET)
    body = json.dumps({"workflow_name": "flow"}).encode()
    refused = await gateway.client.post("/webhooks/generic", content=body)
    signature = github_signature(OLDER_SECRET.encode(), body)
    accepted = await gateway.client.post(
        "/webhooks/generic", content=body, headers={"X-Hub-Signature-256": signature}
    )
    assert (refused.status_code, accepted.status_code) == (401, 202)


async def test_refusals_of_all_kinds_look_alike_and_the_log_says_why(
    hooks: Running, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"id": 7}'
    late = signed(body, "msg_7", at=time.time() - 4000)
    github = {"x-hub-signature-256": github_signature(OLDER_SECRET.encode(), body)}
    refused = [
        await deliver(hooks, engine, body, headers)
        for headers in (
            {},
            late,
            github,
            {**signed(body, "a"), "webhook-id": "a.b"},
            signed(b"{}", "msg_8"),
        )
    ]
    assert {one.status_code for one in refused} == {401}
    assert len({one.content for one in refused}) == 1
    logged = [vars(record).get("penstock_fields", {}) for record in caplog.records]
    assert [fields["code"] for fields in logged if "webhook" in fields] == [
        "signature_missing",
        "signature_expired",
        "signature_missing",
        "signature_invalid",
        "signature_invalid",
    ]


async def test_secret_that_is_too_short_is_our_fault(
    hooks: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET_OLD", "short")
    response = await deliver(hooks, engine, b"{}", signed(b"{}", "x"))
    assert (response.status_code, response.json()["code"]) == (500, "secret_too_short")


async def test_challenge_of_slack_is_answered_once_its_signature_is_checked(
    hooks: Running, engine: Engine
) -> None:
    body = b'{"type": "url_verification", "challenge": "3eZbrw1a", "token": "x"}'
    now = str(int(time.time()))
    key, material = OLDER_SECRET.encode(), b"v0:%b:%b" % (now.encode(), body)
    headers = {
        "content-type": "application/json",
        "x-slack-request-timestamp": now,
        "x-slack-signature": "v0=" + hmac.new(key, material, "sha256").hexdigest(),
    }
    url = path(engine, "slack")
    answer = await hooks.client.post(url, content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1a"})
    forged = await hooks.client.post(
        url, content=body, headers={**headers, "x-slack-signature": ""}
    )
    assert forged.status_code == 401


async def test_address_is_verified_by_meta_with_the_token_only(
    hooks: Running, engine: Engine
) -> None:
    def query(token: str) -> dict[str, str]:
        return {"hub.mode": "subscribe", "hub.verify_token": token, "hub.challenge": "<b>1158201"}

    url = path(engine, "meta")
    answer = await hooks.client.get(url, params=query(SECRET))
    assert (answer.status_code, answer.text) == (200, "<b>1158201")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (await hooks.client.get(url, params=query("x"))).status_code == 401
    assert (await hooks.client.get(path(engine), params=query(SECRET))).status_code == 404


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (
            "application/x-www-form-urlencoded",
            b"a=1&b=x+y&b=%C3%BC&c=",
            {"a": "1", "b": ["x y", "ü"], "c": ""},
        ),
        ("application/x-www-form-urlencoded", b"payload=%7B%22a%22%3A%201%7D", {"a": 1}),
        ("application/cloudevents+json; charset=utf-8", b'{"a": 1}', {"a": 1}),
        ("text/plain", b'{"a": 1}', {"a": 1}),
        ("text/plain", b"{not json", "{not json"),
        ("text/plain", b"NaN", "NaN"),
    ],
)
async def test_payload_is_read_by_its_content_type(
    hooks: Running, engine: Engine, content_type: str, body: bytes, expected: Any
) -> None:
    url = path(engine, "open")
    answer = await hooks.client.post(url, content=body, headers={"content-type": content_type})
    assert answer.status_code == 202, answer.text
    (entry,) = await engine.log(answer.json()["run_id"])
    assert isinstance(entry.fact, RunInvoked)
    assert entry.fact.input == expected


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("application/json", b"{not json", "malformed_json"),
        ("application/json", b"", "malformed_json"),
        ("application/json", b'{"a": NaN}', "malformed_json"),
        ("application/vnd.x+json", b"[" * 100_000, "malformed_json"),
        ("application/x-www-form-urlencoded", b"payload={not", "malformed_json"),
        ("application/x-www-form-urlencoded", b"a=%ff", "malformed_request"),
        ("application/x-www-form-urlencoded", b"a=1&" * 1001, "malformed_request"),
    ],
)
async def test_payload_that_is_not_what_it_is_declared_as_is_refused(
    hooks: Running, engine: Engine, content_type: str, body: bytes, code: str
) -> None:
    url = path(engine, "open")
    answer = await hooks.client.post(url, content=body, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (400, code)
