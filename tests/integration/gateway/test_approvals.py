"""Approvals: listed from the index, decided by the log."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import NodeRecord, SignalReceived
from penstock.contracts.ids import answer_signal_id
from tests.integration.gateway.conftest import CreateGateway, Engine, Running, asked, begin
from tests.integration.gateway.test_access import NO_RUN, add_key, answer

CALL = {"amount": 250, "to": "ada"}


def approval(record_id: str = "pay-a", **options: Any) -> NodeRecord:
    return asked(record_id, "approval", **{"arguments": CALL, **options})


async def ask(gateway: Running, engine: Engine, *node_records: NodeRecord) -> str:
    run_id = await begin(gateway)
    await engine.node_record(run_id, 1, *(node_records or (approval(),)))
    return run_id


def path(run_id: str, what: str = "", record_id: str = "pay-a") -> str:
    return f"/v1/approvals/{run_id}/{record_id}{what}"


async def decisions(engine: Engine, run_id: str) -> list[tuple[str, SignalReceived]]:
    return [
        (entry.subject.step_id, entry.fact)
        for entry in await engine.log(run_id)
        if isinstance(entry.fact, SignalReceived)
    ]


async def test_open_approval_is_listed_with_the_exact_call(
    gateway: Running, engine: Engine
) -> None:
    run_id = await ask(gateway, engine, approval(message="more than 100"))
    listed = (await gateway.client.get("/v1/approvals")).json()["items"]
    (item,) = listed
    assert (item["run_id"], item["record_id"], item["step_id"]) == (run_id, "pay-a", "pay")
    assert (item["tool"], item["arguments"], item["message"]) == ("pay", CALL, "more than 100")
    assert (item["status"], item["decided"]) == ("open", None)
    single = (await gateway.client.get(path(run_id))).json()
    assert {**single, "asked_at": ""} == {**item, "run_name": "echo", "asked_at": ""}


async def test_approval_is_listed_by_role_and_run_and_page_by_page(
    gateway: Running, engine: Engine
) -> None:
    runs = [await ask(gateway, engine, approval(role=role)) for role in ("boss", "legal", "boss")]
    await engine.node_record(runs[0], 2, asked("w", "wait", due_in=None))

    async def listed(**query: Any) -> list[str]:
        answered = await gateway.client.get("/v1/approvals", params=query)
        return [item["run_id"] for item in answered.json()["items"]]

    assert await listed() == runs
    assert await listed(role="boss") == [runs[0], runs[2]]
    assert await listed(run_id=runs[1]) == [runs[1]]
    assert await listed(run_id=runs[1], role="boss") == []
    first = (await gateway.client.get("/v1/approvals", params={"limit": 2})).json()
    assert [item["run_id"] for item in first["items"]] == runs[:2]
    assert await listed(limit=2, cursor=first["next_cursor"]) == runs[2:]
    exact = (await gateway.client.get("/v1/approvals", params={"limit": 3})).json()
    assert (len(exact["items"]), exact["next_cursor"]) == (3, None)
    await engine.node_record(runs[1], 2, approval("pay-b"))
    seen, cursor = [], None
    for _ in range(2):
        query: dict[str, Any] = {"run_id": runs[1], "limit": 1, "cursor": cursor}
        page = (await gateway.client.get("/v1/approvals", params=query)).json()
        seen += [item["record_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert (sorted(seen), cursor) == (["pay-a", "pay-b"], None)


async def test_approve_states_the_answer_under_the_only_id_it_can_have(
    gateway: Running, engine: Engine
) -> None:
    node_record = approval()
    run_id = await ask(gateway, engine, node_record)
    assert node_record.request is not None
    response = await gateway.client.post(
        path(run_id, "/approve"), json={"digest": node_record.request.digest, "reason": "fine"}
    )
    assert response.status_code == 202, response.text
    decided = response.json()
    assert decided["status"] == "approved"
    assert (decided["decided"]["by"], decided["decided"]["reason"]) == ("development", "fine")
    ((signal_id, fact),) = await decisions(engine, run_id)
    assert signal_id == answer_signal_id("approval", "pay-a", node_record.request.digest)
    assert (fact.kind, fact.target) == ("approval", "pay-a")
    assert fact.payload == {
        "decision": "approve",
        "digest": node_record.request.digest,
        "reason": "fine",
        "by": "development",
    }


async def test_same_answer_again_is_the_recorded_one_and_the_opposite_is_refused(
    gateway: Running, engine: Engine
) -> None:
    node_record = approval()
    run_id = await ask(gateway, engine, node_record)
    first = await gateway.client.post(path(run_id, "/reject"), json={"reason": "too much"})
    again = await gateway.client.post(path(run_id, "/reject"), json={"reason": "other words"})
    opposite = await gateway.client.post(path(run_id, "/approve"))
    assert (first.status_code, again.status_code, opposite.status_code) == (202, 200, 409)
    assert again.json() == first.json()
    assert opposite.json()["code"] == "already_decided"
    assert opposite.json()["errors"][0]["allowed"] == "reject"
    # The same once the engine has settled it, and once the run has ended.
    settled = structs.replace(node_record, status="failed", request=None)
    await engine.node_record(run_id, 2, settled)
    await engine.end(run_id, 3)
    assert (await gateway.client.post(path(run_id, "/reject"))).status_code == 200
    assert (await gateway.client.post(path(run_id, "/approve"))).status_code == 409
    assert len(await decisions(engine, run_id)) == 1


async def test_racing_answers_on_two_replicas_are_one_decision(
    gateway: Running, engine: Engine, create_gateway: CreateGateway
) -> None:
    other = await create_gateway()
    run_id = await ask(gateway, engine)
    answers = await asyncio.gather(
        *(
            each.client.post(path(run_id, verb))
            for each in (gateway, other)
            for verb in ("/approve", "/reject")
            for _ in range(3)
        )
    )
    ((_, fact),) = await decisions(engine, run_id)
    assert isinstance(fact.payload, dict)
    won = [one for one in answers if one.status_code in (200, 202)]
    lost = [one for one in answers if one.status_code == 409]
    assert (len(won), len(lost)) == (6, 6)
    status = {"approve": "approved", "reject": "rejected"}[str(fact.payload["decision"])]
    assert {one.json()["status"] for one in won} == {status}


@pytest.mark.parametrize("verb", ["/approve", "/reject"])
async def test_answer_to_another_call_is_refused(
    gateway: Running, engine: Engine, verb: str
) -> None:
    node_record = approval()
    run_id = await ask(gateway, engine, node_record)
    response = await gateway.client.post(path(run_id, verb), json={"digest": "0" * 64})
    assert (response.status_code, response.json()["code"]) == (409, "digest_mismatch")
    assert node_record.request is not None
    assert response.json()["errors"] == [
        {"path": "digest", "message": "not asked", "allowed": node_record.request.digest}
    ]
    assert await decisions(engine, run_id) == []


async def test_answer_where_nothing_is_asked_is_refused(gateway: Running, engine: Engine) -> None:
    await answer(engine, "archive", "run_facts", NO_RUN)
    run_id = await ask(gateway, engine, asked("w", "wait"))
    for record_id in ("nothing", "w"):
        response = await gateway.client.post(path(run_id, "/approve", record_id))
        assert (response.status_code, response.json()["code"]) == (404, "approval_not_found")
        assert (await gateway.client.get(path(run_id, "", record_id))).status_code == 404
    unknown = await gateway.client.post(path("01HZZZZZZZZZZZZZZZZZZZZZZZ", "/approve"))
    assert (unknown.status_code, unknown.json()["code"]) == (404, "run_not_found")


async def test_answer_after_the_end_is_refused(gateway: Running, engine: Engine) -> None:
    run_id = await ask(gateway, engine)
    await engine.end(run_id, 2)
    response = await gateway.client.post(path(run_id, "/approve"))
    assert (response.status_code, response.json()["code"]) == (409, "run_ended")
    assert (await gateway.client.get(path(run_id))).json()["status"] == "closed"


@pytest.mark.parametrize("noticed", [False, True])
async def test_answer_after_its_time_is_gone(
    gateway: Running, engine: Engine, noticed: bool
) -> None:
    node_record = approval(due_in=timedelta(seconds=-1))
    run_id = await ask(gateway, engine, node_record)
    if noticed:
        error = ErrorInfo(code="approval_expired", message="nobody decided in time")
        update = {"status": "failed", "request": None, "error": error}
        await engine.node_record(run_id, 2, structs.replace(node_record, **update))
    response = await gateway.client.post(path(run_id, "/approve"))
    assert (response.status_code, response.json()["code"]) == (410, "question_expired")
    assert response.json()["title"] == "Gone"
    assert (await gateway.client.get("/v1/approvals")).json()["items"] == []
    found = await gateway.client.get("/v1/approvals", params={"run_id": run_id, "status": "all"})
    assert [item["status"] for item in found.json()["items"]] == ["expired"]


async def test_approvals_of_a_run_are_listed_by_what_became_of_them(
    gateway: Running, engine: Engine
) -> None:
    run_id = await ask(gateway, engine, approval("x-a"), approval("y-a"), approval("z-a"))
    await gateway.client.post(path(run_id, "/approve", "x-a"))
    await gateway.client.post(path(run_id, "/reject", "y-a"))

    async def listed(status: str) -> list[str]:
        query = {"run_id": run_id, "status": status}
        answered = await gateway.client.get("/v1/approvals", params=query)
        return [item["record_id"] for item in answered.json()["items"]]

    assert await listed("open") == ["z-a"]
    assert await listed("approved") == ["x-a"]
    assert await listed("rejected") == ["y-a"]
    assert await listed("all") == ["x-a", "y-a", "z-a"]
    refused = await gateway.client.get("/v1/approvals", params={"status": "approved"})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "run_id")
    nonsense = await gateway.client.get("/v1/approvals", params={"status": "maybe"})
    assert nonsense.status_code == 422


@pytest.mark.parametrize(
    ("asked_role", "key", "status"),
    [
        (None, "viewer", 403),
        (None, "operator", 202),
        ("viewer", "viewer", 202),
        ("runner", "operator", 403),
        ("finance", "operator", 403),
        ("finance", "admin", 202),
        ("admin", "operator", 403),
    ],
)
async def test_role_that_is_asked_for_decides_who_may_answer(
    engine: Engine,
    create_gateway: CreateGateway,
    asked_role: str | None,
    key: str,
    status: int,
) -> None:
    await engine.publish("echo")
    for role in ("operator", "viewer", "admin"):
        await add_key(engine, f"{role}-{engine.tenant}", role)
    gateway = await create_gateway(f"operator-{engine.tenant}", auth_required=True)
    run_id = await ask(gateway, engine, approval(role=asked_role))
    headers = {"Authorization": f"Bearer {key}-{engine.tenant}"}
    response = await gateway.client.post(path(run_id, "/approve"), headers=headers)
    assert response.status_code == status, response.text
    if status == 403:
        assert response.json()["errors"][0]["allowed"] == (asked_role or "operator")
        assert await decisions(engine, run_id) == []
    else:
        assert response.json()["decided"]["by"] == f"{key}-{engine.tenant}"


async def test_approval_of_another_tenant_is_neither_listed_nor_found(
    engine: Engine, create_gateway: CreateGateway
) -> None:
    await answer(engine, "archive", "run_facts", NO_RUN)
    await engine.publish("echo")
    own = await create_gateway()
    run_id = await ask(own, engine)
    other = await create_gateway(dev_tenant=f"o{engine.tenant}")
    assert (await other.client.get("/v1/approvals")).json()["items"] == []
    assert (await other.client.post(path(run_id, "/approve"))).status_code == 404
