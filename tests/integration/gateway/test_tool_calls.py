"""Client tools and unknown outcomes: a caller settles what only it can."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from penstock.contracts.facts import NodeRecord, SignalReceived
from penstock.contracts.ids import answer_signal_id
from tests.integration.gateway.conftest import Engine, Running, asked, begin, client_plan
from tests.integration.gateway.sse import all_events
from tests.support.waiting import eventually

WAIT = {"Prefer": "wait=10"}


def call(step_id: str = "ask", **arguments: Any) -> NodeRecord:
    return asked(step_id, "client_tool", name="screen", arguments=arguments)


async def ask(gateway: Running, engine: Engine, *node_records: NodeRecord) -> str:
    run_id = await begin(gateway)
    await engine.node_record(run_id, 1, *node_records)
    return run_id


async def results(gateway: Running, run_id: str, *given: dict[str, Any], **options: Any) -> Any:
    return await gateway.client.post(
        f"/v1/runs/{run_id}/tool_results", json={"results": list(given)}, **options
    )


async def test_open_calls_are_listed_and_stand_in_the_run(gateway: Running, engine: Engine) -> None:
    run_id = await ask(gateway, engine, call("a-1-0", q="x"), call("a-1-1", q="y"))
    calls = (await gateway.client.get(f"/v1/runs/{run_id}/tool_calls")).json()["items"]
    assert [(one["step_id"], one["tool"], one["arguments"]) for one in calls] == [
        ("a-1-0", "screen", {"q": "x"}),
        ("a-1-1", "screen", {"q": "y"}),
    ]
    run = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    assert run["status"] == "waiting"
    assert [(one["record_id"], one["kind"]) for one in run["waiting_for"]] == [
        ("a-1-0", "client_tool"),
        ("a-1-1", "client_tool"),
    ]


async def test_results_are_stored_each_under_the_id_of_its_call(
    gateway: Running, engine: Engine
) -> None:
    node_records = call("a-1-0", q="x"), call("a-1-1", q="y")
    run_id = await ask(gateway, engine, *node_records)
    response = await results(
        gateway,
        run_id,
        {"step_id": "a-1-0", "output": {"hits": 2}},
        {"step_id": "a-1-1", "status": "failed", "error": {"code": "no_screen", "message": "?"}},
    )
    assert response.status_code == 202, response.text
    assert response.json()["waiting_for"] == []
    stored = {
        entry.subject.step_id: entry.fact
        for entry in await engine.log(run_id)
        if isinstance(entry.fact, SignalReceived)
    }
    digests = [
        node_record.request.digest
        for node_record in node_records
        if node_record.request is not None
    ]
    first = stored[answer_signal_id("tool_result", "a-1-0", digests[0])]
    second = stored[answer_signal_id("tool_result", "a-1-1", digests[1])]
    assert (first.kind, first.target, first.name) == ("tool_result", "a-1-0", "screen")
    assert first.payload == {"status": "succeeded", "output": {"hits": 2}, "digest": digests[0]}
    assert second.payload == {
        "status": "failed",
        "error": {"code": "no_screen", "message": "?"},
        "digest": digests[1],
    }


async def test_same_result_again_changes_nothing_and_another_is_refused(
    gateway: Running, engine: Engine
) -> None:
    run_id = await ask(gateway, engine, call())
    assert (await results(gateway, run_id, {"step_id": "ask", "output": 1})).status_code == 202
    assert (await results(gateway, run_id, {"step_id": "ask", "output": 1})).status_code == 200
    other = await results(gateway, run_id, {"step_id": "ask", "output": 2})
    assert (other.status_code, other.json()["code"]) == (409, "already_decided")


async def test_one_wrong_result_of_several_stores_none(gateway: Running, engine: Engine) -> None:
    run_id = await ask(gateway, engine, call("a"))
    response = await results(
        gateway, run_id, {"step_id": "a", "output": 1}, {"step_id": "b", "output": 1}
    )
    assert (response.status_code, response.json()["code"]) == (404, "tool_call_not_found")
    assert response.json()["errors"][0]["path"] == "results[1]"
    assert len(await engine.log(run_id)) == 2


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ([], "results"),
        ([{"step_id": "ask"}, {"step_id": "ask"}], "results[1].step_id"),
        ([{"step_id": "ask", "status": "maybe"}], "results[0].status"),
        ([{"step_id": "ask", "error": {"code": "x"}}], "results[0].error"),
        ([{"step_id": "ask", "status": "failed", "output": 1}], "results[0].output"),
        ([{"step_id": "ask", "status": "failed", "error": {"code": "Not A Code"}}], "error.code"),
        ([{"step_id": "a.b"}], "results[0].step_id"),
    ],
)
async def test_results_of_the_wrong_form_are_refused_with_their_path(
    gateway: Running, engine: Engine, given: list[dict[str, Any]], place: str
) -> None:
    run_id = await ask(gateway, engine, call())
    response = await results(gateway, run_id, *given)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["path"].endswith(place)


async def test_result_after_its_time_or_the_end_is_refused(
    gateway: Running, engine: Engine
) -> None:
    late = asked("ask", "client_tool", name="screen", due_in=timedelta(seconds=-1))
    run_id = await ask(gateway, engine, late)
    response = await results(gateway, run_id, {"step_id": "ask"})
    assert (response.status_code, response.json()["code"]) == (410, "question_expired")
    ended = await ask(gateway, engine, call())
    await engine.end(ended, 2)
    response = await results(gateway, ended, {"step_id": "ask"})
    assert (response.status_code, response.json()["code"]) == (409, "run_ended")


async def play(engine: Engine, run_id: str) -> None:
    """Ask for two calls, one after the other, then end."""
    for number in (1, 2):
        node_record = call(f"ask-{number}", question=number)
        await engine.node_record(run_id, 2 * number - 1, node_record)
        await eventually_answered(engine, run_id, node_record)
        settled = structs.replace(node_record, status="succeeded", request=None)
        if number == 1:
            await engine.node_record(run_id, 2, settled)
    await engine.end(run_id, 4, "both")


async def eventually_answered(engine: Engine, run_id: str, node_record: NodeRecord) -> None:
    assert node_record.request is not None
    wanted = answer_signal_id("tool_result", node_record.record_id, node_record.request.digest)

    async def answered() -> bool:
        return wanted in {entry.subject.step_id for entry in await engine.log(run_id)}

    await eventually(answered)


async def test_waited_start_is_a_tool_loop_over_plain_http(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish_plan(client_plan())
    await eventually(lambda: f"{engine.tenant}.clerk" in gateway.gateway.published.values)
    await engine.on_invoke(lambda run_id: play(engine, run_id))
    response = await gateway.client.post("/v1/runs", json={"name": "clerk"}, headers=WAIT)
    seen = []
    while response.json()["status"] != "done":
        assert response.status_code == 202
        run = response.json()
        assert run["status"] == "waiting"
        (one,) = run["waiting_for"]
        seen.append(one["request"]["arguments"])
        response = await results(
            gateway, run["run_id"], {"step_id": one["record_id"], "output": 1}, headers=WAIT
        )
        assert response.headers["preference-applied"] == "wait=10"
    assert seen == [{"question": 1}, {"question": 2}]
    assert (response.status_code, response.json()["output"]) == (200, "both")
    assert gateway.gateway.waiter._waits == {}


async def test_waited_read_returns_when_the_run_asks_or_ends(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish_plan(client_plan())
    await eventually(lambda: f"{engine.tenant}.clerk" in gateway.gateway.published.values)
    run_id = await begin(gateway, "clerk")
    reading = asyncio.create_task(gateway.client.get(f"/v1/runs/{run_id}", headers=WAIT))
    await eventually(lambda: run_id in gateway.gateway.waiter._waits)
    await engine.node_record(run_id, 1, call())
    run = (await reading).json()
    assert [one["record_id"] for one in run["waiting_for"]] == ["ask"]
    await results(gateway, run_id, {"step_id": "ask"})
    reading = asyncio.create_task(gateway.client.get(f"/v1/runs/{run_id}", headers=WAIT))
    await eventually(lambda: run_id in gateway.gateway.waiter._waits)
    await engine.end(run_id, 2, "over")
    assert (await reading).json()["output"] == "over"


async def test_stream_tells_of_calls_and_their_results(gateway: Running, engine: Engine) -> None:
    run_id = await ask(gateway, engine, call(q="x"))
    await results(gateway, run_id, {"step_id": "ask", "output": 1})
    settled = NodeRecord(record_id="ask", kind="client_tool", status="succeeded", output=1)
    await engine.node_record(run_id, 2, settled)
    await engine.end(run_id, 3)
    async with gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"}
    ) as response:
        events = await all_events(response)
    assert [event.type for event in events] == [
        "run_started",
        "user_input",
        "tool_call_created",
        "tool_result_received",
        "tool_call_done",
        "run_done",
    ]
    created = events[2].data["data"]
    assert (created["name"], created["arguments"]) == ("screen", {"q": "x"})


# Unknown outcomes


def lost(step_id: str = "pay", attempt: int = 1) -> NodeRecord:
    node_record = asked(f"{step_id}-r", "resolution", due_in=None)
    assert node_record.request is not None
    request = structs.replace(node_record.request, digest=f"attempt-{attempt}")
    return structs.replace(node_record, request=request)


async def test_unknown_outcome_is_listed_and_resolved_once(
    gateway: Running, engine: Engine
) -> None:
    run_id = await ask(gateway, engine, lost())
    (item,) = (await gateway.client.get(f"/v1/runs/{run_id}/unknown")).json()["items"]
    assert (item["step_id"], item["tool"], item["digest"]) == ("pay", "pay", "attempt-1")
    path = f"/v1/runs/{run_id}/steps/pay/resolve"
    body = {"action": "succeed", "output": {"receipt": 7}, "reason": "the bank says so"}
    assert (await gateway.client.post(path, json=body)).status_code == 202
    assert (await gateway.client.get(f"/v1/runs/{run_id}/unknown")).json()["items"] == []
    entry = (await engine.log(run_id))[-1]
    assert isinstance(entry.fact, SignalReceived)
    assert entry.subject.step_id == answer_signal_id("resolution", "pay-r", "attempt-1")
    assert entry.fact.payload == {**body, "by": "development", "digest": "attempt-1"}
    assert (await gateway.client.post(path, json=body)).status_code == 200
    other = await gateway.client.post(path, json={"action": "retry"})
    assert (other.status_code, other.json()["code"]) == (409, "already_decided")
    assert other.json()["errors"][0]["allowed"] == "succeed"


async def test_attempt_that_is_lost_again_can_be_resolved_again(
    gateway: Running, engine: Engine
) -> None:
    run_id = await ask(gateway, engine, lost())
    path = f"/v1/runs/{run_id}/steps/pay/resolve"
    assert (await gateway.client.post(path, json={"action": "retry"})).status_code == 202
    await engine.node_record(run_id, 2, lost(attempt=2))
    body = {"action": "fail", "digest": "attempt-1"}
    wrong = await gateway.client.post(path, json=body)
    assert (wrong.status_code, wrong.json()["code"]) == (409, "digest_mismatch")
    assert (await gateway.client.post(path, json={"action": "fail"})).status_code == 202


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_request"),
        ({"action": "ignore"}, 422, "invalid_request"),
        ({"action": "retry", "output": 1}, 422, "invalid_request"),
        ({"action": "retry"}, 404, "resolution_not_found"),
    ],
)
async def test_resolution_of_the_wrong_form_or_of_nothing_is_refused(
    gateway: Running, body: dict[str, Any], status: int, code: str
) -> None:
    run_id = await begin(gateway)
    response = await gateway.client.post(f"/v1/runs/{run_id}/steps/pay/resolve", json=body)
    assert (response.status_code, response.json()["code"]) == (status, code)
