"""Export and import over HTTP, with real engines: what is there twice, what goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec import structs
from nats.aio.msg import Msg

from penstock.contracts import subjects
from penstock.contracts.facts import NodeRecord, RunEnded, RunInvoked, SignalReceived
from penstock.contracts.ids import content_digest, shard_of
from penstock.contracts.messages import LogEntry
from penstock.contracts.plan import Plan, PublishedVersion
from penstock.contracts.rpc import Reply
from penstock.contracts.structs import encode
from penstock.runs import bundles
from penstock_gateway.core.access import Caller, key_digest
from penstock_gateway.settings import GatewaySettings
from tests.integration.gateway.conftest import Running, running
from tests.integration.gateway.test_access import NO_RUN
from tests.integration.orchestrator.conftest import TENANT, CreateWorld, World, chain

CreateSite = Callable[..., Awaitable["Site"]]


class Site:
    """An installation of its own: server, engine, gateway."""

    def __init__(self, world: World, gateway: Running, tenant: str) -> None:
        self.world = world
        self.gateway = gateway.gateway
        self.client = gateway.client
        self.tenant = tenant

    async def export(self, run_id: str) -> bytes:
        answer = await self.client.get(f"/v1/runs/{run_id}/export")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == bundles.MEDIA_TYPE
        return answer.content

    def operator(self) -> dict[str, str]:
        """Add a key that has no role but operator; return the header that sends it."""
        caller = Caller(self.tenant, "op", frozenset({"operator", "viewer"}))
        self.gateway.keys.values[key_digest(b"operator")] = caller
        return {"authorization": "Bearer operator"}

    def publish(self, plan: Plan, tenant: str | None = None) -> None:
        """Make a plan a published version of a tenant, as the registry would."""
        version = PublishedVersion(
            name=plan.name, kind=plan.kind, version=3, plan_digest=plan.digest()
        )
        self.gateway.published.values[f"{tenant or self.tenant}.{plan.name}.3"] = version

    async def load(
        self,
        bundle: bytes,
        status: int = 201,
        query: str = "",
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        headers = {**(headers or {}), **({"Idempotency-Key": key} if key else {})}
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


async def test_operator_imports_runs_of_plans_that_are_published_for_the_tenant_alone(
    create_site: CreateSite,
) -> None:
    here, there = await create_site(), await create_site()
    run_id = await done(here)
    bundle, operator = await here.export(run_id), there.operator()

    refused = await there.load(bundle, 403, headers=operator)
    there.publish(chain("a", "b"), tenant="another")
    other = await there.load(bundle, 403, headers=operator)
    assert refused["code"] == other["code"] == "plan_not_published"
    assert (await there.client.get(f"/v1/runs/{run_id}")).status_code == 404

    there.publish(chain("a", "b"))
    await there.load(bundle, headers=operator)

    mark = (await there.view(run_id))["imported"]
    assert (mark["run_id"], mark["tenant"], mark["imported_by"]) == (run_id, TENANT, "op")
    assert not mark.get("signed", False)
    assert "imported" not in {
        name for name, value in (await here.view(run_id)).items() if value is not None
    }


async def test_mark_of_an_import_stays_with_what_continues_the_run(create_site: CreateSite) -> None:
    here, there = await create_site(), await create_site()
    run_id = await done(here)
    await there.load(await here.export(run_id))

    copy = await there.client.post(f"/v1/runs/{run_id}/replay", json={})

    assert copy.is_success, copy.text
    assert (await there.view(copy.json()["run_id"]))["imported"]["run_id"] == run_id


async def test_another_bundle_of_a_run_that_was_imported_changes_nothing(
    create_site: CreateSite,
) -> None:
    here, there = await create_site(), await create_site()
    run_id = await done(here)
    await there.load(await here.export(run_id))

    again = await there.load(await here.export(run_id), 200)
    back = await here.load(await there.export(run_id), 200)

    assert (again["stored"], back["stored"]) == (0, 0)


async def test_plan_that_could_not_be_published_is_refused_for_an_admin_too(
    create_site: CreateSite,
) -> None:
    here, there = await create_site(), await create_site()
    known = bundles.read((await here.export(await done(here))).splitlines())
    first = known.entries[0]
    assert known.plan is not None
    assert isinstance(first.fact, RunInvoked)
    plan = known.plan.replace(b'"ref":"noop"', b'"ref":"unknown"')
    fact = structs.replace(first.fact, plan_digest=content_digest(plan))
    entries = [structs.replace(first, fact=fact), *known.entries[1:]]
    forged = b"".join(bundles.write(known.header, plan, entries))

    refused = await there.load(forged, 422)

    assert refused["code"] == "invalid_plan"
    assert refused["errors"][0]["path"] == "nodes.a.ref"


async def test_with_a_key_only_bundles_that_it_signed_are_imported_by_operators(
    create_site: CreateSite,
) -> None:
    key = "a key of at least 16 bytes"
    here, there = await create_site(bundle_key=key), await create_site(bundle_key=key)
    unsigned = await (site := await create_site()).export(await done(site))
    run_id = await done(here)
    bundle, operator = await here.export(run_id), there.operator()
    signature = bundles.read(bundle.splitlines()).signature
    assert signature is not None

    # A chain of hashes can be computed again; the signature cannot.
    known = bundles.read(bundle.splitlines())
    other = b"".join(bundles.write(known.header, known.plan, known.entries, b"another key" * 2))
    for wrong in (unsigned, other):
        there.publish(chain("a", "b"))
        assert (await there.load(wrong, 403, headers=operator))["code"] == "bundle_unsigned"
    there.gateway.published.values.clear()

    await there.load(bundle, headers=operator)

    assert (await there.view(run_id))["imported"]["signed"]


async def test_approval_that_anyone_may_have_written_is_not_imported_by_an_operator(
    create_site: CreateSite,
) -> None:
    here, there = await create_site(), await create_site()
    there.publish(chain("a", "b"))
    operator = there.operator()
    known = bundles.read((await here.export(await done(here))).splitlines())
    end = known.entries[-1]
    assert isinstance(end.fact, RunEnded)
    signal = SignalReceived(
        occurred_at=end.fact.occurred_at, name="approval", kind="approval", target="b-a"
    )
    prefix = end.subject.split(".out.")[0]
    answered = LogEntry(seq=end.seq + 1, subject=subjects.signal(prefix, "s1"), fact=signal)
    record = NodeRecord(record_id="b-a", kind="approval", status="succeeded")
    decision = structs.replace(end.fact.decision, node_records=(record,))
    decided = structs.replace(end, fact=structs.replace(end.fact, decision=decision))

    for entries in ((*known.entries, answered), (*known.entries[:-1], decided)):
        forged = b"".join(bundles.write(known.header, known.plan, entries))
        refused = await there.load(forged, 403, headers=operator)
        assert refused["code"] == "bundle_unsigned"
    unchanged = b"".join(bundles.write(known.header, known.plan, known.entries))
    await there.load(unchanged, headers=operator)
