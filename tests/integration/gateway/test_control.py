"""Control of runs: pause, resume, cancelling many, state at a sequence, what views tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats.aio.msg import Msg

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.archive import ListRuns, RunPage
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import (
    CancelRequested,
    Decision,
    DefinitionKind,
    NodeRecord,
    ParentRef,
    RunInvoked,
    RunStatus,
    SignalReceived,
    StepKind,
    StepResult,
    StepScheduled,
    Trigger,
)
from penstock.contracts.ids import child_run_id
from penstock.contracts.plan import Plan, PublishedVersion
from penstock.contracts.rpc import Reply
from penstock.contracts.runners import StopRequest
from penstock.contracts.structs import convert
from penstock.contracts.usage import RunLimits
from penstock.runs.views import RunView
from penstock_gateway.core.access import Caller
from tests.integration.gateway.conftest import Engine, Running, asked, begin
from tests.integration.gateway.test_access import NO_RUN, answer
from tests.support.waiting import eventually


async def cancels(engine: Engine, run_id: str) -> list[CancelRequested]:
    log = await engine.log(run_id)
    return [entry.fact for entry in log if isinstance(entry.fact, CancelRequested)]


# Pause and resume


async def test_pause_and_resume_change_the_status_at_once_and_once(
    gateway: Running, engine: Engine
) -> None:
    run_id = await begin(gateway)
    path = f"/v1/runs/{run_id}"
    paused = await gateway.client.post(f"{path}/pause", json={"reason": "lunch"})
    assert (paused.status_code, paused.json()["status"]) == (202, "paused")
    again = await gateway.client.post(f"{path}/pause")
    assert (again.status_code, again.json()["status"]) == (200, "paused")
    resumed = await gateway.client.post(f"{path}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "created")
    assert (await gateway.client.post(f"{path}/resume")).status_code == 200
    facts = [e.fact for e in await engine.log(run_id) if isinstance(e.fact, SignalReceived)]
    assert [(fact.kind, fact.payload) for fact in facts] == [
        ("pause", {"reason": "lunch"}),
        ("resume", None),
    ]
    events = (await gateway.client.get(f"{path}/events")).json()["items"]
    assert [event["type"] for event in events[2:]] == ["run_paused", "run_resumed"]
    assert events[2]["data"] == {"name": "pause", "reason": "lunch", "by": "development"}


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_ended_or_unknown_run_cannot_be_held(
    gateway: Running, engine: Engine, verb: str
) -> None:
    await answer(engine, "archive", "run_facts", NO_RUN)
    run_id = await begin(gateway)
    await engine.end(run_id, 1)
    ended = await gateway.client.post(f"/v1/runs/{run_id}/{verb}")
    assert (ended.status_code, ended.json()["code"]) == (409, "run_ended")
    unknown = await gateway.client.post(f"/v1/runs/01HZZZZZZZZZZZZZZZZZZZZZZZ/{verb}")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "run_not_found")


# Cancelling


class Archive:
    """Answers lists of runs in pages of two, and keeps what it was asked."""

    def __init__(self, engine: Engine, run_ids: list[str]) -> None:
        self.engine = engine
        self.run_ids = run_ids
        self.asked: list[ListRuns] = []

    async def start(self) -> None:
        await self.engine.bus.subscribe(subjects.rpc("archive", "list_runs"), self._respond)
        await self.engine.bus.nc.flush()

    async def _respond(self, message: Msg) -> None:
        request = ListRuns.model_validate_json(message.data)
        self.asked.append(request)
        first = int(request.cursor or 0)
        until = first + min(2, request.limit)
        page = RunPage(
            items=tuple(self._view(run_id) for run_id in self.run_ids[first:until]),
            next_cursor=str(until) if until < len(self.run_ids) else None,
        )
        reply = Reply(ok=True, result=page.model_dump(mode="json"))
        await message.respond(reply.model_dump_json().encode())

    def _view(self, run_id: str) -> RunView:
        return RunView(
            run_id=run_id,
            tenant=self.engine.tenant,
            name="echo",
            kind=DefinitionKind.AGENT,
            version=1,
            plan_digest="d",
            status=RunStatus.RUNNING,
            trigger=Trigger.HTTP,
            created_at=datetime.now(UTC),
            updated_at=datetime.now(UTC),
            last_seq=1,
        )


async def test_cancel_of_many_asks_each_open_run_that_matches(
    gateway: Running, engine: Engine
) -> None:
    runs = [await begin(gateway) for _ in range(5)]
    await engine.end(runs[1], 1)
    await gateway.client.post(f"/v1/runs/{runs[2]}/cancel")
    archive = Archive(engine, runs)
    await archive.start()
    body = {"name": "echo", "tag": {"team": "a"}, "reason": "wrong list", "status": ["waiting"]}
    dry = (await gateway.client.post("/v1/runs/cancel", json={**body, "dry_run": True})).json()
    expected = {
        "matched": 5,
        "asked": [runs[0], runs[3], runs[4]],
        "asked_before": [runs[2]],
        "ended": [runs[1]],
        "more": False,
    }
    assert dry == {"dry_run": True, **expected}
    assert await cancels(engine, runs[0]) == []
    done = (await gateway.client.post("/v1/runs/cancel", json=body)).json()
    assert done == {"dry_run": False, **expected}
    for run_id in expected["asked"]:  # type: ignore[attr-defined]
        assert [fact.reason for fact in await cancels(engine, run_id)] == ["wrong list"]
    assert await cancels(engine, runs[1]) == []
    first = archive.asked[0]
    assert (first.tenant, first.name, first.tags) == (engine.tenant, "echo", {"team": "a"})
    assert first.status == (RunStatus.WAITING,)


async def test_cancel_of_many_stops_at_its_limit_and_says_so(
    gateway: Running, engine: Engine
) -> None:
    runs = [await begin(gateway) for _ in range(4)]
    archive = Archive(engine, runs)
    await archive.start()
    done = (await gateway.client.post("/v1/runs/cancel", json={"limit": 3})).json()
    assert (done["asked"], done["more"]) == (runs[:3], True)
    assert set(archive.asked[0].status) == {
        RunStatus.CREATED,
        RunStatus.RUNNING,
        RunStatus.WAITING,
        RunStatus.PAUSED,
    }


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"status": ["done"]}, "status[0]"),
        ({"status": ["nonsense"]}, "status[0]"),
        ({"limit": 0}, "limit"),
        ({"older_than": 3}, "older_than"),
    ],
)
async def test_cancel_of_many_of_the_wrong_form_is_refused(
    gateway: Running, body: dict[str, Any], place: str
) -> None:
    response = await gateway.client.post("/v1/runs/cancel", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["path"].endswith(place)


async def test_cancelled_step_has_its_outcome_and_its_runner_comes_too_late(
    gateway: Running, engine: Engine
) -> None:
    run_id = await begin(gateway)
    await engine.schedule(run_id, 1, "a", StepKind.TOOL)
    path = f"/v1/runs/{run_id}/steps/a/cancel"
    response = await gateway.client.post(path, json={"reason": "too slow"})
    assert response.status_code == 202, response.text
    (step,) = response.json()["steps"]
    assert (step["status"], step["error"]["code"]) == ("failed", "cancelled")
    fact = (await engine.log(run_id))[-1].fact
    assert isinstance(fact, StepResult)
    assert fact.error is not None
    assert fact.error.message == "development stopped the step: too slow"
    again = await gateway.client.post(path)
    assert (again.status_code, again.json()["code"]) == (409, "step_not_cancellable")
    unknown = await gateway.client.post(f"/v1/runs/{run_id}/steps/b/cancel")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "step_not_found")


async def test_cancelled_step_is_stopped_at_its_runner(gateway: Running, engine: Engine) -> None:
    stops: list[Msg] = []

    async def listen(message: Msg) -> None:
        stops.append(message)

    await engine.bus.subscribe(subjects.STOP_SPACE, listen)
    run_id = await begin(gateway)
    await engine.schedule(run_id, 1, "a", StepKind.AGENT)
    response = await gateway.client.post(f"/v1/runs/{run_id}/steps/a/cancel")
    assert response.status_code == 202
    await eventually(lambda: len(stops) == 1, within=10)
    assert subjects.parse_stop(stops[0].subject) == run_id
    assert StopRequest.model_validate_json(stops[0].data) == StopRequest(steps=("a",), attempt=1)


async def test_command_that_loses_against_the_end_writes_nothing(
    gateway: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is open when the gateway looks, and has ended when it writes."""
    run_id = await begin(gateway)
    open_state = await gateway.gateway.runs.state(engine.tenant, run_id)
    open_view = await gateway.gateway.runs.view_of(open_state)
    await engine.end(run_id, 1)
    facts = await engine.log(run_id)

    async def before_the_end(*_: object, **__: object) -> Any:
        return open_state

    controls, caller = (
        gateway.gateway.controls,
        Caller(engine.tenant, "key", frozenset({"operator"})),
    )
    with monkeypatch.context() as patched:
        patched.setattr(type(gateway.gateway.runs), "state", before_the_end)
        with pytest.raises(RejectedError, match="run_ended"):
            await controls.pause_or_resume(caller, run_id, "pause", "")
    assert await controls.cancel(caller, run_id, "late") == "ended"
    assert await engine.log(run_id) == facts

    ended_view = await gateway.gateway.runs.view(engine.tenant, run_id)
    views = [open_view, ended_view]

    async def next_view(*_: object) -> RunView:
        return views.pop(0)

    monkeypatch.setattr(type(gateway.gateway.runs), "view", next_view)
    response = await gateway.client.post(f"/v1/runs/{run_id}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "done")
    assert await engine.log(run_id) == facts


async def test_every_view_ends_with_the_end_whatever_comes_late(
    gateway: Running, engine: Engine
) -> None:
    run_id = await begin(gateway)
    await engine.schedule(run_id, 1, "a", StepKind.TOOL)
    await engine.end(run_id, 2, stops=("a",))
    ended = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    late = StepResult(
        occurred_at=datetime.now(UTC),
        kind=StepKind.TOOL,
        name="a",
        status="succeeded",
        started_at=datetime.now(UTC),
    )
    await engine.state(subjects.result(engine.prefix(run_id), "a", 1), late)
    path = f"/v1/runs/{run_id}/events"
    page = (await gateway.client.get(path)).json()
    assert page["items"][-1]["type"] == "run_done"
    after = {"after": str(page["items"][-1]["id"])}
    assert (await gateway.client.get(path, params=after)).json()["items"] == []
    streamed = await gateway.client.get(path, headers={"Accept": "text/event-stream"})
    assert "tool_call_done" not in streamed.text
    assert (await gateway.client.get(f"/v1/runs/{run_id}")).json() == ended
    profile = (await gateway.client.get(f"/v1/runs/{run_id}/profile")).json()["profile"]
    assert [node["duration_ms"] for node in profile["nodes"]] == [0]


async def schedule_child(engine: Engine, run_id: str) -> str:
    """Have a run start another one; return that one's id."""
    suffix = subjects.step_suffix("run", "workflow", "sub", 1)
    fact = StepScheduled(
        occurred_at=datetime.now(UTC),
        decision=Decision(cause_seq=0),
        node_id="sub",
        name="echo",
        expires_at=datetime.now(UTC) + timedelta(minutes=5),
    )
    await engine.state(subjects.out(engine.prefix(run_id), 1, suffix), fact)
    return child_run_id(engine.tenant, run_id, "sub", 1)


async def test_cancelled_step_that_is_a_run_stops_that_run(
    gateway: Running, engine: Engine
) -> None:
    await answer(engine, "archive", "run_facts", NO_RUN)
    run_id = await begin(gateway)
    child = await schedule_child(engine, run_id)
    path = f"/v1/runs/{run_id}/steps/sub/cancel"
    early = await gateway.client.post(path)
    assert (early.status_code, early.json()["code"]) == (409, "step_not_cancellable")
    await begin_child(engine, run_id, child)
    assert (await gateway.client.post(path, json={"reason": "no"})).status_code == 202
    assert [fact.reason for fact in await cancels(engine, child)] == ["no"]
    assert await cancels(engine, run_id) == []


async def begin_child(engine: Engine, run_id: str, child: str) -> None:
    fact = RunInvoked(
        occurred_at=datetime.now(UTC),
        name="echo",
        kind=DefinitionKind.AGENT,
        version=1,
        plan_digest="d" * 64,
        trigger=Trigger.RUN,
        parent=ParentRef(
            run_id=run_id, shard=0, step_id="sub", attempt=1, root_run_id=run_id, depth=1
        ),
    )
    await engine.state(subjects.invoke(engine.prefix(child)), fact)


# What is asked for, and what views tell


async def test_family_of_runs_stands_in_their_views(gateway: Running, engine: Engine) -> None:
    run_id = await begin(gateway)
    child = await schedule_child(engine, run_id)
    await begin_child(engine, run_id, child)
    view = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    assert view["children"] == [
        {"run_id": child, "step_id": "sub", "name": "echo", "status": "scheduled"}
    ]
    below = (await gateway.client.get(f"/v1/runs/{child}")).json()
    assert (below["parent"]["run_id"], below["parent"]["step_id"]) == (run_id, "sub")
    events = (await gateway.client.get(f"/v1/runs/{run_id}/events")).json()["items"]
    assert events[-1]["type"] == "child_run_started"
    assert events[-1]["data"]["child_run_id"] == child


async def test_limits_priority_and_tags_are_in_the_log(gateway: Running, engine: Engine) -> None:
    limits = {
        "timeout_seconds": 60,
        "max_turns": 3,
        "max_steps": 40,
        "max_tokens": 1000,
        "max_cost_usd": 0.5,
        "max_depth": 2,
        "max_fan_out": 10,
    }
    run_id = await begin(gateway, limits=limits, priority=7, tags={"team": "a"})
    fact = (await engine.log(run_id))[0].fact
    assert isinstance(fact, RunInvoked)
    assert fact.limits == convert(RunLimits, limits)
    assert (fact.priority, fact.tags) == (7, {"team": "a"})
    view = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    assert (view["limits"], view["priority"]) == (limits, 7)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"limits": {"max_depth": 33}}, "limits.max_depth"),
        ({"limits": {"max_cost_usd": -1}}, "limits.max_cost_usd"),
        ({"limits": {"max_fan_out": 10_001}}, "limits.max_fan_out"),
        ({"priority": 101}, "priority"),
        ({"name": "echo@"}, "name"),
        ({"name": "echo@1@2"}, "name"),
    ],
)
async def test_start_with_options_out_of_range_is_refused(
    gateway: Running, body: dict[str, Any], place: str
) -> None:
    response = await gateway.client.post("/v1/runs", json={"name": "echo", **body})
    assert response.status_code == 422
    assert [error["path"] for error in response.json()["errors"]] == [place]


async def test_selected_version_is_the_one_that_runs(gateway: Running, engine: Engine) -> None:
    older = PublishedVersion(
        name="echo", kind=DefinitionKind.AGENT, version=3, plan_digest="3" * 64
    )
    bucket = Bucket(engine.bus, subjects.PUBLISHED)
    for selector in ("3", "stable"):
        key = subjects.published_version_key(engine.tenant, "echo", selector)
        await bucket.put(key, older.model_dump_json().encode())
    for name in ("echo@3", "echo@stable"):
        run_id = await begin(gateway, name)
        fact = (await engine.log(run_id))[0].fact
        assert isinstance(fact, RunInvoked)
        assert (fact.name, fact.version, fact.plan_digest) == ("echo", 3, "3" * 64)
    executed = await gateway.client.post("/v1/agents/echo@stable/execute", json={})
    assert (executed.status_code, executed.json()["version"]) == (202, 3)
    for path, name in (("/v1/runs", "echo@9"), ("/v1/runs", "nobody@1")):
        response = await gateway.client.post(path, json={"name": name})
        assert (response.status_code, response.json()["code"]) == (404, "unknown_version")


async def test_budget_tells_what_is_spent_and_left_of_the_stricter_limits(
    gateway: Running, engine: Engine
) -> None:
    plan = Plan(
        name="frugal",
        kind=DefinitionKind.WORKFLOW,
        nodes=(),
        limits=RunLimits(max_tokens=100, max_steps=50),
    )
    await engine.publish_plan(plan)
    await eventually(lambda: f"{engine.tenant}.frugal" in gateway.gateway.published.values)
    run_id = await begin(gateway, "frugal", limits={"max_tokens": 200, "max_steps": 5})
    await engine.schedule(run_id, 1, "a-1")
    await engine.result(run_id, "a-1", deltas=29)
    budget = (await gateway.client.get(f"/v1/runs/{run_id}")).json()["budget"]
    assert budget["tokens"] == {"limit": 100, "spent": 30, "reserved": 0, "left": 70}
    assert budget["steps"] == {"limit": 5, "spent": 1, "reserved": 0, "left": 4}
    assert budget["cost_usd"] is None


async def test_marks_are_shown_where_they_are_asked_for(gateway: Running, engine: Engine) -> None:
    run_id = await begin(gateway)
    taken = NodeRecord(record_id="b", kind="branch", status="succeeded", choice="else")
    await engine.node_record(run_id, 1, taken, asked("w", "wait", name="paid", correlation="o-1"))
    view = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    assert view["node_records"] == []
    assert [(one["record_id"], one["request"]["correlation"]) for one in view["waiting_for"]] == [
        ("w", "o-1")
    ]
    every = (await gateway.client.get(f"/v1/runs/{run_id}", params={"node_records": "true"})).json()
    assert [(one["record_id"], one["choice"]) for one in every["node_records"]] == [
        ("b", "else"),
        ("w", None),
    ]
    events = (await gateway.client.get(f"/v1/runs/{run_id}/events")).json()["items"]
    assert [event["type"] for event in events[2:]] == ["branch_taken", "wait_started"]


async def test_run_at_a_sequence_is_the_run_as_it_was_then(
    gateway: Running, engine: Engine
) -> None:
    run_id = await begin(gateway)
    first = (await engine.log(run_id))[0].seq
    scheduled = await engine.schedule(run_id, 1, "a-1")
    ended = await engine.end(run_id, 2, "x")
    path = f"/v1/runs/{run_id}"

    async def status(seq: int) -> str:
        answered = await gateway.client.get(path, params={"at_seq": seq})
        assert answered.json()["last_seq"] <= seq
        return str(answered.json()["status"])

    assert [await status(seq) for seq in (first, scheduled, ended, ended + 1000)] == [
        "created",
        "running",
        "done",
        "done",
    ]
    before = await gateway.client.get(path, params={"at_seq": first - 1})
    assert (before.status_code, before.json()["code"]) == (422, "invalid_sequence")
    assert before.json()["errors"][0]["allowed"] == f"{first} to {ended}"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("at_seq=x", "invalid_sequence"),
        ("at_seq=0", "invalid_sequence"),
        ("node_records=perhaps", "invalid_request"),
    ],
)
async def test_read_with_a_wrong_parameter_is_refused(
    gateway: Running, query: str, code: str
) -> None:
    run_id = await begin(gateway)
    response = await gateway.client.get(f"/v1/runs/{run_id}?{query}")
    assert (response.status_code, response.json()["code"]) == (422, code)
