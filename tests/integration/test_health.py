import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from penstock import clock
from penstock.telemetry.health import OFF, Canary, HealthServer
from tests.support.waiting import eventually

StartHealth = Callable[..., Awaitable[HealthServer]]


@pytest.fixture
async def start_health() -> AsyncIterator[StartHealth]:
    servers: list[HealthServer] = []

    async def start(canary: Canary | None = None, frozen_seconds: float = 5.0) -> HealthServer:
        server = HealthServer(canary=canary, frozen_seconds=frozen_seconds)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()


async def get(server: HealthServer, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        return await client.get(path)


async def test_paths_of_a_healthy_process_answer(start_health: StartHealth) -> None:
    server = await start_health()

    assert (await get(server, "/healthz")).json() == {
        "status": "ok",
        "clock_offset_seconds": round(clock.offset_seconds(), 3),
    }
    assert (await get(server, "/readyz?verbose")).status_code == 200
    assert "penstock_bus_commit_seconds" in (await get(server, "/metrics")).text
    assert (await get(server, "/else")).status_code == 404


async def test_frozen_loop_is_reported_from_the_thread(start_health: StartHealth) -> None:
    server = await start_health(frozen_seconds=0.6)

    def freeze_and_ask() -> httpx.Response:
        time.sleep(0.7)  # the loop stands still on purpose
        return httpx.get(f"http://127.0.0.1:{server.port}/healthz")

    frozen = freeze_and_ask()

    assert frozen.status_code == 503
    assert frozen.json()["reason"].startswith("event loop has not ticked for")

    async def recovered() -> bool:
        return (await get(server, "/healthz")).status_code == 200

    assert await eventually(recovered)


async def test_canary_that_fails_makes_the_process_unready(start_health: StartHealth) -> None:
    async def canary() -> None:
        raise ConnectionError("no bus")

    server = await start_health(canary)

    answer = await get(server, "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "failing",
        "clock_offset_seconds": round(clock.offset_seconds(), 3),
        "reason": "ConnectionError: no bus",
    }
    assert (await get(server, "/healthz")).status_code == 200


async def test_canary_that_hangs_is_given_up_and_cancelled(start_health: StartHealth) -> None:
    cancelled = asyncio.Event()

    async def canary() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    server = await start_health(canary)

    assert (await get(server, "/readyz")).json()["reason"] == "canary took more than 1 s"
    await asyncio.wait_for(cancelled.wait(), 30)


async def test_canary_runs_on_the_watched_loop(start_health: StartHealth) -> None:
    seen: list[asyncio.AbstractEventLoop] = []

    async def canary() -> None:
        seen.append(asyncio.get_running_loop())

    server = await start_health(canary)

    assert (await get(server, "/readyz")).status_code == 200
    assert seen == [asyncio.get_running_loop()]


async def test_port_off_serves_nothing() -> None:
    server = HealthServer(port=OFF)

    await server.start()
    assert server.port == OFF
    await server.stop()


async def test_stop_frees_the_port_and_may_be_repeated(start_health: StartHealth) -> None:
    server = await start_health()
    port = server.port

    await server.stop()
    await server.stop()

    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


async def test_port_taken_is_an_error_and_leaves_nothing(start_health: StartHealth) -> None:
    taken = await start_health()
    second = HealthServer(port=taken.port)

    with pytest.raises(OSError, match="in use"):
        await second.start()

    assert second.port == OFF
    await second.stop()
