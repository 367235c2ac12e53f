"""Fork, retry and replay over HTTP, with a real engine behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import DefinitionKind, RunInvoked
from penstock.contracts.plan import (
    Block,
    MapNode,
    Node,
    Plan,
    PublishedVersion,
    ToolNode,
)
from penstock.contracts.usage import RunLimits
from penstock_gateway.settings import GatewaySettings
from tests.integration.gateway.conftest import running
from tests.integration.orchestrator.conftest import NOOP, TENANT, World, chain

BROKEN = ErrorInfo(code="broken", message="no")


def reading(node_id: str, *needs: str, **changes: Any) -> Node:
    given: Any = {name: f"{{{{ steps.{name}.output }}}}" for name in needs}
    return ToolNode(id=node_id, ref="noop", needs=needs, input=given, **changes)


def plan_of(*nodes: Node, **changes: Any) -> Plan:
    return Plan(
        name="chain", kind=DefinitionKind.WORKFLOW, nodes=nodes, tools={"noop": NOOP}, **changes
    )


@dataclass
class Site:
    """An engine and a gateway before the same log."""

    world: World
    client: httpx.AsyncClient

    async def post(self, run_id: str, verb: str, status: int = 202, **body: Any) -> dict[str, Any]:
        answer = await self.client.post(f"/v1/runs/{run_id}/{verb}", json=body)
        # 200 where the new run has ended before it is shown.
        shown = 202 if answer.status_code == 200 else answer.status_code
        assert shown == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def play(self, run_id: str, **outputs: Any) -> None:
        """Report outputs of steps as they are scheduled."""
        for step_id, output in outputs.items():
            await self.world.scheduled(run_id, step_id)
            if isinstance(output, ErrorInfo):
                await self.world.report(run_id, step_id, error=output)
            else:
                await self.world.report(run_id, step_id, output=output)

    async def publish(self, plan: Plan, version: int) -> None:
        await self.world.put_plan(plan)
        value = PublishedVersion(
            name=plan.name, kind=plan.kind, version=version, plan_digest=plan.digest()
        )
        key = subjects.published_version_key(TENANT, plan.name, str(version))
        await Bucket(self.world.bus, subjects.PUBLISHED).put(key, value.model_dump_json().encode())

    async def steps(self, run_id: str) -> list[str]:
        """Return what was scheduled to runners for a run."""
        log = await self.world.log(run_id)
        return [entry.subject.step_id for entry in log if entry.subject.event == "step"]


@pytest.fixture
async def site(world: World) -> AsyncIterator[Site]:
    settings = GatewaySettings(
        nats_url=world.settings.nats_url,
        shards=world.settings.shards,
        port=0,
        auth_required=False,
        dev_tenant=TENANT,
        metrics_port=-1,
    )
    async with running(settings) as gateway:
        yield Site(world, gateway.client)


async def done(site: Site) -> str:
    run_id = await site.world.invoke(plan_of(reading("a"), reading("b", "a"), reading("c", "b")))
    await site.play(run_id, a=1, b=2, c=3)
    await site.world.ended(run_id)
    return run_id


async def test_replay_without_changes_spends_nothing_and_ends_the_same(site: Site) -> None:
    run_id = await done(site)

    copy = await site.post(run_id, "replay")

    ended = await site.world.ended(copy["run_id"])
    assert (ended.status.value, ended.output) == ("done", 3)
    assert await site.steps(copy["run_id"]) == []
    assert copy["trigger"] == "fork"
    assert copy["forked_from"]["run_id"] == run_id
    assert copy["forked_from"]["mode"] == "replay"


async def test_replay_with_an_override_runs_what_depends_on_it(site: Site) -> None:
    run_id = await done(site)

    copy = await site.post(run_id, "replay", overrides={"b": 20})

    await site.play(copy["run_id"], c=30)
    assert (await site.world.ended(copy["run_id"])).output == 30
    assert await site.steps(copy["run_id"]) == ["c"]


async def test_retry_goes_on_where_a_run_failed(site: Site) -> None:
    run_id = await site.world.invoke(plan_of(reading("a"), reading("b", "a")))
    await site.play(run_id, a=1, b=BROKEN)
    await site.world.ended(run_id)

    copy = await site.post(run_id, "retry", tags={"again": "yes"}, limits={"max_steps": 5})

    await site.play(copy["run_id"], b=2)
    assert (await site.world.ended(copy["run_id"])).output == 2
    assert await site.steps(copy["run_id"]) == ["b"]
    invoked = (await site.world.log(copy["run_id"]))[0].fact
    assert isinstance(invoked, RunInvoked)
    assert (invoked.tags, invoked.limits) == ({"again": "yes"}, RunLimits(max_steps=5))


async def test_fork_of_an_open_run_goes_on_beside_it(site: Site) -> None:
    run_id = await site.world.invoke(plan_of(reading("a"), reading("b", "a")))
    await site.play(run_id, a=1)
    await site.world.scheduled(run_id, "b")

    copy = await site.post(run_id, "fork")

    await site.play(copy["run_id"], b="there")
    await site.play(run_id, b="here")
    assert (await site.world.ended(copy["run_id"])).output == "there"
    assert (await site.world.ended(run_id)).output == "here"


async def test_fork_at_every_sequence_ends(site: Site) -> None:
    run_id = await done(site)
    for entry in await site.world.log(run_id):
        copy = await site.post(run_id, "fork", at_seq=entry.seq)
        for step_id in "abc":
            state = await site.world.until(
                copy["run_id"], lambda s: s.ended is not None or bool(s.open_steps)
            )
            if step_id in state.steps and state.steps[step_id].status == "scheduled":
                await site.world.report(copy["run_id"], step_id, output=step_id)
        assert (await site.world.ended(copy["run_id"])).status.value == "done"


async def test_fork_with_another_version_and_input_does_again_what_differs(site: Site) -> None:
    first = plan_of(reading("a"), ToolNode(id="b", ref="noop", input={"x": "{{ input.city }}"}))
    run_id = await site.world.invoke(first)
    await site.play(run_id, a=1, b=2)
    await site.world.ended(run_id)
    await site.publish(
        plan_of(
            reading("a", timeout_seconds=9),
            ToolNode(id="b", ref="noop", input={"x": "{{ input.city }}"}),
        ),
        2,
    )

    other_version = await site.post(run_id, "fork", version=2)
    other_input = await site.post(run_id, "fork", input={"city": "Ulm"})

    await site.play(other_version["run_id"], a=1)
    await site.play(other_input["run_id"], b=1)
    assert await site.steps(other_version["run_id"]) == ["a"]
    assert await site.steps(other_input["run_id"]) == ["b"]
    assert other_version["version"] == 2


async def test_large_seed_is_taken_over(site: Site) -> None:
    work = ToolNode(id="w", ref="noop", input={"n": "{{ item }}"})
    body = Block(name="body", nodes=(work,))
    many = MapNode(id="m", over="[0,1,2,3,4,5,6,7,8,9]", body=body)
    run_id = await site.world.invoke(
        plan_of(many, reading("z", "m"), output="{{ steps.z.output }}")
    )
    await site.play(run_id, **{f"w-x{index}": "x" * 200_000 for index in range(10)}, z=BROKEN)
    await site.world.ended(run_id)

    copy = await site.post(run_id, "retry")

    await site.play(copy["run_id"], z="ok")
    assert (await site.world.ended(copy["run_id"])).output == "ok"
    assert await site.steps(copy["run_id"]) == ["z"]


async def test_same_key_forks_once(site: Site) -> None:
    run_id = await done(site)
    path, headers = f"/v1/runs/{run_id}/fork", {"Idempotency-Key": "k1"}

    first = await site.client.post(path, json={"at_seq": 2}, headers=headers)
    again = await site.client.post(path, json={"at_seq": 2}, headers=headers)
    other = await site.client.post(path, json={"at_seq": 3}, headers=headers)

    assert first.json()["run_id"] == again.json()["run_id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_forks_of_what_is_not_there_are_refused(site: Site) -> None:
    run_id = await done(site)
    entries = await site.world.log(run_id)
    last = entries[-1].seq

    for verb, body, status, code in (
        ("retry", {}, 409, "run_succeeded"),
        ("fork", {"at_seq": last + 1}, 422, "invalid_sequence"),
        ("replay", {"from": last + 1}, 422, "invalid_sequence"),
        ("fork", {"overrides": {"z": 1}}, 422, "unknown_step"),
        ("fork", {"version": 9}, 404, "unknown_version"),
        ("fork", {"at_sec": 1}, 422, "invalid_request"),
        ("replay", {"from": 0}, 422, "invalid_request"),
    ):
        problem = await site.post(run_id, verb, status, **body)
        assert problem["code"] == code, problem
    problem = await site.post("0" * 26, "fork", 503)
    assert problem["code"] != "internal_error"


async def test_open_and_cancelled_runs_are_not_replayed_as_they_were(site: Site) -> None:
    run_id = await site.world.invoke(chain("a", "b"))
    await site.world.scheduled(run_id, "a")
    assert (await site.post(run_id, "retry", 409))["code"] == "run_not_ended"
    assert (await site.post(run_id, "replay", 409))["code"] == "run_not_ended"
    await site.world.cancel(run_id)
    await site.world.ended(run_id)

    assert (await site.post(run_id, "replay", 409))["code"] == "not_replayable"
    copy = await site.post(run_id, "retry")

    await site.play(copy["run_id"], a=1, b=2)
    assert (await site.world.ended(copy["run_id"])).output == 2
