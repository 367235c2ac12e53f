"""Dead letters over HTTP: poison at engine and runner, work done again, a crash in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.bus.consumer import Consumer, Delivery
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo, InvariantError, TransientError
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.messages import DeadLetter
from penstock.contracts.plan import (
    CompiledTool,
    Plan,
    ToolNode,
)
from penstock.contracts.structs import encode
from penstock_gateway.dead_letters.store import DeadLetters
from penstock_gateway.settings import GatewaySettings
from tests.integration.gateway.conftest import Running, running
from tests.integration.orchestrator.conftest import TENANT, World, chain


@dataclass
class Site:
    """An engine, a gateway, and a runner that gives up."""

    world: World
    gateway: Running

    async def get(self, path: str = "", status: int = 200, **params: Any) -> Any:
        answer = await self.gateway.client.get(f"/v1/dead-letters{path}", params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def post(self, path: str, status: int = 200, body: Any = None) -> Any:
        answer = await self.gateway.client.post(f"/v1/dead-letters{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def letters(self, count: int = 1, **params: Any) -> list[dict[str, Any]]:
        """Return the letters, once there are so many."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                found = (await self.get(**params))["items"]
                await asyncio.sleep(0.02)
        return found

    async def give_up(self) -> Consumer:
        """Run a runner that cannot handle anything."""
        durable = subjects.runner_consumer("tool", "q")
        config = {
            "durable_name": durable,
            "filter_subject": subjects.runner_filter("tool", "q"),
            "ack_policy": "explicit",
            "ack_wait": 1_000_000_000,
        }
        await self.world.bus.api(
            f"CONSUMER.CREATE.{subjects.RUNS}.{durable}",
            {"stream_name": subjects.RUNS, "config": config},
        )

        async def handle(delivery: Delivery) -> None:
            raise InvariantError("poison", f"cannot handle {delivery.subject}")

        return await Consumer(
            self.world.bus, subjects.RUNS, durable, handle, concurrency=4, ack_wait_seconds=1
        ).start()

    async def letter_of(self, tenant: str, run_id: str, consumer: str) -> None:
        """Write a letter as a consumer would."""
        letter = DeadLetter(
            stream=subjects.RUNS,
            stream_seq=1,
            subject=f"run.{tenant}.0.{run_id}.in.invoke",
            consumer=consumer,
            deliveries=1,
            error=ErrorInfo(code="not_projectable", message="no"),
            body="{}",
            occurred_at=datetime.now(UTC),
        )
        await self.world.bus.request(subjects.dead(subjects.RUNS, consumer), encode(letter))


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
        yield Site(world, gateway)


async def given_up(site: Site, plan: Plan) -> tuple[str, dict[str, Any]]:
    """Return a run whose step ``a`` a runner gave up, and the letter."""
    runner = await site.give_up()
    run_id = await site.world.invoke(plan)
    letter = (await site.letters(run_id=run_id))[0]
    await runner.drain(grace_seconds=1)
    return run_id, letter


async def test_step_that_a_runner_gave_up_is_attempted_again(site: Site) -> None:
    run_id, letter = await given_up(site, chain("a"))
    assert (letter["error"]["code"], letter["remedy"]) == ("poison", "attempt")
    shown = await site.get(f"/{letter['seq']}")
    assert '"step.scheduled"' in shown["body"]

    await site.post(f"/{letter['seq']}/requeue")

    await site.world.scheduled(run_id, "a", 2)
    await site.world.report(run_id, "a", 2, output="done")
    assert (await site.world.ended(run_id)).output == "done"
    assert (await site.get())["items"] == []
    gone = await site.post(f"/{letter['seq']}/requeue", 404)
    assert gone["code"] == "dead_letter_not_found"


async def test_crash_between_requeueing_and_removing_attempts_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, letter = await given_up(site, chain("a"))
    letters = DeadLetters(site.gateway.gateway)
    found = await letters.get(TENANT, letter["seq"])

    async def die(_seq: int) -> None:
        raise TransientError("killed", "here")

    with monkeypatch.context() as patched:
        patched.setattr(letters, "_remove", die)
        with pytest.raises(TransientError):
            await letters.apply("requeue", found)
    await site.world.scheduled(run_id, "a", 2)

    await site.post(f"/{letter['seq']}/requeue")

    assert (await site.get())["items"] == []
    state = await site.world.state(run_id)
    assert (state.steps["a"].attempt, state.attempts) == (2, 2)


async def test_step_that_must_not_be_repeated_waits_for_a_decision(site: Site) -> None:
    plan = Plan(
        name="once",
        kind=DefinitionKind.WORKFLOW,
        nodes=(ToolNode(id="a", ref="pay"),),
        tools={"pay": CompiledTool(name="pay", queue="q", at_most_once=True)},
    )
    run_id, letter = await given_up(site, plan)

    await site.post(f"/{letter['seq']}/requeue")

    state = await site.world.until(run_id, lambda s: "a-r" in s.node_records)
    assert state.steps["a"].status == "unknown"


async def test_letter_of_a_step_that_has_its_outcome_is_only_discarded(site: Site) -> None:
    run_id, letter = await given_up(site, chain("a", "b"))
    await site.world.report(run_id, "a", output=1)

    refused = await site.post(f"/{letter['seq']}/requeue", 409)
    assert refused["code"] == "already_settled"
    await site.post(f"/{letter['seq']}/discard")

    assert (await site.get())["items"] == []


async def test_letter_of_an_ended_run_offers_retry_and_fork(site: Site) -> None:
    run_id, letter = await given_up(site, chain("a"))
    await site.world.cancel(run_id)
    await site.world.ended(run_id)

    refused = await site.post(f"/{letter['seq']}/requeue", 409)

    assert refused["code"] == "run_ended"
    assert "retry" in refused["detail"]


async def test_poison_for_the_engine_is_kept_and_the_run_goes_on(site: Site) -> None:
    run_id = await site.world.invoke(chain("a"))
    await site.world.scheduled(run_id, "a")
    poison = subjects.signal(site.world.prefix(run_id), "poison")
    await site.world.bus.request(poison, b"\xff not a fact")
    letter = (await site.letters(code="unreadable_fact"))[0]
    assert letter["remedy"] == "reload"
    assert letter["consumer"].startswith("engine_")

    await site.post(f"/{letter['seq']}/requeue")

    await site.world.report(run_id, "a", output=1)
    assert (await site.world.ended(run_id)).output == 1
    timers = await site.world.reader.get_many(
        subjects.TIMERS, {"multi_last": [f"timer.due.{TENANT}.*.{run_id}.reload"]}
    )
    assert len(timers.messages) == 1


async def test_tenants_see_their_own_letters_alone(site: Site) -> None:
    run_id = await site.world.invoke(chain("a"))
    await site.letter_of("other", run_id, "projector")
    await site.letter_of(TENANT, run_id, "projector")

    found = await site.letters()

    assert [letter["seq"] for letter in found] == [2]
    assert (await site.get("/1", 404))["code"] == "dead_letter_not_found"
    assert (await site.post("/1/discard", 404))["code"] == "dead_letter_not_found"
    await site.post("/discard", body={})
    left = await site.world.reader.get_many(subjects.DEAD, {"multi_last": ["dead.>"]})
    assert [message.seq for message in left.messages] == [1]


async def test_letter_of_the_projector_says_what_to_do(site: Site) -> None:
    await site.letter_of(TENANT, "0" * 26, "projector")
    letter = (await site.letters())[0]

    refused = await site.post(f"/{letter['seq']}/requeue", 422)

    assert refused["code"] == "not_requeueable"
    assert "history rebuild" in refused["errors"][0]["allowed"]


async def test_many_letters_are_requeued_at_once_and_those_that_cannot_be_stay(site: Site) -> None:
    runner = await site.give_up()
    run_ids = [await site.world.invoke(chain("a")) for _ in range(3)]
    await site.letters(3)
    await runner.drain(grace_seconds=1)
    await site.world.cancel(run_ids[0])
    await site.world.ended(run_ids[0])
    wanted = {"filter": {"consumer": "runner_tool_q", "code": "poison"}}

    dry = await site.post("/requeue", body={**wanted, "dry_run": True, "limit": 2})
    assert (len(dry["done"]), dry["more"]) == (2, True)
    assert len(await site.letters()) == 3
    done = await site.post("/requeue", body=wanted)

    assert (len(done["done"]), done["more"]) == (2, False)
    assert [refused["error"]["code"] for refused in done["refused"]] == ["run_ended"]
    for run_id in run_ids[1:]:
        await site.world.scheduled(run_id, "a", 2)
    assert [letter["run_id"] for letter in await site.letters()] == [run_ids[0]]


async def test_letters_come_in_pages(site: Site) -> None:
    for _ in range(5):
        await site.letter_of(TENANT, "0" * 26, "projector")

    first = await site.get(limit=3)
    second = await site.get(limit=3, cursor=first["next_cursor"])

    assert [item["seq"] for item in first["items"] + second["items"]] == [1, 2, 3, 4, 5]
    assert second["next_cursor"] is None
