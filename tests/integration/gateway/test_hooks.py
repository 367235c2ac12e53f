"""Webhooks against a real server: signed, once only, acknowledged before they are accepted."""

from __future__ import annotations

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
    await eventually(lambda: len(gateway.gateway.webhooks.values) >= 2)
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
    first = await deliver(hooks, engine, body, headers)
    again = await deliver(hooks, engine, body, headers)
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
    assert (response.status_code, response.json()["code"]) == (401, "signature_expired")


async def test_delivery_with_changed_bytes_is_refused(hooks: Running, engine: Engine) -> None:
    response = await deliver(hooks, engine, b'{"id":7}', signed(b'{"id": 7}', "msg_5"))
    assert (response.status_code, response.json()["code"]) == (401, "signature_invalid")


async def test_delivery_without_signature_is_refused(hooks: Running, engine: Engine) -> None:
    response = await deliver(hooks, engine, b"{}", {"webhook-id": "x"})
    assert (response.status_code, response.json()["code"]) == (401, "signature_missing")


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
    gateway: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.publish("flow", DefinitionKind.WORKFLOW)
    monkeypatch.setenv("WEBHOOK_SECRET", "s")
    body = json.dumps({"workflow_name": "flow"}).encode()
    refused = await gateway.client.post("/webhooks/generic", content=body)
    signature = github_signature(b"s", body)
    accepted = await gateway.client.post(
        "/webhooks/generic", content=body, headers={"X-Hub-Signature-256": signature}
    )
    assert (refused.status_code, accepted.status_code) == (401, 202)
