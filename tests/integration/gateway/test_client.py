"""The Python client against a gateway that listens."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from penstock.client import AsyncClient, Client, ProblemError, UnreachableError
from penstock.runs.events import CLIENT_EVENT, ClientEvent, events_of
from penstock_gateway.runs.stream import Streams
from tests.integration.gateway.conftest import CreateGateway, Engine, Running, asked
from tests.support.waiting import eventually


async def expected(engine: Engine, run_id: str) -> list[ClientEvent]:
    """Return the events of a run's log as a client parses them."""
    return [
        CLIENT_EVENT.validate_json(CLIENT_EVENT.dump_json(event))
        for entry in await engine.log(run_id)
        for event in events_of(entry)
    ]


def of_log(events: list[ClientEvent]) -> list[ClientEvent]:
    return [event for event in events if event.type != "agent_stream_delta"]


def texts(events: list[ClientEvent]) -> list[object]:
    return [event.data["text"] for event in events if event.type == "agent_stream_delta"]


async def test_start_wait_and_get_of_both_clients_agree(gateway: Running, engine: Engine) -> None:
    await engine.on_invoke(engine.play_turn)
    async with AsyncClient(gateway.url) as client:
        started = await client.start("echo", {"q": 1}, tags={"team": "a"}, idempotency_key="k")
        again = await client.start("echo", {"q": 1}, tags={"team": "a"}, idempotency_key="k")
        assert again.run_id == started.run_id
        ended = await client.wait(started.run_id)
        assert (ended.status, ended.input, ended.output) == ("done", {"q": 1}, "hello")

    def blocking() -> None:
        with Client(gateway.url) as client:
            assert client.get(started.run_id) == ended
            assert client.start("echo", wait_seconds=20).output == "hello"

    await asyncio.to_thread(blocking)


def cut(streams: Streams, seen: list[ClientEvent], count: int) -> bool:
    """Hang up on the client that has seen ``count`` pieces of text, at its only connection."""
    assert len(texts(seen)) == count
    (stream,) = streams.open_streams
    stream.hang_up()
    return True


@pytest.mark.parametrize("cuts", [1, 3])
async def test_followed_run_shows_each_event_once_across_cut_connections(
    gateway: Running, engine: Engine, cuts: int
) -> None:
    async with AsyncClient(gateway.url) as client:
        run_id = (await client.start("echo")).run_id
        seen: list[ClientEvent] = []

        async def follow() -> None:
            async for event in client.follow(run_id):
                seen.append(event)  # noqa: PERF401 - the test looks at it meanwhile

        following = asyncio.create_task(follow())
        await engine.schedule(run_id, 1, "a-1")
        streams = gateway.gateway.streams
        for index in range(cuts):
            await engine.delta(run_id, "a-1", index, f"{index} ")
            await eventually(partial(cut, streams, seen, index + 1))
        await engine.result(run_id, "a-1", "x", deltas=cuts)
        await engine.end(run_id, 2, "x")
        await asyncio.wait_for(following, 30)
    assert of_log(seen) == await expected(engine, run_id)
    assert texts(seen) == [f"{n} " for n in range(cuts)]


async def test_blocking_client_follows_from_an_event_on(gateway: Running, engine: Engine) -> None:
    def start() -> str:
        with Client(gateway.url) as client:
            return client.start("echo").run_id

    def follow(after: int) -> list[ClientEvent]:
        with Client(gateway.url) as client:
            return list(client.follow(run_id, after=after))

    run_id = await asyncio.to_thread(start)
    await engine.play_turn(run_id)
    all_events = await asyncio.to_thread(follow, 0)
    assert of_log(all_events) == await expected(engine, run_id)
    first = next(event.id for event in all_events if event.id is not None)
    rest = [event for event in all_events if event.id is None or event.id > first][1:]
    assert await asyncio.to_thread(follow, first) == rest
    last = max(event.id for event in all_events if event.id is not None)
    assert await asyncio.to_thread(follow, last) == []


async def test_control_and_approvals_return_what_the_gateway_stored(
    gateway: Running, engine: Engine
) -> None:
    async with AsyncClient(gateway.url) as client:
        run_id = (await client.start("echo")).run_id
        sent = await client.signal(run_id, "paid", {"amount": 3}, idempotency_key="s")
        assert (sent.run_id, sent.name, sent.repeated) == (run_id, "paid", False)
        assert (await client.signal(run_id, "paid", {"amount": 3}, idempotency_key="s")).repeated
        await engine.node_record(run_id, 1, asked("pay-a", "approval", arguments={"amount": 250}))
        await eventually(lambda: gateway.gateway.pending)
        (pending,) = [one async for one in client.approvals(run_id=run_id)]
        assert (pending.record_id, pending.arguments) == ("pay-a", {"amount": 250})
        approved = await client.approve(run_id, "pay-a", digest=pending.digest, reason="fine")
        assert approved.decided is not None
        assert (approved.status, approved.decided.reason) == ("approved", "fine")
        assert (await client.pause(run_id, reason="lunch")).run_id == run_id
        assert (await client.resume(run_id)).run_id == run_id
        assert (await client.cancel(run_id, reason="over")).run_id == run_id


async def test_refusals_carry_code_and_findings(gateway: Running) -> None:
    async with AsyncClient(gateway.url) as client:
        with pytest.raises(ProblemError) as invalid:
            await client.start("echo", priority=1000)
    assert (invalid.value.status, invalid.value.title) == (422, "Unprocessable Content")
    assert invalid.value.code == "invalid_request"
    assert [finding.path for finding in invalid.value.findings] == ["priority"]


async def test_missing_key_is_refused_as_401(create_gateway: CreateGateway) -> None:
    gateway = await create_gateway(auth_required=True)
    async with AsyncClient(gateway.url) as client:
        with pytest.raises(ProblemError) as caught:
            await client.start("echo")
    assert caught.value.status == 401


async def test_refused_connection_is_reported_with_the_address() -> None:
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(UnreachableError, match=r"no gateway at http://127\.0\.0\.1:9"):
            await client.get("R")
