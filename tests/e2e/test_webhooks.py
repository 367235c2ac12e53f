import json
import time
import uuid

import httpx

from penstock_gateway.core.signatures import github_signature, standard_signature
from tests.support.installation import ENV, WEBHOOK_KEY, Installation
from tests.support.waiting import eventually

BODY = json.dumps({"data": {"amount": 500, "rate": 3, "years": 2}}).encode()
PATH = "/hooks/default/growth"


def deliver(
    installation: Installation,
    delivery_id: str,
    *,
    body: bytes = BODY,
    signed_body: bytes = BODY,
    at: float | None = None,
) -> httpx.Response:
    timestamp = str(int(time.time() if at is None else at))
    headers = {
        "content-type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": standard_signature(WEBHOOK_KEY, delivery_id, timestamp, signed_body),
    }
    return installation.client.post(PATH, content=body, headers=headers)


async def test_webhook_delivered_twice_starts_one_run(installation: Installation) -> None:
    delivery = f"msg_{uuid.uuid4().hex}"
    first = deliver(installation, delivery)
    assert first.status_code == 202
    run_id = first.json()["run_id"]
    await eventually(lambda: installation.get(run_id)["status"] == "done")
    run = installation.get(run_id)
    assert run["output"]["value"] == 4500
    assert run["trigger"] == "webhook"
    again = deliver(installation, delivery)
    assert again.is_success
    assert again.json()["run_id"] == run_id
    assert installation.get(run_id)["last_seq"] == run["last_seq"]


def test_webhook_signed_as_github_does_is_accepted(installation: Installation) -> None:
    # With this scheme the secret is the key as it is, whatever it begins with.
    key = ENV["PENSTOCK_SECRET_EXAMPLE_WEBHOOK"].encode()
    headers = {
        "content-type": "application/json",
        "x-github-delivery": str(uuid.uuid4()),
        "x-hub-signature-256": github_signature(key, BODY),
    }
    # One scheme per webhook: this one takes Standard Webhooks alone.
    assert installation.client.post(PATH, content=BODY, headers=headers).status_code == 401
    installation.apply(
        {
            "apiVersion": "penstock/v1",
            "kind": "Webhook",
            "metadata": {"name": "growth-github"},
            "spec": {
                "target": "growth-report",
                "scheme": "github",
                "secrets": ["EXAMPLE_WEBHOOK"],
                "input": {"principal": "{{ payload.data.amount }}", "rate": 3, "years": 2},
            },
        }
    )
    answer = installation.client.post(f"{PATH}-github", content=BODY, headers=headers)
    assert answer.status_code == 202, answer.text


def test_webhook_changed_after_signing_is_refused(installation: Installation) -> None:
    answer = deliver(installation, uuid.uuid4().hex, body=BODY.replace(b"500", b"999"))
    assert answer.status_code == 401
    assert answer.json()["code"] == "signature_invalid"


def test_webhook_outside_the_tolerance_is_refused(installation: Installation) -> None:
    for offset in (-301, 302):
        answer = deliver(installation, uuid.uuid4().hex, at=time.time() + offset)
        assert answer.status_code == 401
        assert answer.json()["code"] == "signature_invalid"


def test_webhook_unsigned_is_refused(installation: Installation) -> None:
    answer = installation.client.post(PATH, content=BODY)
    assert answer.status_code == 401
    assert answer.json()["code"] == "signature_invalid"
