"""Export and import over HTTP, with real engines: what is there twice, what goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec import structs
from nats.aio.msg import Msg

from penstock.contracts import subjects
from penstock.contracts.facts import RunEnded, RunInvoked
from penstock.contracts.ids import shard_of
from penstock.contracts.rpc import Reply
from penstock.contracts.structs import encode
from penstock.runs import bundles
from penstock_gateway.settings import GatewaySettings
from tests.integration.gateway.conftest import Running, running
from tests.integration.gateway.test_access import NO_RUN
from tests.integration.orchestrator.conftest import TENANT, CreateWorld, World, chain

CreateSite = Callable[..., Awaitable["Site"]]


class Site:
    """An installation of its own: server, engine, gateway."""

    def __init__(self, world: World, gateway: Running, tenant: str) -> None:
        self.world = world
        self.client = gateway.client
        self.tenant = tenant

    async def export(self, run_id: str) -> bytes:
        answer = await self.client.get(f"/v1/runs/{run_id}/export")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == bundles.MEDIA_TYPE
        return answer.content

    async def load(self, bundle: bytes, status: int = 201, query: str = "", key: str = "") -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        answer = await self.client.post(f"/v1/runs/import{query}", content=bundle, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def view(self, run_id: str) -> Any:
        return (await self.client.get(f"/v1/runs/{run_id}")).json()


async def know_nothing(message: Msg) -> None:
    await message.respond(Reply(ok=False, error=NO_RUN).model_dump_json().encode())


@pytest.fixture
async def create_site(create_world: CreateWorld) -> AsyncIterator[CreateSite]:
    async with AsyncExitStack() as stack:

        async def create(tenant: str = TENANT, **options: Any) -> Site:
            world = await create_world()
            await world.start_engine()
            # No archive runs here; one that knows nothing answers in its place.
            await world.bus.subscribe(subjects.rpc("archive", "run_facts"), know_nothing)
            settings = GatewaySettings(
                nats_url=world.settings.nats_url,
                shards=world.settings.shards,
                port=0,
                auth_required=False,
                dev_tenant=tenant,
                metrics_port=-1,
                **options,
            )
            gateway = await stack.enter_async_context(running(settings))
            return Site(world, gateway, tenant)

        yield create


async def done(site: Site, output: Any = 2) -> str:
    run_id = await site.world.invoke(chain("a", "b"))
    await site.world.scheduled(run_id, "a")
    await site.world.report(run_id, "a", output=1)
    await site.world.scheduled(run_id, "b")
    await site.world.report(run_id, "b", output=output)
    await site.world.ended(run_id)
    return run_id


async def test_ended_run_is_imported_as_it_was_and_nothing_of_it_is_done(
    create_site: CreateSite,
) -> None:
    here = await create_site()
    there = await create_site("other", max_body_bytes=2048)
    run_id = await done(here, output="x" * 1_500_000)
    bundle = await here.export(run_id)

    loaded = await there.load(bundle)

    assert (loaded["run_id"], loaded["facts"]) == (run_id, loaded["stored"])
    was, now = await here.view(run_id), await there.view(run_id)
    for name in ("status", "output", "plan_digest", "usage", "ended_at"):
        assert now[name] == was[name]
    assert now["tenant"] == "other"
    again = await there.load(bundle, 200)
    assert again["stored"] == 0
    shard = shard_of(run_id, there.world.settings.shards)
    log = await there.world.reader.read_run("other", shard, run_id)
    assert [entry.subject.event for entry in log if entry.subject.event == "end"] == ["end"]
    assert len(log) == loaded["facts"]


async def test_imported_run_can_be_forked_where_it_was_never_published(
    create_site: CreateSite,
) -> None:
    here, there = await create_site(), await create_site()
    run_id = await done(here)
    await there.load(await here.export(run_id))

    copy = await there.client.post(f"/v1/runs/{run_id}/replay", json={"overrides": {"b": 5}})

    assert copy.is_success, copy.text  # 200 if it has already ended
    assert (await there.world.ended(copy.json()["run_id"])).output == 5


async def test_ended_run_is_imported_beside_itself(create_site: CreateSite) -> None:
    site = await create_site()
    run_id = await done(site)
    bundle = await site.export(run_id)

    copy = await site.load(bundle, query="?as_new=true", key="k")
    again = await site.load(bundle, 200, query="?as_new=true", key="k")

    assert copy["run_id"] != run_id
    assert again["run_id"] == copy["run_id"]
    assert (await site.view(copy["run_id"]))["output"] == 2


async def test_import_that_was_cut_short_is_finished_by_the_next(create_site: CreateSite) -> None:
    here, there = await create_site(), await create_site()
    run_id = await done(here)
    bundle = await here.export(run_id)
    end = next(e for e in bundles.read(bundle.splitlines()).entries if isinstance(e.fact, RunEnded))
    await there.world.writer.append(end.subject, encode(end.fact))

    loaded = await there.load(bundle)

    assert loaded["stored"] == loaded["facts"] - 1
    assert (await there.view(run_id))["output"] == 2


async def test_import_over_other_facts_is_refused(create_site: CreateSite) -> None:
    here, there = await create_site(), await create_site()
    run_id = await done(here)
    bundle = await here.export(run_id)
    fact = next(e.fact for e in await here.world.log(run_id) if isinstance(e.fact, RunInvoked))
    other = structs.replace(fact, input="something else")
    subject = subjects.invoke(there.world.prefix(run_id))
    await there.world.writer.append(subject, encode(other))

    refused = await there.load(bundle, 409)

    assert refused["code"] == "run_exists"
    assert refused["errors"][0]["path"] == "in.invoke"


async def test_open_run_goes_on_as_a_new_one(create_site: CreateSite) -> None:
    here, there = await create_site(), await create_site()
    run_id = await here.world.invoke(chain("a", "b"))
    await here.world.scheduled(run_id, "a")
    await here.world.report(run_id, "a", output=1)
    await here.world.scheduled(run_id, "b")
    bundle = await here.export(run_id)

    assert (await there.load(bundle, 409))["code"] == "run_not_ended"
    copy = await there.load(bundle, query="?as_new=1")

    await there.world.scheduled(copy["run_id"], "b")
    await there.world.report(copy["run_id"], "b", output="there")
    assert (await there.world.ended(copy["run_id"])).output == "there"


async def test_bundle_that_was_changed_is_refused_with_its_line(create_site: CreateSite) -> None:
    site = await create_site()
    bundle = await site.export(await done(site))

    changed = await site.load(bundle.replace(b'"city":"Oslo"', b'"city":"Bonn"'), 422)
    cut = await site.load(bundle[: len(bundle) // 2], 422)
    empty = await site.load(b"", 422)

    assert changed["code"] == cut["code"] == empty["code"] == "invalid_bundle"
    assert changed["errors"][0]["path"] == "line 3"
