"""What the registry does for a bus that lost or never had its buckets."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock import db
from penstock.bus.connection import Bus, connect
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError
from penstock.contracts.plan import PLAN, PublishedVersion
from penstock.contracts.rpc import (
    AgentRegistration,
    Applied,
    ApplyDocuments,
    BeatAgent,
    CreatedKey,
    CreateKey,
    KeyInfo,
    ListRunners,
    RegisterAgent,
    RevokeKey,
    Runners,
    RunnerState,
)
from penstock.embedded import NatsServer
from penstock.rpc import call
from penstock.settings import CoreSettings
from penstock_registry.publisher import Publisher
from penstock_registry.settings import RegistrySettings
from tests.integration.registry.conftest import Ask, Start, running
from tests.integration.registry.documents import agent, tool, webhook, workflow
from tests.support.waiting import eventually


async def apply_all(bus: Bus, tenant: str) -> None:
    documents: tuple[Any, ...] = (tool(), agent(), workflow(), webhook())
    request = ApplyDocuments(tenant=tenant, documents=documents)
    await call(bus, "registry", "apply", request, Applied)


async def test_new_bus_is_given_everything_at_the_start(
    create_nats_server: Callable[..., NatsServer],
    create_settings: Callable[..., RegistrySettings],
    bus: Bus,
    tenant: str,
    sqlite_url: str,
) -> None:
    async with running(bus, create_settings(sqlite_url)):
        await apply_all(bus, tenant)
        kept = await call(bus, "registry", "create_key", CreateKey(tenant=tenant), CreatedKey)
        gone = await call(bus, "registry", "create_key", CreateKey(tenant=tenant), CreatedKey)
        revoke = RevokeKey(tenant=tenant, key_id=gone.key.key_id)
        await call(bus, "registry", "revoke_key", revoke, KeyInfo)

    server = create_nats_server()
    fresh = await connect(CoreSettings(nats_url=server.url), name="test")
    async with running(fresh, create_settings(sqlite_url, nats_url=server.url)):
        entry = await Bucket(fresh, subjects.PUBLISHED).get(subjects.published_key(tenant, "flow"))
        assert entry is not None
        version = PublishedVersion.model_validate_json(entry.value)
        plan = await Bucket(fresh, subjects.PLANS).get(version.plan_digest)
        assert plan is not None
        assert PLAN.validate_json(plan.value).name == "flow"
        hooks = Bucket(fresh, subjects.WEBHOOKS)
        assert await hooks.get(subjects.webhook_key(tenant, "push")) is not None
        keys = await Bucket(fresh, subjects.KEYS).keys()
        assert len(keys) == 1
        assert kept.key.key_id in str(await Bucket(fresh, subjects.KEYS).get(keys[0]))
    await fresh.close()


async def test_version_whose_alias_was_never_moved_is_announced_at_the_next_start(
    bus: Bus,
    start_registry: Start,
    tenant: str,
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = await start_registry(sqlite_url)
    key = subjects.published_key(tenant, "flow")
    with monkeypatch.context() as patch:

        async def die(*_: object) -> bool:
            raise TransientError("killed", "between the commit and the alias")

        patch.setattr(Publisher, "assert_definition", die)
        with pytest.raises(TransientError):
            await apply_all(bus, tenant)
    assert await Bucket(bus, subjects.PUBLISHED).get(key) is None
    await stop()

    await start_registry(sqlite_url)

    assert await Bucket(bus, subjects.PUBLISHED).get(key) is not None


async def test_alias_of_another_registry_is_left_alone(
    bus: Bus, start_registry: Start, tenant: str, sqlite_url: str
) -> None:
    key = subjects.published_key(tenant, "foreign")
    await Bucket(bus, subjects.PUBLISHED).put(key, b"{}")

    await start_registry(sqlite_url)

    assert await Bucket(bus, subjects.PUBLISHED).get(key) is not None


async def test_alias_that_somebody_changed_is_put_right(
    bus: Bus, start_registry: Start, tenant: str, sqlite_url: str
) -> None:
    await start_registry(sqlite_url, registry_repair_seconds=1)
    await apply_all(bus, tenant)
    published = Bucket(bus, subjects.PUBLISHED)
    key = subjects.published_key(tenant, "flow")
    right = await published.get(key)
    assert right is not None

    await published.put(key, b'{"wrong": true}')

    async def is_right() -> bool:
        entry = await published.get(key)
        return entry is not None and entry.value == right.value

    await eventually(is_right)


async def test_restart_of_the_bus_loses_no_runner_and_no_request(
    create_nats_server: Callable[..., NatsServer],
    create_settings: Callable[..., RegistrySettings],
    tenant: str,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = create_nats_server()
    bus = await connect(CoreSettings(nats_url=server.url), name="test")

    async def ask(verb: str, request: BaseModel, reply: type[Any]) -> Any:
        try:
            return await call(bus, "registry", verb, request, reply, timeout_seconds=2)
        except TransientError as error:
            raise AssertionError(error.code) from error

    register = RegisterAgent(
        tenant=tenant, agent_id="web", endpoint="http://127.0.0.1:1", ttl_seconds=8
    )
    async with running(bus, create_settings(sqlite_url, nats_url=server.url)):
        await ask("register_agent", register, AgentRegistration)

        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

        async def state() -> RunnerState:
            listed = await ask("list_runners", ListRunners(tenant=tenant), Runners)
            assert [view.runner.runner_id for view in listed.items] == ["web"]
            found: RunnerState = listed.items[0].state
            return found

        after = await eventually(state, within=30)
        assert after in (RunnerState.LIVE, RunnerState.SUSPECT)

        async def beaten() -> Any:
            return await ask(
                "beat_agent", BeatAgent(tenant=tenant, agent_id="web"), AgentRegistration
            )

        await eventually(beaten, within=30)

        async def lives() -> bool:
            return await state() is RunnerState.LIVE

        await eventually(lives, within=30)
    assert "runner.lost" not in caplog.text
    await bus.close()


async def test_lost_key_on_the_bus_makes_apply_say_so(
    ask: Ask, start_registry: Start, bus: Bus, tenant: str, sqlite_url: str
) -> None:
    """Applying again repairs what applying before could not tell the bus."""
    await start_registry(sqlite_url)
    await apply_all(bus, tenant)
    published = Bucket(bus, subjects.PUBLISHED)
    key = subjects.published_key(tenant, "helper")
    await published.delete(key)

    applied = await ask("apply", ApplyDocuments(tenant=tenant, documents=(agent(),)), Applied)

    assert [result.change for result in applied.results] == ["unchanged"]
    assert await published.get(key) is not None


async def test_database_that_is_away_is_a_transient_error(
    bus: Bus,
    start_registry: Start,
    tenant: str,
    sqlite_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines: list[AsyncEngine] = []
    create_engine = db.create_engine

    def remember(url: str, **options: Any) -> AsyncEngine:
        engines.append(create_engine(url, **options))
        return engines[-1]

    monkeypatch.setattr(db, "create_engine", remember)
    await start_registry(sqlite_url)
    (tmp_path / "registry.db").rename(tmp_path / "away.db")
    (tmp_path / "registry.db").mkdir()
    await engines[0].dispose()

    with pytest.raises(TransientError) as caught:
        await apply_all(bus, tenant)
    listed = await call(bus, "registry", "list_runners", ListRunners(tenant=tenant), Runners)

    assert caught.value.code == "database_unavailable"
    assert "http-agent" not in [view.runner.kind for view in listed.items]
    (tmp_path / "registry.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "registry.db")
    await apply_all(bus, tenant)
