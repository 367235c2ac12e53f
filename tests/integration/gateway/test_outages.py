"""A gateway whose bus, or whose own process, goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from penstock.bus.connection import connect
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from penstock_gateway.settings import GatewaySettings
from tests.integration.gateway.conftest import CreateGateway, Engine, Running, running
from tests.integration.gateway.sse import all_events, of_log, read_sse, texts, without_deltas
from tests.support.waiting import eventually

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def own_server(create_nats_server: Callable[..., NatsServer]) -> NatsServer:
    return create_nats_server()


@pytest.fixture
async def own_engine(own_server: NatsServer, tenant: str) -> AsyncIterator[Engine]:
    bus = await connect(CoreSettings(nats_url=own_server.url), name="test engine")
    engine = Engine(bus, tenant)
    await engine.start()
    await engine.publish("echo")
    yield engine
    await engine.writer.close()
    await bus.close()


@pytest.fixture
async def own_gateway(
    own_server: NatsServer, own_engine: Engine, tenant: str
) -> AsyncIterator[Running]:
    settings = GatewaySettings(
        nats_url=own_server.url, port=0, auth_required=False, dev_tenant=tenant, metrics_port=-1
    )
    async with running(settings) as gateway:
        yield gateway


async def test_bus_that_is_away_answers_503_and_serves_again_when_it_is_back(
    own_server: NatsServer, own_gateway: Running
) -> None:
    client = own_gateway.client
    assert (await client.post("/v1/runs", json={"name": "echo"})).status_code == 202
    await asyncio.to_thread(own_server.kill)
    await eventually(lambda: not own_gateway.gateway.bus.nc.is_connected)
    response = await client.post("/v1/runs", json={"name": "echo"})
    assert (response.status_code, response.json()["code"]) == (503, "bus_unavailable")
    assert response.headers["retry-after"] == "1"
    assert (await client.get("/health")).status_code == 503
    await asyncio.to_thread(own_server.start)

    async def starts() -> bool:
        return (await client.post("/v1/runs", json={"name": "echo"})).status_code == 202

    assert await eventually(starts)


async def test_stream_across_a_restart_of_the_bus_shows_everything(
    own_server: NatsServer, own_gateway: Running, own_engine: Engine
) -> None:
    engine = own_engine
    started = await own_gateway.client.post("/v1/runs", json={"name": "echo"})
    run_id = started.json()["run_id"]
    async with own_gateway.client.stream(
        "GET", f"/v1/runs/{run_id}/events", headers=STREAM
    ) as response:
        stream = read_sse(response)
        seen = [await anext(stream) for _ in range(2)]
        await engine.schedule(run_id, 1, "a-1")
        seen.append(await anext(stream))
        await asyncio.to_thread(own_server.restart)
        await eventually(lambda: engine.bus.nc.is_connected)
        # The gateway may still be away: these facts reach it by the log alone.
        await engine.result(run_id, "a-1", "x")
        await engine.end(run_id, 2, "x")
        async with asyncio.timeout(30):
            seen += [event async for event in stream]
    assert without_deltas(seen) == of_log(await engine.log(run_id))


async def test_wait_across_a_restart_of_the_bus_gets_its_run(
    own_server: NatsServer, own_gateway: Running, own_engine: Engine
) -> None:
    task = asyncio.create_task(
        own_gateway.client.post("/v1/runs", json={"name": "echo"}, headers={"Prefer": "wait=60"})
    )
    waiting = own_gateway.gateway.waiter._waits
    run_id = await eventually(lambda: next(iter(waiting), ""))
    await eventually(lambda: own_engine.log(run_id))
    await asyncio.to_thread(own_server.restart)
    await eventually(lambda: own_engine.bus.nc.is_connected)
    await own_engine.end(run_id, 1, "x")
    response = await task
    assert (response.status_code, response.json()["output"]) == (200, "x")


async def test_stopping_gateway_breaks_streams_off_and_another_goes_on(
    gateway: Running, engine: Engine, create_gateway: CreateGateway
) -> None:
    other = await create_gateway()
    started = await gateway.client.post("/v1/runs", json={"name": "echo"})
    run_id = started.json()["run_id"]
    await engine.schedule(run_id, 1, "a-1")
    first = []
    with pytest.raises(httpx.RemoteProtocolError):
        async with gateway.client.stream(
            "GET", f"/v1/runs/{run_id}/events", headers=STREAM
        ) as response:
            async for event in read_sse(response):
                first.append(event)
                if event.type == "agent_invoke_started":
                    gateway.gateway.drain()
    await engine.delta(run_id, "a-1", 0, "x")
    await engine.result(run_id, "a-1", "x", deltas=1)
    await engine.end(run_id, 2)
    rest = await all_events(
        await other.client.get(
            f"/v1/runs/{run_id}/events",
            headers={**STREAM, "Last-Event-ID": str(first[-1].id)},
        )
    )
    assert without_deltas(first) + without_deltas(rest) == of_log(await engine.log(run_id))
    assert texts(rest) == ["x"]


async def test_stopping_gateway_tells_those_who_wait_how_far_their_runs_are(
    gateway: Running,
) -> None:
    task = asyncio.create_task(
        gateway.client.post("/v1/runs", json={"name": "echo"}, headers={"Prefer": "wait=60"})
    )
    waits = gateway.gateway.waiter._waits
    run_id = await eventually(lambda: next(iter(waits), ""))
    await eventually(lambda: gateway.gateway.reader.read_fact(started_subject(gateway, run_id)))
    gateway.gateway.drain()
    response = await asyncio.wait_for(task, 30)
    assert (response.status_code, response.json()["run_id"]) == (202, run_id)


def started_subject(gateway: Running, run_id: str) -> str:
    tenant = gateway.gateway.settings.dev_tenant
    return f"{gateway.gateway.runs.prefix(tenant, run_id)}.in.invoke"
