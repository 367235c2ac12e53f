"""Budgets, places and turns, going on from another run, and leaving nothing behind: end to end."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from penstock.bus.connection import connect
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.turns import TURN_RECORD
from penstock.settings import CoreSettings
from tests.support.http_server import Answer, Call, HttpServer
from tests.support.installation import Installation, scripted_agent
from tests.support.waiting import eventually

Workflow = Callable[..., str]


@pytest.fixture
def create_workflow(installation: Installation) -> Workflow:
    """Publish a workflow under a name of its own."""

    def create(*steps: dict[str, Any], **spec: Any) -> str:
        name = f"bounds-{uuid.uuid4().hex[:12]}"
        installation.apply(
            {
                "apiVersion": "penstock/v1",
                "kind": "Workflow",
                "metadata": {"name": name},
                "spec": {"steps": list(steps), **spec},
            }
        )
        return name

    return create


async def indexed(installation: Installation, run_id: str, status: str) -> dict[str, Any]:
    """Wait until the archive has a run in a status."""

    def listed() -> dict[str, Any]:
        path = f"/v1/runs?status={status}&limit=200"
        items = installation.client.get(path).json()["items"]
        found: list[dict[str, Any]] = [one for one in items if one["run_id"] == run_id]
        assert found
        return found[0]

    return await eventually(listed)


def test_run_that_has_used_up_its_steps_fails_and_says_what_was_spent(
    installation: Installation, create_workflow: Workflow
) -> None:
    each = {"id": "one", "tool": "add", "input": {"a": "{{ item }}", "b": 1}}
    name = create_workflow({"id": "each", "map": {"over": "input", "steps": [each]}})

    enough = installation.start(name, [1, 2, 3], wait=30, limits={"max_steps": 3})
    run = installation.start(name, [1, 2, 3, 4, 5], wait=30, limits={"max_steps": 3})

    assert (enough["status"], enough["output"]) == ("done", [2, 3, 4])
    assert (run["status"], run["error"]["code"]) == ("failed", "budget_exhausted")
    assert "max_steps" in str(run["error"]["details"])
    view = installation.get(run["run_id"])
    assert view["budget"]["steps"]["spent"] <= 3


def test_tokens_are_shared_with_child_runs(
    installation: Installation, create_workflow: Workflow
) -> None:
    usage = {"text": "word " * 50}
    talker = f"talker-{uuid.uuid4().hex[:8]}"
    installation.apply(scripted_agent(talker, usage, parameters={"max_tokens": 60}))
    child = create_workflow({"id": "talk", "agent": talker, "input": "go on"})
    steps = [{"id": f"child_{n}", "workflow": {"name": child}} for n in range(6)]
    name = create_workflow(*steps)

    free = installation.start(name, wait=25)
    bound = installation.start(name, wait=25, limits={"max_tokens": 200})

    assert free["status"] == "done", free
    assert (bound["status"], bound["error"]["code"]) == ("failed", "budget_exhausted"), bound
    line = installation.get(bound["run_id"])["budget"]["tokens"]
    assert 0 < line["spent"] <= 200, line


def test_turns_of_an_agent_and_depth_of_children_are_bound(
    installation: Installation, create_workflow: Workflow, create_agent: Callable[..., str]
) -> None:
    calls = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 1}}]}
    restless = create_agent(*[calls] * 6, tools=["add"])
    leaf = create_workflow({"id": "one", "transform": 1})
    middle = create_workflow({"id": "sub", "workflow": {"name": leaf}})
    top = create_workflow({"id": "sub", "workflow": {"name": middle}})

    turns = installation.start(restless, "?", wait=30, limits={"max_turns": 2})
    depth = installation.start(top, wait=30, limits={"max_depth": 1})

    assert (turns["status"], turns["error"]["code"]) == ("failed", "max_turns_exceeded")
    assert depth["status"] == "failed"
    assert installation.start(top, wait=30, limits={"max_depth": 2})["output"] == 1


@pytest.mark.parametrize(
    ("policy", "first", "second"),
    [
        ("queue", "done", "done"),
        ("reject", "done", "failed"),
        ("cancel_newest", "done", "cancelled"),
        ("cancel_oldest", "cancelled", "done"),
    ],
)
async def test_one_run_too_many_for_a_key(
    installation: Installation, create_workflow: Workflow, policy: str, first: str, second: str
) -> None:
    name = create_workflow(
        {"id": "go", "wait": {"signal": {"name": "go"}}},
        concurrency={"key": "input", "max": 1, "policy": policy},
    )
    one = installation.start(name, "key")["run_id"]
    await eventually(lambda: installation.get(one)["waiting_for"])

    two = installation.start(name, "key")["run_id"]
    other = installation.start(name, "another key")["run_id"]
    await eventually(lambda: installation.get(other)["waiting_for"])
    if policy == "queue":
        assert installation.get(two)["waiting_for"] == []
    for run_id in (one, two, other):
        await goes(installation, run_id)

    assert (await installation.until(one))["status"] == first
    ended = await installation.until(two)
    assert ended["status"] == second
    assert (await installation.until(other))["status"] == "done"
    if policy == "reject":
        assert ended["error"]["code"] == "concurrency_limit"


async def goes(installation: Installation, run_id: str) -> None:
    answer = installation.client.post(f"/v1/runs/{run_id}/signals", json={"name": "go"})
    assert answer.status_code in (202, 409), answer.text


async def test_run_of_a_higher_priority_gets_the_place_first(
    installation: Installation, create_workflow: Workflow
) -> None:
    name = create_workflow(
        {"id": "go", "wait": {"signal": {"name": "go"}}}, concurrency={"key": "'one'"}
    )
    holder = installation.start(name)["run_id"]
    await eventually(lambda: installation.get(holder)["waiting_for"])
    low = installation.start(name, priority=-5)["run_id"]
    high = installation.start(name, priority=5)["run_id"]
    bus = await connect(CoreSettings(nats_url=installation.stack.nats_url), name="who-waits")
    try:
        bucket = Bucket(bus, subjects.TURNS)

        async def queued() -> bool:
            entries = [await bucket.get(key) for key in await bucket.keys()]
            records = [TURN_RECORD.validate_json(entry.value) for entry in entries if entry]
            return any(record.position(low) == 1 for record in records)

        await eventually(queued)
    finally:
        await bus.close()
    for run_id in (low, high, holder):
        await goes(installation, run_id)

    ends = [(await installation.until(one))["ended_at"] for one in (holder, high, low)]

    assert ends == sorted(ends)


def test_failed_run_is_retried_from_where_it_failed(
    installation: Installation, create_workflow: Workflow
) -> None:
    well = False

    def respond(call: Call) -> Answer:
        return Answer(body="fine") if well or call.path == "/first" else Answer(status=422)

    with HttpServer(respond) as server:
        name = create_workflow(
            {"id": "first", "http": {"url": f"{server.url}/first"}},
            {"id": "second", "http": {"url": f"{server.url}/second"}},
            {"id": "both", "transform": ["{{ steps.first.output }}", "{{ steps.second.output }}"]},
        )
        run = installation.start(name, wait=30)
        assert run["status"] == "failed"
        well = True
        again = follow(installation, run["run_id"], "retry")
        paths = [call.path for call in server.calls]
        replayed = follow(installation, run["run_id"], "replay")
        assert len(server.calls) == len(paths)

    assert (again["status"], again["output"]) == ("done", ["fine", "fine"])
    assert again["forked_from"]["run_id"] == run["run_id"]
    assert paths == ["/first", "/second", "/second"]
    assert (replayed["status"], replayed["error"]["code"]) == ("failed", run["error"]["code"])


def test_fork_does_again_what_depends_on_what_is_other(
    installation: Installation, create_workflow: Workflow
) -> None:
    name = create_workflow(
        {"id": "sum", "tool": "add", "input": {"a": "{{ input.a }}", "b": 1}},
        {
            "id": "other",
            "tool": "add",
            "input": {"a": "{{ input.b }}", "b": 1},
            "depends_on": [],
        },
        {
            "id": "product",
            "tool": "multiply",
            "input": {"a": "{{ steps.sum.output }}", "b": 10},
            "depends_on": ["sum"],
        },
    )
    run = installation.start(name, {"a": 1, "b": 1}, wait=30)

    overridden = follow(installation, run["run_id"], "fork", overrides={"sum": 7})
    changed = follow(installation, run["run_id"], "fork", input={"a": 4, "b": 1})

    assert (run["output"], overridden["output"], changed["output"]) == (20, 70, 50)
    assert started(installation, overridden) == ["product"]
    assert started(installation, changed) == ["sum", "product"]


def follow(installation: Installation, run_id: str, verb: str, **body: Any) -> dict[str, Any]:
    """Start a run that goes on from another one; return it at its end."""
    answer = installation.client.post(f"/v1/runs/{run_id}/{verb}", json=body)
    assert answer.is_success, answer.text
    there = f"/v1/runs/{answer.json()['run_id']}"
    run: dict[str, Any] = installation.client.get(there, headers={"Prefer": "wait=30"}).json()
    return run


def started(installation: Installation, run: dict[str, Any]) -> list[str]:
    return [
        event["data"]["node_id"]
        for event in installation.log(run["run_id"])
        if event["type"] == "tool_call_started"
    ]


async def test_children_that_nobody_waits_for_are_cancelled_also_by_the_end(
    installation: Installation, create_workflow: Workflow
) -> None:
    child = create_workflow({"id": "long", "wait": {"for": "20d"}})
    race = {
        "wait": "any",
        "branches": {
            "child": {"steps": [{"id": "sub", "workflow": {"name": child}}]},
            "soon": {"steps": [{"id": "nap", "wait": {"for": "500ms"}}]},
        },
    }
    last = create_workflow({"id": "race", "parallel": race})
    first = create_workflow(
        {"id": "race", "parallel": race}, {"id": "more", "wait": {"for": "20d"}}
    )

    ended = installation.start(last, wait=30)
    going_on = installation.start(first)["run_id"]

    assert ended["status"] == "done"
    await eventually(lambda: "more" in str(installation.get(going_on)["waiting_for"]))
    for run in (installation.get(ended["run_id"]), installation.get(going_on)):
        stopped = run["children"][0]["run_id"]
        assert (await installation.until(stopped))["status"] == "cancelled"
    installation.client.post(f"/v1/runs/{going_on}/cancel")


async def test_child_that_takes_too_long_is_cancelled(
    installation: Installation, create_workflow: Workflow
) -> None:
    child = create_workflow({"id": "long", "wait": {"for": "20d"}})
    once = {"timeout_seconds": 0.5, "retry": {"max_attempts": 1}}
    name = create_workflow({"id": "sub", "workflow": {"name": child}, **once})

    run = installation.start(name, wait=30)

    assert (run["status"], run["error"]["code"]) == ("failed", "step_timeout")
    (stopped,) = installation.get(run["run_id"])["children"]
    assert (await installation.until(stopped["run_id"]))["status"] == "cancelled"


def test_run_whose_key_cannot_be_made_fails_at_once(
    installation: Installation, create_workflow: Workflow
) -> None:
    by_key = create_workflow({"id": "one", "transform": 1}, correlation="{{ input.customer }}")
    in_turn = create_workflow(
        {"id": "one", "transform": 1}, concurrency={"key": "input.customer", "max": 1}
    )

    for name in (by_key, in_turn):
        run = installation.start(name, {"other": 1}, wait=30)
        assert run["status"] == "failed", run
        assert "customer" in run["error"]["message"]


@pytest.mark.parametrize("to", ["run", "session", "correlation"])
@pytest.mark.parametrize("value", ["*", {"a": 1}, "no such.thing >"])
def test_message_to_nobody_fails_its_step(
    installation: Installation, create_workflow: Workflow, to: str, value: Any
) -> None:
    name = create_workflow({"id": "tell", "send": {"to": {to: "{{ input }}"}, "name": "x"}})

    run = installation.start(name, value, wait=30)

    assert (run["status"], run["error"]["code"]) == ("failed", "no_recipient")


async def test_deleted_run_leaves_nothing_behind(
    installation: Installation, create_workflow: Workflow
) -> None:
    child = create_workflow({"id": "one", "tool": "add", "input": {"a": 1, "b": 1}})
    name = create_workflow({"id": "sub", "workflow": {"name": child}})
    run = installation.start(name, wait=30)
    family = [run["run_id"], installation.get(run["run_id"])["children"][0]["run_id"]]
    for member in family:
        await indexed(installation, member, "done")

    installation.penstock("history", "delete-run", run["run_id"], "--yes")

    def left() -> list[str]:
        return [one for one in family if installation.client.get(f"/v1/runs/{one}").is_success]

    await eventually(lambda: not left())
    items = installation.client.get("/v1/runs", params={"limit": 200}).json()["items"]
    assert not {one["run_id"] for one in items} & set(family)


async def test_reports_name_what_was_slow_and_what_it_cost(
    installation: Installation, create_workflow: Workflow, create_agent: Callable[..., str]
) -> None:
    agent = create_agent({"text": "slow", "delay_seconds": 0.5})
    name = create_workflow(
        {"id": "quick", "transform": 1}, {"id": "slow", "agent": agent, "input": "x"}
    )
    run = installation.start(name, wait=30)
    await indexed(installation, run["run_id"], "done")

    profile = installation.client.get(f"/v1/runs/{run['run_id']}/profile").json()
    said = installation.penstock("observability", "profile-report", "--name", name)
    costs = installation.penstock("observability", "cost-report", "--since", "1h")

    slow = [node for node in profile["profile"]["nodes"] if node["bottleneck"]]
    assert [node["node_id"] for node in slow] == ["slow"]
    assert "slow" in said
    assert "scripted" in costs
    assert "archive" in installation.penstock("observability", "status").lower()
