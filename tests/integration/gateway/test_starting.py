"""Starting runs over HTTP against a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.facts import DefinitionKind, RunInvoked, fact_type
from penstock.contracts.ids import run_id_from_key
from penstock.contracts.json import JsonObject
from tests.integration.gateway.conftest import CreateGateway, Engine, Running
from tests.support.waiting import eventually

WAIT = {"Prefer": "wait=10"}
WHOLE = {"Prefer": "return=representation, wait=10"}


async def invoked(engine: Engine, run_id: str) -> RunInvoked:
    fact = (await engine.log(run_id))[0].fact
    assert isinstance(fact, RunInvoked)
    return fact


async def test_start_without_preference_answers_202_with_the_fact_in_the_log(
    gateway: Running, engine: Engine
) -> None:
    body = {"name": "echo", "input": {"a": [1, None]}, "tags": {"team": "x"}}
    response = await gateway.client.post("/v1/runs", json=body)
    assert response.status_code == 202
    run = response.json()
    assert response.headers["location"] == f"/v1/runs/{run['run_id']}"
    assert "preference-applied" not in response.headers
    assert (run["status"], run["input"]) == ("created", {"a": [1, None]})
    fact = await invoked(engine, run["run_id"])
    assert (fact.name, fact.input, fact.tags) == ("echo", {"a": [1, None]}, {"team": "x"})
    assert fact.request_digest is None


async def test_start_fills_in_the_defaults_of_the_input_schema(
    gateway: Running, engine: Engine
) -> None:
    size: JsonObject = {"properties": {"width": {"type": "integer", "default": 80}}}
    schema: JsonObject = {
        "properties": {"size": size, "kind": {"enum": ["a"], "default": "a"}},
        "required": ["kind"],
    }
    await engine.publish("sized", DefinitionKind.WORKFLOW, input_schema=schema)
    body = {"name": "sized", "input": {"size": {}}}
    response = await gateway.client.post("/v1/runs", json=body)
    assert response.status_code == 202, response.text
    filled = {"size": {"width": 80}, "kind": "a"}
    assert response.json()["input"] == filled
    assert (await invoked(engine, response.json()["run_id"])).input == filled


async def test_start_with_wait_answers_200_with_the_finished_run(
    gateway: Running, engine: Engine
) -> None:
    async def play(run_id: str) -> None:
        await engine.schedule(run_id, 1, "a-1")
        await engine.result(run_id, "a-1")
        await engine.end(run_id, 2, {"answer": 42})

    await engine.on_invoke(play)
    response = await gateway.client.post("/v1/runs", json={"name": "echo"}, headers=WHOLE)
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=10, return=representation"
    run = response.json()
    assert (run["status"], run["output"]) == ("done", {"answer": 42})
    read = (await gateway.client.get(f"/v1/runs/{run['run_id']}")).json()
    assert read == run
    assert [(step["step_id"], step["status"]) for step in run["steps"]] == [("a-1", "succeeded")]


async def test_start_with_wait_alone_leaves_out_the_steps(gateway: Running, engine: Engine) -> None:
    await engine.on_invoke(lambda run_id: play_end(engine, run_id, 42))
    response = await gateway.client.post("/v1/runs", json={"name": "echo"}, headers=WAIT)
    assert response.headers["preference-applied"] == "wait=10"
    run = response.json()
    read = (await gateway.client.get(f"/v1/runs/{run['run_id']}")).json()
    left_out = {"steps", "step_counts", "next_steps_cursor", "node_records", "children", "budget"}
    assert run == {name: value for name, value in read.items() if name not in left_out}


async def play_end(engine: Engine, run_id: str, output: Any) -> None:
    await engine.end(run_id, 1, output)


async def test_start_with_large_output_answers_it_whole(gateway: Running, engine: Engine) -> None:
    large = "x" * 300_000
    await engine.on_invoke(lambda run_id: play_end(engine, run_id, large))
    response = await gateway.client.post(
        "/v1/runs", json={"name": "echo", "input": large}, headers=WAIT
    )
    assert response.status_code == 200
    assert response.json()["output"] == large
    assert (await invoked(engine, response.json()["run_id"])).input == large


async def test_start_whose_wait_runs_out_answers_202_with_the_state(
    gateway: Running, engine: Engine
) -> None:
    async def begin(run_id: str) -> None:
        await engine.schedule(run_id, 1, "a-1")

    await engine.on_invoke(begin)
    response = await gateway.client.post(
        "/v1/runs", json={"name": "echo"}, headers={"Prefer": "wait=1"}
    )
    assert response.status_code == 202
    assert response.json()["status"] == "running"
    assert gateway.gateway.waiter._waits == {}


async def test_start_whose_live_end_was_lost_reads_the_log_at_the_end_of_the_wait(
    gateway: Running, engine: Engine
) -> None:
    gateway.gateway.waiter._waits = Forgetful()
    await engine.on_invoke(lambda run_id: play_end(engine, run_id, "late"))
    response = await gateway.client.post(
        "/v1/runs", json={"name": "echo"}, headers={"Prefer": "wait=1"}
    )
    assert (response.status_code, response.json()["output"]) == (200, "late")


class Forgetful(dict[str, Any]):
    """Loses every live copy."""

    def pop(self, _key: str, default: Any = None) -> Any:
        return default


async def test_wait_across_a_reconnection_reads_the_log(gateway: Running, engine: Engine) -> None:
    async def start() -> httpx.Response:
        return await gateway.client.post("/v1/runs", json={"name": "echo"}, headers=WAIT)

    waiting = gateway.gateway.waiter._waits
    gateway.gateway.waiter._waits = Forgetful()
    task = asyncio.create_task(start())
    run_id = await eventually(lambda: next(iter(gateway.gateway.waiter._waits), ""))
    await engine.end(run_id, 1, "x")
    await gateway.gateway.bus.nc.flush()
    assert not task.done()
    waiting.update(gateway.gateway.waiter._waits)
    gateway.gateway.waiter._waits = waiting
    for callback in list(gateway.gateway.bus.on_reconnect):
        callback()
    response = await task
    assert (response.status_code, response.json()["output"]) == (200, "x")


async def test_idempotency_key_gives_the_same_run_on_every_replica(
    gateway: Running, engine: Engine, create_gateway: CreateGateway
) -> None:
    other = await create_gateway()
    headers = {"Idempotency-Key": "order-17"}
    body = {"name": "echo", "input": 1}
    first, *rest = await asyncio.gather(
        *(
            each.client.post("/v1/runs", json=body, headers=headers)
            for each in (gateway, other, gateway, other)
        )
    )
    answers = [first, *rest]
    assert {answer.status_code for answer in answers} == {202}
    expected = run_id_from_key(engine.tenant, "order-17")
    assert {answer.json()["run_id"] for answer in answers} == {expected}
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert sorted(map(str, replayed)) == ["None", "true", "true", "true"]
    assert len(await engine.log(expected)) == 1


async def test_full_log_takes_no_new_run_and_still_returns_earlier_ones(
    gateway: Running, engine: Engine, create_gateway: CreateGateway
) -> None:
    headers = {"Idempotency-Key": "before"}
    body = {"name": "echo", "input": 1}
    first = await gateway.client.post("/v1/runs", json=body, headers=headers)
    full = await create_gateway(log_max_bytes=1)

    refused = await full.client.post("/v1/runs", json=body)
    again = await full.client.post("/v1/runs", json=body, headers=headers)

    assert (refused.status_code, refused.json()["code"]) == (507, "log_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert (again.status_code, again.json()["run_id"]) == (202, first.json()["run_id"])


async def test_idempotency_key_with_wait_returns_the_ended_run(
    gateway: Running, engine: Engine
) -> None:
    await engine.on_invoke(lambda run_id: play_end(engine, run_id, "once"))
    headers = {**WAIT, "Idempotency-Key": "k"}
    first = await gateway.client.post("/v1/runs", json={"name": "echo"}, headers=headers)
    again = await gateway.client.post("/v1/runs", json={"name": "echo"}, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()


async def test_idempotency_key_with_another_body_answers_422(gateway: Running) -> None:
    headers = {"Idempotency-Key": "k"}
    await gateway.client.post("/v1/runs", json={"name": "echo", "input": 1}, headers=headers)
    response = await gateway.client.post(
        "/v1/runs", json={"name": "echo", "input": 2}, headers=headers
    )
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "idempotency_key_reused"
    assert response.json()["errors"][0]["path"] == "Idempotency-Key"


async def test_idempotency_keys_of_two_names_differ_by_their_path(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish("other")
    headers = {"Idempotency-Key": "k"}
    first = await gateway.client.post("/v1/agents/echo/execute", json={}, headers=headers)
    second = await gateway.client.post("/v1/agents/other/execute", json={}, headers=headers)
    assert (first.status_code, second.status_code) == (202, 422)


async def test_name_published_a_moment_ago_starts_at_once(gateway: Running, engine: Engine) -> None:
    await engine.publish("fresh")
    gateway.gateway.published.values.pop(f"{engine.tenant}.fresh", None)
    response = await gateway.client.post("/v1/runs", json={"name": "fresh"})
    assert response.status_code == 202


async def test_name_of_another_kind_is_not_found(gateway: Running, engine: Engine) -> None:
    await engine.publish("flow", DefinitionKind.WORKFLOW)
    assert (await gateway.client.post("/v1/workflows/flow/execute")).status_code == 202
    response = await gateway.client.post("/v1/agents/flow/execute", json={})
    assert response.status_code == 404
    assert response.json()["code"] == "unknown_name"


async def test_session_gives_the_next_run_its_history(gateway: Running, engine: Engine) -> None:
    await engine.on_invoke(lambda run_id: play_end(engine, run_id, "fine"))
    body = {"name": "echo", "session_id": "s1"}
    for text in ("hello", "how are you?"):
        await gateway.client.post("/v1/runs", json={**body, "input": text}, headers=WAIT)
    response = await gateway.client.post(
        "/v1/runs", json={**body, "input": {"message": "bye"}}, headers=WAIT
    )
    fact = await invoked(engine, response.json()["run_id"])
    assert [(message.role, message.content) for message in fact.history] == [
        ("user", "hello"),
        ("assistant", "fine"),
        ("user", "how are you?"),
        ("assistant", "fine"),
    ]
    pointer = await Bucket(engine.bus, subjects.SESSIONS).get(f"{engine.tenant}.s1")
    assert pointer is not None
    assert response.json()["run_id"].encode() in pointer.value


async def test_session_history_is_bounded(engine: Engine, create_gateway: CreateGateway) -> None:
    gateway = await create_gateway(history_messages=3)
    await engine.publish("echo")
    await engine.on_invoke(lambda run_id: play_end(engine, run_id, "ok"))
    answers = [
        await gateway.client.post(
            "/v1/runs",
            json={"name": "echo", "session_id": "s", "input": str(number)},
            headers=WAIT,
        )
        for number in range(4)
    ]
    fact = await invoked(engine, answers[-1].json()["run_id"])
    assert [message.content for message in fact.history] == ["ok", "2", "ok"]


async def test_cancel_states_the_request_once(gateway: Running, engine: Engine) -> None:
    run_id = (await gateway.client.post("/v1/runs", json={"name": "echo"})).json()["run_id"]
    first = await gateway.client.post(f"/v1/runs/{run_id}/cancel", json={"reason": "enough"})
    second = await gateway.client.post(f"/v1/runs/{run_id}/cancel")
    assert (first.status_code, second.status_code) == (202, 202)
    facts = [fact_type(entry.fact) for entry in await engine.log(run_id)]
    assert facts == ["run.invoked", "run.cancel_requested"]


async def test_cancel_of_ended_run_answers_200(gateway: Running, engine: Engine) -> None:
    run_id = (await gateway.client.post("/v1/runs", json={"name": "echo"})).json()["run_id"]
    await engine.end(run_id, 1)
    response = await gateway.client.post(f"/v1/runs/{run_id}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "done")


async def test_trace_of_the_client_goes_on_in_the_log(gateway: Running, engine: Engine) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = await gateway.client.post(
        "/v1/runs", json={"name": "echo"}, headers={"traceparent": parent}
    )
    (entry,) = await engine.log(response.json()["run_id"])
    assert entry.traceparent is not None
    assert entry.traceparent[:36] == parent[:36]


async def test_older_invoke_answers_run_and_trace(gateway: Running, engine: Engine) -> None:
    response = await gateway.client.post("/invoke", json={"name": "echo", "input": "hi"})
    assert response.status_code == 202
    (entry,) = await engine.log(response.json()["run_id"])
    assert entry.traceparent is not None
    assert response.json()["trace_id"] == entry.traceparent.split("-")[1]


async def test_older_internal_invoke_answers_its_own_shape(
    gateway: Running, engine: Engine
) -> None:
    response = await gateway.client.post(
        "/internal/invoke",
        json={
            "session_id": "s9",
            "agent_id": "echo",
            "input_message": {"role": "user", "content": "hi"},
        },
    )
    assert response.status_code == 202
    body = response.json()
    assert set(body) == {"run_id", "session_id", "agent_id"}
    assert (body["session_id"], body["agent_id"]) == ("s9", "echo")
    fact = await invoked(engine, body["run_id"])
    assert (fact.input, fact.session_id) == ("hi", "s9")


async def test_events_page_by_page_equal_the_log(gateway: Running, engine: Engine) -> None:
    run_id = (await gateway.client.post("/v1/runs", json={"name": "echo"})).json()["run_id"]
    await engine.play_turn(run_id)
    path = f"/v1/runs/{run_id}/events"
    whole = (await gateway.client.get(path)).json()
    assert whole["next_cursor"] is None
    pages: list[Any] = []
    after: str | None = "0"
    while after is not None:
        page = (await gateway.client.get(path, params={"after": after, "limit": 1})).json()
        # Exactly the limit, although the first fact has two events.
        assert len(page["items"]) == 1
        pages += page["items"]
        after = page["next_cursor"]
    assert pages == whole["items"]
    first = (await gateway.client.get(path, params={"limit": 1})).json()
    place = {"after": first["next_cursor"], "types": "user_input", "limit": 1}
    one_type = (await gateway.client.get(path, params=place)).json()
    assert [item["type"] for item in one_type["items"]] == ["user_input"]
    assert one_type["next_cursor"] is None
    refused = await gateway.client.get(path, params={"after": "1.x"})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_cursor")
    assert [item["type"] for item in pages][-1] == "run_done"


async def test_older_paths_of_executions_answer_as_the_newer(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish("flow", DefinitionKind.WORKFLOW)
    started = await gateway.client.post("/v1/workflows/workflows/execute", json={"name": "flow"})
    assert started.status_code == 202
    run_id = started.json()["run_id"]
    older = await gateway.client.get(f"/v1/workflows/executions/{run_id}")
    assert older.json() == (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    cancelled = await gateway.client.post(f"/v1/workflows/executions/{run_id}/cancel")
    assert cancelled.status_code == 202
