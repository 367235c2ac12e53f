"""A registry in this process, on a real bus and on either database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel, SecretStr

from penstock.bus.connection import Bus, connect
from penstock.contracts.errors import TransientError
from penstock.contracts.rpc import ListRunners, Runners
from penstock.embedded import NatsServer
from penstock.rpc import call
from penstock.settings import CoreSettings
from penstock_registry.main import serve
from penstock_registry.settings import RegistrySettings
from tests.support.waiting import eventually

ReplyT = TypeVar("ReplyT", bound=BaseModel)

Ask = Callable[[str, BaseModel, type[Any]], Awaitable[Any]]
Start = Callable[..., Awaitable[Callable[[], Awaitable[None]]]]


@asynccontextmanager
async def running(bus: Bus, settings: RegistrySettings) -> AsyncIterator[None]:
    """Serve until the block is left; any failure of the registry fails the test."""
    ending = asyncio.Event()
    task = asyncio.create_task(serve(settings, until=ending))

    async def answers() -> Runners:
        if task.done():
            await task
        try:
            return await call(bus, "registry", "list_runners", ListRunners(tenant="probe"), Runners)
        except TransientError as error:
            raise AssertionError(error.code) from error

    try:
        await eventually(answers)
        yield
    finally:
        ending.set()
        await asyncio.wait_for(task, 30)


@pytest.fixture
def tenant() -> str:
    return f"t_{uuid.uuid4().hex[:16]}"


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    opened = await connect(CoreSettings(nats_url=nats_server.url), name="test")
    yield opened
    await opened.close()


@pytest.fixture
def ask(bus: Bus) -> Ask:
    """Ask the registry as any other process does."""

    async def send(verb: str, request: BaseModel, reply: type[ReplyT]) -> ReplyT:
        return await call(bus, "registry", verb, request, reply)

    return send


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture
def create_settings(nats_server: NatsServer) -> Callable[..., RegistrySettings]:
    def create(url: str, **options: Any) -> RegistrySettings:
        return RegistrySettings(
            **{
                "nats_url": nats_server.url,
                "database_url": SecretStr(url),
                "metrics_port": -1,
                **options,
            }
        )

    return create


@pytest.fixture
async def start_registry(
    bus: Bus, create_settings: Callable[..., RegistrySettings]
) -> AsyncIterator[Start]:
    """Start a registry on a database; returns what stops it before the test ends."""
    async with AsyncExitStack() as stack:

        async def start(url: str, **options: Any) -> Callable[[], Awaitable[None]]:
            own = await stack.enter_async_context(AsyncExitStack())
            await own.enter_async_context(running(bus, create_settings(url, **options)))
            return own.aclose

        yield start


@pytest.fixture
async def registry(start_registry: Start, database_url: str) -> None:
    """A registry on SQLite, then one on PostgreSQL."""
    await start_registry(database_url)
