"""Runs with many steps: pages, and reading again at the cost of new facts only."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

import penstock_gateway.runs.read
from penstock.bus.reader import LogReader, Stored
from penstock.contracts import subjects
from penstock.contracts.archive import ArchivedFact, FactPage, RunFacts
from penstock.contracts.ids import shard_of
from penstock.contracts.rpc import Reply
from tests.integration.gateway.conftest import SHARDS, CreateGateway, Engine, Running, begin

STEPS = 12


@pytest.fixture(autouse=True)
def few_facts_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penstock_gateway.runs.read, "MANY_FACTS", STEPS)


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of facts of each read of a run."""
    numbers: list[int] = []
    stored = LogReader.stored

    async def counted(self: LogReader, *args: object, **options: object) -> list[Stored]:
        found = await stored(self, *args, **options)  # type: ignore[arg-type]
        numbers.append(len(found))
        return found

    monkeypatch.setattr(LogReader, "stored", counted)
    return numbers


async def large_run(gateway: Running, engine: Engine) -> str:
    await engine.publish("echo")
    run_id = await begin(gateway)
    await asyncio.gather(*(engine.schedule(run_id, n, f"s{n}") for n in range(1, STEPS + 1)))
    return run_id


async def test_steps_come_in_pages(create_gateway: CreateGateway, engine: Engine) -> None:
    gateway = await create_gateway()
    run_id = await large_run(gateway, engine)
    params: dict[str, str] = {"steps_limit": "5"}
    names: list[str] = []

    while True:
        run = (await gateway.client.get(f"/v1/runs/{run_id}", params=params)).json()
        names += [step["step_id"] for step in run["steps"]]
        assert run["step_counts"] == {"scheduled": STEPS}
        if run["next_steps_cursor"] is None:
            break
        params["steps_cursor"] = run["next_steps_cursor"]

    assert names == [f"s{n}" for n in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("params", "code", "path"),
    [
        ({"steps_limit": "0"}, "invalid_request", "steps_limit"),
        ({"steps_limit": "000000001000000"}, "invalid_request", "steps_limit"),
        ({"step_limit": "5"}, "invalid_request", "query.step_limit"),
        ({"steps_cursor": "later"}, "invalid_cursor", "steps_cursor"),
    ],
)
async def test_page_that_cannot_be_is_a_problem(
    create_gateway: CreateGateway, engine: Engine, params: dict[str, str], code: str, path: str
) -> None:
    gateway = await create_gateway()
    run_id = await large_run(gateway, engine)

    response = await gateway.client.get(f"/v1/runs/{run_id}", params=params)

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["code"], problem["errors"][0]["path"]) == (code, path)


async def test_large_run_is_read_again_by_its_new_facts(
    create_gateway: CreateGateway, engine: Engine, folded: list[int]
) -> None:
    gateway = await create_gateway()
    run_id = await large_run(gateway, engine)
    first = (await gateway.client.get(f"/v1/runs/{run_id}")).json()

    await engine.result(run_id, "s3", "out")
    second = (await gateway.client.get(f"/v1/runs/{run_id}")).json()

    assert folded == [STEPS + 1, 1]
    assert first["step_counts"] == {"scheduled": STEPS}
    assert second["step_counts"] == {"scheduled": STEPS - 1, "succeeded": 1}
    assert second["steps"][2]["output"] == "out"
    earlier = await gateway.client.get(f"/v1/runs/{run_id}", params={"at_seq": first["last_seq"]})
    assert earlier.json()["step_counts"] == first["step_counts"]


async def test_events_come_in_pages_without_a_read_of_the_whole_run(
    create_gateway: CreateGateway, engine: Engine, folded: list[int]
) -> None:
    gateway = await create_gateway()
    run_id = await large_run(gateway, engine)
    params: dict[str, Any] = {"limit": 5, "types": "agent_invoke_started"}
    seen: list[str] = []

    while True:
        page = (await gateway.client.get(f"/v1/runs/{run_id}/events", params=params)).json()
        seen += [event["step_id"] for event in page["items"]]
        if page["next_cursor"] is None:
            break
        params["after"] = page["next_cursor"]

    assert sorted(seen) == sorted(f"s{n}" for n in range(1, STEPS + 1))
    assert folded == []


async def test_events_of_a_run_that_does_not_exist_are_not_found(
    create_gateway: CreateGateway,
) -> None:
    gateway = await create_gateway()

    response = await gateway.client.get("/v1/runs/none/events")

    assert (response.status_code, response.json()["code"]) == (404, "run_not_found")


async def play_archive(engine: Engine, run_id: str) -> tuple[dict[int, Stored], list[int]]:
    """Move a run from the log to an archive; return its facts, and the numbers of facts asked."""
    shard = shard_of(run_id, SHARDS)
    held = {one.seq: one for one in await engine.reader.stored(engine.tenant, shard, run_id)}
    replies: list[int] = []

    async def respond(message: Msg) -> None:
        request = RunFacts.model_validate_json(message.data)
        items = tuple(
            ArchivedFact(seq=one.seq, subject=one.subject, body=one.body.decode())
            for one in held.values()
            if one.seq > request.after and request.run_id == run_id
        )
        replies.append(len(items))
        page = FactPage(items=items).model_dump(mode="json")
        await message.respond(Reply(ok=True, result=page).model_dump_json().encode())

    await engine.bus.subscribe(subjects.rpc("archive", "run_facts"), respond)
    subject = subjects.run_filter(engine.tenant, shard, run_id)
    await engine.bus.api(f"STREAM.PURGE.{subjects.RUNS}", {"filter": subject})
    return held, replies


async def test_large_run_in_the_archive_is_read_once_until_it_is_deleted(
    create_gateway: CreateGateway, engine: Engine
) -> None:
    gateway = await create_gateway()
    run_id = await large_run(gateway, engine)
    live = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    held, replies = await play_archive(engine, run_id)
    gateway.gateway.runs._large.clear()

    first = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    second = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    held.clear()
    third = await gateway.client.get(f"/v1/runs/{run_id}")

    assert first == second == live
    assert replies == [STEPS + 1, 1, 0, 0]
    assert (third.status_code, third.json()["code"]) == (404, "run_not_found")


async def test_large_run_of_another_tenant_is_not_found(
    create_gateway: CreateGateway, engine: Engine
) -> None:
    gateway = await create_gateway()
    run_id = await large_run(gateway, engine)
    assert (await gateway.client.get(f"/v1/runs/{run_id}")).status_code == 200

    assert await gateway.gateway.runs._known("somebody-else", run_id, 0) is None


@pytest.mark.parametrize(
    ("path", "params", "allowed"),
    [
        ("events", {"cursor": "5"}, "after, limit, types"),
        ("steps", {"status": "done"}, "'succeeded'"),
    ],
)
async def test_page_with_an_unknown_parameter_or_status_names_the_allowed_ones(
    create_gateway: CreateGateway,
    engine: Engine,
    path: str,
    params: dict[str, str],
    allowed: str,
) -> None:
    gateway = await create_gateway()
    await engine.publish("echo")
    run_id = await begin(gateway)

    reply = await gateway.client.get(f"/v1/runs/{run_id}/{path}", params=params)

    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert allowed in reply.json()["errors"][0]["allowed"]
