"""Event streams against a real server: what a client sees equals the log, whatever happens."""

from __future__ import annotations

import asyncio

from penstock.contracts.facts import StepKind
from tests.integration.gateway.conftest import CreateGateway, Engine, Running
from tests.integration.gateway.sse import (
    DELTA,
    Sse,
    all_events,
    of_log,
    read_sse,
    texts,
    without_deltas,
)
from tests.support.waiting import eventually

STREAM = {"Accept": "text/event-stream"}


async def start_run(gateway: Running, **body: object) -> str:
    response = await gateway.client.post("/v1/runs", json={"name": "echo", **body})
    assert response.status_code == 202, response.text
    return str(response.json()["run_id"])


async def test_stream_started_by_post_shows_log_and_every_delta(
    gateway: Running, engine: Engine
) -> None:
    await engine.on_invoke(lambda run_id: engine.play_turn(run_id, pieces=50))
    async with gateway.client.stream(
        "POST", "/v1/runs", json={"name": "echo", "input": "hi"}, headers=STREAM
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        run_id = response.headers["location"].rpartition("/")[2]
        events = await all_events(response)
    assert without_deltas(events) == of_log(await engine.log(run_id))
    assert texts(events) == [f"p{index} " for index in range(50)]
    assert [event.id for event in events if event.type == DELTA] == [None] * 50
    types = [event.type for event in events]
    assert types.index("agent_invoke_started") < types.index(DELTA)
    assert types[-2:] == ["agent_invoke_done", "run_done"]


async def test_stream_of_ended_run_replays_log_with_deltas(
    gateway: Running, engine: Engine
) -> None:
    run_id = await start_run(gateway)
    await engine.play_turn(run_id, pieces=7)
    response = await gateway.client.get(f"/v1/runs/{run_id}/events", headers=STREAM)
    events = await all_events(response)
    assert without_deltas(events) == of_log(await engine.log(run_id))
    assert texts(events) == [f"p{index} " for index in range(7)]


async def test_stream_joined_midway_has_history_then_live(gateway: Running, engine: Engine) -> None:
    run_id = await start_run(gateway)
    await engine.schedule(run_id, 1, "a-1")
    await engine.delta(run_id, "a-1", 0, "one ", "two ")
    async with gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers=STREAM
    ) as response:
        stream = read_sse(response)
        seen = [await anext(stream) for _ in range(5)]
        assert texts(seen) == ["one ", "two "]
        await engine.delta(run_id, "a-1", 1, "two ", "three ")
        await engine.result(run_id, "a-1", "x", deltas=3)
        await engine.end(run_id, 2)
        seen += [event async for event in stream]
    assert without_deltas(seen) == of_log(await engine.log(run_id))
    assert texts(seen) == ["one ", "two ", "three "]


async def test_stream_resumes_by_last_event_id_on_another_replica(
    gateway: Running, engine: Engine, create_gateway: CreateGateway
) -> None:
    other = await create_gateway()
    run_id = await start_run(gateway)
    await engine.schedule(run_id, 1, "t-1", StepKind.TOOL)
    first: list[Sse] = []
    async with gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers=STREAM
    ) as response:
        async for event in read_sse(response):
            first.append(event)
            if event.type == "tool_call_started":
                break
    await engine.result(run_id, "t-1", 42, kind=StepKind.TOOL)
    await engine.schedule(run_id, 2, "a-1")
    await engine.delta(run_id, "a-1", 0, "x")
    await engine.result(run_id, "a-1", "y", deltas=1)
    await engine.end(run_id, 3, "y")
    last = max(event.id for event in first if event.id is not None)
    response2 = await other.client.get(
        f"/v1/runs/{run_id}/events", headers={**STREAM, "Last-Event-ID": str(last)}
    )
    rest = await all_events(response2)
    assert without_deltas(first) + without_deltas(rest) == of_log(await engine.log(run_id))
    assert texts(rest) == ["x"]


async def test_stream_after_the_end_finishes_at_once(gateway: Running, engine: Engine) -> None:
    run_id = await start_run(gateway)
    await engine.play_turn(run_id)
    last = (await engine.log(run_id))[-1].seq
    response = await gateway.client.get(
        f"/v1/runs/{run_id}/events", params={"after": last}, headers=STREAM
    )
    assert await all_events(response) == []


async def test_browser_that_has_all_of_an_ended_run_stops(gateway: Running, engine: Engine) -> None:
    run_id = await start_run(gateway)
    path = f"/v1/runs/{run_id}/events"
    await engine.play_turn(run_id)
    facts = await engine.log(run_id)
    for seq, status in ((facts[0].seq, 200), (facts[-1].seq, 204), (facts[-1].seq + 9, 204)):
        response = await gateway.client.get(path, headers={**STREAM, "Last-Event-ID": str(seq)})
        assert response.status_code == status
        assert (status == 204) == (response.content == b"")
    page = await gateway.client.get(path, headers={"Last-Event-ID": str(facts[-1].seq)})
    assert (page.status_code, page.json()["items"]) == (200, [])


async def test_stream_with_lost_delta_is_refilled_from_the_stream(
    gateway: Running, engine: Engine
) -> None:
    run_id = await start_run(gateway)
    async with gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers=STREAM
    ) as response:
        stream = read_sse(response)
        seen = [await anext(stream) for _ in range(2)]
        await engine.schedule(run_id, 1, "a-1")
        seen.append(await anext(stream))
        (live,) = gateway.gateway.streams.open_streams
        # The live copy of a batch is lost on its way, as a reconnection may lose it.
        collect, live._collect = live._collect, lambda *_: None  # type: ignore[method-assign]
        await engine.delta(run_id, "a-1", 0, "one ", "two ")
        await engine.bus.nc.flush()
        await gateway.gateway.bus.nc.flush()
        live._collect = collect  # type: ignore[method-assign]
        await engine.delta(run_id, "a-1", 2, "three ")
        await engine.result(run_id, "a-1", "x", deltas=3)
        await engine.end(run_id, 2)
        seen += [event async for event in stream]
    assert texts(seen) == ["one ", "two ", "three "]
    assert without_deltas(seen) == of_log(await engine.log(run_id))


async def test_stream_with_lost_facts_is_completed_before_the_end(
    gateway: Running, engine: Engine
) -> None:
    run_id = await start_run(gateway)
    async with gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers=STREAM
    ) as response:
        stream = read_sse(response)
        seen = [await anext(stream) for _ in range(2)]
        (live,) = gateway.gateway.streams.open_streams
        collect, live._collect = live._collect, lambda *_: None  # type: ignore[method-assign]
        await engine.schedule(run_id, 1, "a-1")
        await engine.result(run_id, "a-1", "x")
        await engine.bus.nc.flush()
        await gateway.gateway.bus.nc.flush()
        live._collect = collect  # type: ignore[method-assign]
        await engine.end(run_id, 2)
        seen += [event async for event in stream]
    assert without_deltas(seen) == of_log(await engine.log(run_id))


async def test_stream_of_slow_client_overflows_and_loses_nothing(
    engine: Engine, create_gateway: CreateGateway
) -> None:
    gateway = await create_gateway(sse_buffer_bytes=4096)
    await engine.publish("echo")
    run_id = await start_run(gateway)
    await engine.schedule(run_id, 1, "a-1")
    # A client that reads nothing while far more than all buffers hold comes in.
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url[-5:].strip(":/")))
    writer.write(
        f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Accept: text/event-stream\r\n\r\n".encode()
    )
    await eventually(lambda: gateway.gateway.streams.open_streams)
    (live,) = gateway.gateway.streams.open_streams
    pieces, text = 3000, "x" * 2000
    for index in range(pieces):
        await engine.delta(run_id, "a-1", index, text)
    await engine.result(run_id, "a-1", "done", deltas=pieces)
    await engine.end(run_id, 2)
    await eventually(lambda: live._overflowed, within=30)
    assert live._buffered_bytes <= 4096
    received = bytearray()
    async with asyncio.timeout(30):
        while not received.endswith(b"0\r\n\r\n"):
            data = await reader.read(1 << 20)
            assert data, "the stream broke off"
            received += data
    writer.close()
    assert received.count(b"event: agent_stream_delta") == pieces
    assert received.count(b"event: run_done") == 1


async def test_stream_filtered_by_types_shows_only_those(gateway: Running, engine: Engine) -> None:
    run_id = await start_run(gateway)
    await engine.play_turn(run_id)
    response = await gateway.client.get(
        f"/v1/runs/{run_id}/events", params={"types": "run_started,run_done"}, headers=STREAM
    )
    assert [event.type for event in await all_events(response)] == ["run_started", "run_done"]


async def test_silent_stream_is_kept_alive_by_comments(
    engine: Engine, create_gateway: CreateGateway
) -> None:
    gateway = await create_gateway(sse_keepalive_seconds=0.05)
    await engine.publish("echo")
    run_id = await start_run(gateway)
    comments, block = 0, list[str]()
    async with gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers=STREAM
    ) as response:
        async for line in response.aiter_lines():
            comments += line.startswith(":")
            # An empty line ends an event, at which some clients make one also of nothing.
            assert line or any(one.startswith("data:") for one in block)
            block = [*block, line] if line else []
            if comments == 3:
                break
    assert comments == 3


async def test_stream_whose_client_left_is_closed(gateway: Running) -> None:
    run_id = await start_run(gateway)
    async with gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers=STREAM
    ) as response:
        stream = read_sse(response)
        await anext(stream)
        assert len(gateway.gateway.streams.open_streams) == 1
    await eventually(lambda: not gateway.gateway.streams.open_streams)


async def test_older_path_of_events_answers_the_same(gateway: Running, engine: Engine) -> None:
    run_id = await start_run(gateway)
    await engine.play_turn(run_id)
    older = await gateway.client.get(f"/runs/{run_id}/events")
    newer = await gateway.client.get(f"/v1/runs/{run_id}/events")
    assert older.json() == newer.json()
