"""Events and messages for runs, against a real log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.contracts.facts import SignalReceived
from tests.integration.gateway.conftest import CreateGateway, Engine, Running, begin
from tests.integration.gateway.test_access import NO_RUN, answer

UNKNOWN = "01HZZZZZZZZZZZZZZZZZZZZZZZ"


async def signals(engine: Engine, run_id: str) -> list[SignalReceived]:
    log = await engine.log(run_id)
    return [entry.fact for entry in log if isinstance(entry.fact, SignalReceived)]


async def test_signal_to_a_run_is_in_its_log_when_it_is_accepted(
    gateway: Running, engine: Engine
) -> None:
    run_id = await begin(gateway)
    response = await gateway.client.post(
        f"/v1/runs/{run_id}/signals", json={"name": "paid", "payload": {"amount": 3}}
    )
    assert response.status_code == 202, response.text
    (fact,) = await signals(engine, run_id)
    assert (fact.name, fact.payload, fact.kind) == ("paid", {"amount": 3}, "event")
    assert fact.sent_by == "development"
    last = (await engine.log(run_id))[-1]
    assert (last.seq, last.subject.step_id) == (
        response.json()["seq"],
        response.json()["signal_id"],
    )


async def test_signal_with_a_key_is_stored_once_on_every_replica(
    gateway: Running, engine: Engine, create_gateway: CreateGateway
) -> None:
    run_id = await begin(gateway)
    other = await create_gateway()
    answers = await asyncio.gather(
        *(
            each.client.post(
                f"/v1/runs/{run_id}/signals",
                json={"name": "paid"},
                headers={"Idempotency-Key": "delivery-1"},
            )
            for each in (gateway, other, gateway, other)
        )
    )
    assert sorted(one.status_code for one in answers) == [200, 200, 200, 202]
    assert {one.json()["signal_id"] for one in answers} == {"delivery-1"}
    assert len(await signals(engine, run_id)) == 1
    await engine.end(run_id, 1)
    late = await gateway.client.post(
        f"/v1/runs/{run_id}/signals",
        json={"name": "paid"},
        headers={"Idempotency-Key": "delivery-1"},
    )
    assert (late.status_code, late.json()["repeated"]) == (200, True)


async def test_signal_with_a_used_key_and_another_body_is_refused(gateway: Running) -> None:
    run_id = await begin(gateway)
    path, headers = f"/v1/runs/{run_id}/signals", {"Idempotency-Key": "k"}
    await gateway.client.post(path, json={"name": "paid", "payload": 1}, headers=headers)
    response = await gateway.client.post(path, json={"name": "paid", "payload": 2}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["approval-0123", "a key with spaces", "x" * 200])
async def test_signal_never_has_the_id_of_an_answer(gateway: Running, key: str) -> None:
    run_id = await begin(gateway)
    response = await gateway.client.post(
        f"/v1/runs/{run_id}/signals", json={"name": "paid"}, headers={"Idempotency-Key": key}
    )
    assert response.json()["signal_id"].startswith("key-")


@pytest.mark.parametrize("what", ["signals", "messages"])
async def test_signal_to_an_ended_or_unknown_run_is_refused(
    gateway: Running, engine: Engine, what: str
) -> None:
    await answer(engine, "archive", "run_facts", NO_RUN)
    run_id = await begin(gateway)
    await engine.end(run_id, 1)
    for target, status, code in (
        (run_id, 409, "run_ended"),
        (UNKNOWN, 404, "run_not_found"),
        ("short", 404, "run_not_found"),
    ):
        response = await gateway.client.post(f"/v1/runs/{target}/{what}", json={"name": "x"})
        assert (response.status_code, response.json()["code"]) == (status, code)
    assert await signals(engine, run_id) == []


async def test_correlated_signal_reaches_all_open_runs_that_wait_for_its_key(
    gateway: Running, engine: Engine
) -> None:
    runs = [await begin(gateway) for _ in range(3)]
    ended, other = await begin(gateway), await begin(gateway)
    for run_id in (*runs, ended):
        await engine.correlate(run_id, "order 17 / ü")
    await engine.correlate(other, "order 18")
    await engine.end(ended, 1)
    body = {"name": "paid", "correlation": "order 17 / ü", "payload": 1}
    headers = {"Idempotency-Key": "once"}
    response = await gateway.client.post("/v1/signals", json=body, headers=headers)
    assert response.status_code == 202, response.text
    assert {item["run_id"] for item in response.json()["items"]} == set(runs)
    again = await gateway.client.post("/v1/signals", json=body, headers=headers)
    assert again.status_code == 200
    assert [len(await signals(engine, run_id)) for run_id in (*runs, ended, other)] == [
        1,
        1,
        1,
        0,
        0,
    ]


async def test_correlated_signal_that_nobody_waits_for_is_refused(
    gateway: Running, engine: Engine
) -> None:
    run_id = await begin(gateway)
    await engine.correlate(run_id, "gone")
    await engine.end(run_id, 1)
    for correlation in ("never asked for", "gone"):
        response = await gateway.client.post(
            "/v1/signals", json={"name": "paid", "correlation": correlation}
        )
        assert (response.status_code, response.json()["code"]) == (404, "nobody_waits")


async def test_message_names_the_run_that_sends_it(gateway: Running, engine: Engine) -> None:
    sender, receiver = await begin(gateway), await begin(gateway)
    response = await gateway.client.post(
        f"/v1/runs/{receiver}/messages", json={"name": "hi", "payload": 1, "from_run": sender}
    )
    assert response.status_code == 202
    (fact,) = await signals(engine, receiver)
    assert (fact.kind, fact.from_run, fact.payload) == ("message", sender, 1)


async def test_message_from_a_run_that_is_not_there_is_refused(
    gateway: Running, engine: Engine
) -> None:
    await answer(engine, "archive", "run_facts", NO_RUN)
    run_id = await begin(gateway)
    response = await gateway.client.post(
        f"/v1/runs/{run_id}/messages", json={"name": "hi", "from_run": UNKNOWN}
    )
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"][0]["path"] == "from_run"


async def test_message_to_a_session_reaches_its_latest_run_while_that_is_open(
    gateway: Running, engine: Engine
) -> None:
    first = await begin(gateway, session_id="s1")
    await engine.end(first, 1)
    latest = await begin(gateway, session_id="s1")
    path = "/v1/sessions/s1/messages"
    response = await gateway.client.post(path, json={"name": "hi"})
    assert (response.status_code, response.json()["run_id"]) == (202, latest)
    await engine.end(latest, 1)
    idle = await gateway.client.post(path, json={"name": "hi"})
    assert (idle.status_code, idle.json()["code"]) == (409, "session_idle")
    nobody = await gateway.client.post("/v1/sessions/s2/messages", json={"name": "hi"})
    assert (nobody.status_code, nobody.json()["code"]) == (404, "session_not_found")


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/runs/{}/signals", {"payload": 1}, "name"),
        ("/v1/runs/{}/signals", {"name": ""}, "name"),
        ("/v1/runs/{}/signals", {"name": "x", "kind": "approval"}, "kind"),
        ("/v1/signals", {"name": "x"}, "correlation"),
        ("/v1/runs/{}/messages", {"name": "x", "to": "y"}, "to"),
    ],
)
async def test_signal_of_the_wrong_form_is_refused_with_its_path(
    gateway: Running, path: str, body: dict[str, Any], place: str
) -> None:
    run_id = await begin(gateway)
    response = await gateway.client.post(path.format(run_id), json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["path"].endswith(place)


async def test_large_payload_of_a_signal_is_kept_whole(gateway: Running, engine: Engine) -> None:
    run_id = await begin(gateway)
    await gateway.client.post(
        f"/v1/runs/{run_id}/signals", json={"name": "x", "payload": "y" * 300_000}
    )
    (fact,) = await signals(engine, run_id)
    assert fact.payload == "y" * 300_000
