"""The archive's lists, reports and deletions on a whole stack with keys, by REST and commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from penstock import rpc
from penstock.cli.wire import Wire, on_wire
from penstock.contracts import subjects
from penstock.contracts.ids import shard_of
from penstock.contracts.rpc import CreatedKey, CreateKey
from penstock.stack import Stack, StackOptions
from tests.support.installation import ENV, Installation, scripted_agent
from tests.support.waiting import eventually

ROLES = ("admin", "operator", "viewer")
TURN = {"text": "here you are"}


def workflow(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "penstock/v1",
        "kind": "Workflow",
        "metadata": {"name": name},
        "spec": {"steps": list(steps)},
    }


async def _create_keys(wire: Wire) -> dict[str, str]:
    """Make a key for each role; the stranger is another tenant's admin."""
    keys = {}
    for name, role in (*((role, role) for role in ROLES), ("stranger", "admin")):
        tenant = "other" if name == "stranger" else "default"
        wanted = CreateKey.model_validate({"tenant": tenant, "name": name, "roles": [role]})
        keys[name] = (await rpc.call(wire.bus, "registry", "create_key", wanted, CreatedKey)).secret
    return keys


class Ask:
    """The stack as callers with different roles see it."""

    def __init__(self, stack: Installation) -> None:
        self.stack = stack
        self.keys = on_wire(stack.target, _create_keys)
        stack.client.headers["Authorization"] = f"Bearer {self.keys['admin']}"

    def __call__(self, verb: str, path: str, role: str = "admin", **params: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[role]}"}
        return self.stack.client.request(verb, path, headers=headers, params=params)

    def items(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """Read all pages of a list, as a viewer."""
        found: list[dict[str, Any]] = []
        while True:
            answer = self("GET", path, "viewer", **params)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            assert page["items"]
            params["cursor"] = page["next_cursor"]

    async def caught_up(self) -> None:
        """Wait until the archive has all that the log has."""

        def level() -> bool:
            answer = self("GET", "/v1/archive")
            assert answer.status_code == 200, answer.text
            return bool(answer.json()["lag_messages"] == 0)

        await eventually(level)

    async def ran(self, name: str, value: Any = None, **options: Any) -> str:
        """Let a run come to its end; return its id."""
        run = self.stack.start(name, value, wait=30, **options)
        assert run["status"] in ("done", "failed"), run
        return str(run["run_id"])

    def command(self, *arguments: str, role: str = "admin", code: int = 0) -> str:
        """Run a command with a key; return what it prints."""
        return self.stack.penstock("--api-key", self.keys[role], *arguments, code=code)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A stack with keys, for the tests of this module."""
    data_dir = tmp_path_factory.mktemp("archive")
    options = StackOptions(data_dir=str(data_dir), port=0, nats_port=0, auth=True)
    with Stack(options, env=ENV) as stack, ExitStack() as opened:
        found = Installation(stack, data_dir)
        opened.callback(found.client.close)
        asked = Ask(found)
        found.apply(
            scripted_agent("clerk", TURN),
            scripted_agent("broken", {"error": {"code": "boom", "family": "rejected"}}),
            workflow("kid", {"id": "turn", "agent": "clerk", "input": "hello"}),
            workflow("family", {"id": "kid", "workflow": {"name": "kid"}}),
            workflow(
                "receiver",
                {"id": "word", "wait": {"signal": {"name": "word"}}},
            ),
            workflow(
                "sender",
                {
                    "id": "tell",
                    "send": {"to": {"run": "{{ input.to }}"}, "name": "word", "payload": 7},
                },
            ),
        )
        yield asked


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code
    return problem


# -- lists -------------------------------------------------------------------------------------


async def test_list_of_runs_takes_each_filter_and_goes_on_by_cursor(ask: Ask) -> None:
    tags = {"team": "lists"}
    ids = [await ask.ran("clerk", f"n{n}", tags=tags, session_id="lists") for n in range(3)]
    failed = await ask.ran("broken", "x", tags=tags)
    await ask.caught_up()

    def listed(**params: Any) -> list[str]:
        return [run["run_id"] for run in ask.items("/v1/runs", tag="team=lists", **params)]

    assert listed() == [failed, *reversed(ids)]
    assert listed(limit=1) == listed()
    assert listed(order="asc", limit=3) == [*ids, failed]
    assert listed(sort="ended", limit=2) == listed()
    assert listed(status="failed") == [failed]
    assert listed(status=["failed", "done"]) == listed()
    assert listed(name="broken") == [failed]
    assert listed(session_id="lists") == list(reversed(ids))
    assert listed(error="boo") == [failed]
    assert listed(kind="workflow") == []
    assert listed(trigger="http") == listed()
    first = ask.stack.get(ids[0])
    assert listed(created_before=first["created_at"]) == []
    assert listed(created_from=first["created_at"]) == listed()
    assert listed(ended_from=first["ended_at"], ended_before=first["ended_at"]) == []
    assert listed(min_cost=1) == []
    assert ask("GET", "/v1/runs", "stranger").json()["items"] == []
    shown = ask.command("runs", "list", "--tag", "team=lists", "--status", "failed", role="viewer")
    assert failed in shown
    assert ids[0] not in shown


async def test_runs_that_came_of_a_run_are_listed_with_their_parent(ask: Ask) -> None:
    root = await ask.ran("family")
    await ask.caught_up()
    (child,) = ask.items("/v1/runs", parent=root)
    assert child["parent"]["run_id"] == root
    assert {run["run_id"] for run in ask.items("/v1/runs", root=root)} == {root, child["run_id"]}
    assert child["run_id"] in ask.command("runs", "list", "--parent", root)


async def test_steps_tasks_and_messages_of_runs_are_listed(ask: Ask) -> None:
    root = await ask.ran("family")
    receiver = ask.stack.start("receiver")["run_id"]
    await ask.stack.until(receiver, "waiting")
    sender = await ask.ran("sender", {"to": receiver})
    assert (await ask.stack.until(receiver))["output"]
    await ask.caught_up()
    (step,) = ask.items("/v1/steps", run_id=root)
    assert (step["step_id"], step["kind"], step["status"]) == ("kid", "run", "succeeded")
    assert step["duration_ms"] > 0
    assert ask.items(f"/v1/runs/{root}/steps") == [step]
    child = ask.items("/v1/runs", parent=root)[0]["run_id"]
    turns = ask.items("/v1/steps", kind="agent", name="clerk", status="succeeded", limit=1)
    assert child in {turn["run_id"] for turn in turns}
    tasks = {task["run_id"] for task in ask.items("/v1/workflows/tasks")}
    assert {root, child, sender} <= tasks
    (message,) = ask.items("/v1/workflows/messages", from_run=sender)
    assert (message["run_id"], message["name"], message["payload"]) == (receiver, "word", 7)
    assert ask.items("/v1/workflows/messages", run_id=receiver, name="word") == [message]


# -- reports -----------------------------------------------------------------------------------


async def test_cost_of_a_child_run_is_reported_once(ask: Ask) -> None:
    ask.stack.apply(scripted_agent("once", TURN))
    ask.stack.apply(
        workflow("dear-kid", {"id": "turn", "agent": "once", "input": "hello"}),
        workflow("dear", {"id": "kid", "workflow": {"name": "dear-kid"}}),
    )
    begun = ask("GET", "/v1/reports/cost").json()["total"]
    root = await ask.ran("dear")
    assert ask.stack.get(root)["usage"]["model_calls"] == 1
    await ask.caught_up()
    report = ask("GET", "/v1/reports/cost", "viewer").json()
    assert report["total"]["model_calls"] == begun["model_calls"] + 1
    (line,) = [line for line in report["agents"] if line["key"] == "once"]
    assert line["usage"]["model_calls"] == 1
    mine = ask("GET", "/v1/reports/cost", "viewer", name="once").json()
    assert (mine["runs"], mine["total"]["input_tokens"]) == (1, line["usage"]["input_tokens"])
    assert ask("GET", "/v1/reports/cost", until="2020-01-01T00:00:00Z").json()["runs"] == 0
    usage = ask("GET", "/v1/usage", name="once").json()
    assert usage["total"]["model_calls"] == 1
    assert "once" in ask.command("observability", "cost-report", "--name", "once")


async def test_profile_of_a_run_is_the_same_from_log_and_archive(ask: Ask) -> None:
    run_id = await ask.ran("clerk", "x")
    await ask.caught_up()
    found = ask("GET", f"/v1/runs/{run_id}/profile", "viewer").json()
    assert (found["name"], found["status"]) == ("clerk", "done")
    (node,) = found["profile"]["nodes"]
    assert node["name"] == "clerk"
    low = ask("GET", f"/v1/runs/{run_id}/profile", threshold=0).json()["profile"]
    assert low["bottlenecks"] == [node["node_id"]]
    report = ask("GET", "/v1/reports/profile", "viewer", name="clerk", runs=1).json()
    assert report["runs"] == 1
    assert report["nodes"][0]["mean_ms"] == pytest.approx(node["duration_ms"])
    assert node["node_id"] in ask.command("observability", "profile-report", run_id)
    assert "up to date" in ask.command("observability", "status")


async def test_profile_of_an_open_run_says_where_it_is(ask: Ask) -> None:
    run_id = ask.stack.start("receiver")["run_id"]
    await ask.stack.until(run_id, "waiting")
    found = ask("GET", f"/v1/runs/{run_id}/profile").json()
    assert (found["status"], found["profile"]["nodes"]) == ("waiting", [])
    ask("POST", f"/v1/runs/{run_id}/cancel")
    await ask.stack.until(run_id)


# -- what is refused ---------------------------------------------------------------------------

WRONG = [
    ("/v1/runs", {"status": "sleeping"}, "query.status[0]", "running"),
    ("/v1/runs", {"colour": "red"}, "query.colour", "created_from"),
    ("/v1/runs", {"limit": "0"}, "query.limit", "1"),
    ("/v1/runs", {"cursor": "nonsense"}, "cursor", "next_cursor"),
    ("/v1/runs", {"created_from": "yesterday"}, "query.created_from", ""),
    ("/v1/runs", {"created_from": "2026-01-01T00:00:00"}, "query.created_from", ""),
    ("/v1/runs", {"min_cost": "nan"}, "query.min_cost", ""),
    ("/v1/runs", {"tag": "alone"}, "query.tag", "name=value"),
    ("/v1/runs", {"sort": "cost"}, "query.sort", "created|ended"),
    ("/v1/runs", {"kind": "thing"}, "query.kind", "workflow"),
    ("/v1/steps", {"kind": "http"}, "query.kind[0]", "agent"),
    ("/v1/steps", {"cursor": "e30"}, "cursor", "next_cursor"),
    ("/v1/steps", {"state": "open"}, "query.state", "status"),
    ("/v1/workflows/tasks", {"limit": "many"}, "query.limit", ""),
    ("/v1/workflows/messages", {"kind": "event"}, "query.kind", "from_run"),
    ("/v1/reports/cost", {"since": "x"}, "query.since", ""),
    ("/v1/reports/cost", {"model": "x"}, "query.model", "name, since, until"),
    ("/v1/reports/profile", {"threshold": "2"}, "query.threshold", "1"),
    ("/v1/reports/profile", {"runs": "5000"}, "query.runs", "1000"),
]


@pytest.mark.parametrize(
    ("path", "params", "place", "allowed"),
    WRONG,
    ids=[f"{path}?{next(iter(params))}" for path, params, *_ in WRONG],
)
def test_wrong_parameter_is_named_with_what_is_allowed(
    ask: Ask, path: str, params: dict[str, str], place: str, allowed: str
) -> None:
    problem = assert_problem(ask("GET", path, **params), 422, ask_code(params, place))
    (found,) = problem["errors"]
    assert found["path"] == place
    assert allowed in (found["allowed"] or ""), found


def ask_code(params: dict[str, str], place: str) -> str:
    return "invalid_cursor" if "cursor" in params and place == "cursor" else "invalid_request"


async def test_wrong_role_and_other_tenants_are_refused(ask: Ask) -> None:
    run_id = await ask.ran("clerk", "x", session_id="guarded")
    await ask.caught_up()
    for verb, path, role, needed in (
        ("DELETE", f"/v1/runs/{run_id}", "operator", "admin"),
        ("DELETE", f"/v1/runs/{run_id}", "viewer", "admin"),
        ("DELETE", "/v1/sessions/guarded", "operator", "admin"),
        ("DELETE", "/v1/sessions/guarded?keep_runs=true", "viewer", "operator"),
        ("DELETE", "/v1/tenants/default/data", "operator", "admin"),
        ("POST", f"/v1/runs/{run_id}/restore", "viewer", "operator"),
    ):
        problem = assert_problem(ask(verb, path, role), 403, "forbidden")
        assert problem["errors"][0]["allowed"] == needed
    problem = assert_problem(
        ask("DELETE", "/v1/tenants/default/data", "stranger"), 403, "forbidden"
    )
    assert problem["errors"][0] == {
        "path": "tenant",
        "message": "another tenant",
        "allowed": "other",
    }
    assert_problem(ask("DELETE", f"/v1/runs/{run_id}", "stranger"), 404, "run_not_found")
    assert_problem(ask("POST", f"/v1/runs/{run_id}/restore", "stranger"), 404, "run_not_found")
    assert_problem(ask("DELETE", "/v1/sessions/guarded", "stranger"), 404, "session_not_found")
    assert_problem(ask("GET", f"/v1/runs/{run_id}/profile", "stranger"), 404, "run_not_found")
    assert_problem(ask("DELETE", "/v1/runs/nothing"), 404, "run_not_found")
    said = ask.command("history", "delete-run", run_id, "--yes", role="viewer", code=1)
    assert "role admin" in said
    assert ask.stack.get(run_id)["status"] == "done"


async def test_open_run_is_neither_deleted_nor_restored(ask: Ask) -> None:
    run_id = ask.stack.start("receiver", session_id="busy")["run_id"]
    await ask.stack.until(run_id, "waiting")
    await ask.caught_up()
    for verb, path in (
        ("DELETE", f"/v1/runs/{run_id}"),
        ("DELETE", "/v1/sessions/busy"),
        ("DELETE", "/v1/tenants/default/data"),
        ("POST", f"/v1/runs/{run_id}/restore"),
    ):
        problem = assert_problem(ask(verb, path), 409, "run_not_ended")
        assert run_id in problem["detail"]
    assert "run_not_ended" in ask.command("history", "delete-run", run_id, "--yes", code=2)
    ask("POST", f"/v1/runs/{run_id}/cancel")
    assert (await ask.stack.until(run_id))["status"] == "cancelled"


# -- keeping and deleting ----------------------------------------------------------------------


async def test_run_that_the_log_has_lost_is_read_and_restored(ask: Ask) -> None:
    run_id = await ask.ran("clerk", "x")
    await ask.caught_up()
    whole = ask.stack.log(run_id)
    run = ask.stack.get(run_id)
    wanted = subjects.run_filter("default", shard_of(run_id, 8), run_id)

    async def forget(wire: Wire) -> Any:
        return await wire.bus.api(f"STREAM.PURGE.{subjects.RUNS}", {"filter": wanted})

    def purge() -> int:
        return int(on_wire(ask.stack.target, forget)["purged"])

    assert await asyncio.to_thread(purge) == run_facts(whole)
    assert ask.stack.get(run_id) == run
    assert ask.stack.log(run_id) == whole
    restored = ask("POST", f"/v1/runs/{run_id}/restore", "operator").json()
    assert restored["restored"] == restored["facts"] == run_facts(whole)
    assert ask("POST", f"/v1/runs/{run_id}/restore").json()["restored"] == 0
    assert ask.stack.get(run_id)["output"] == run["output"]
    assert "0 of" in ask.command("history", "restore", run_id)
    assert ask.items("/v1/runs", name="clerk")[0]["run_id"]


def run_facts(events: list[dict[str, Any]]) -> int:
    """Count the facts behind a run's events."""
    return len({event["id"] for event in events if "id" in event})


async def test_deleted_run_and_its_child_runs_are_gone_everywhere(ask: Ask) -> None:
    root = await ask.ran("family", "canary", tags={"team": "gone"})
    await ask.caught_up()
    (child,) = (run["run_id"] for run in ask.items("/v1/runs", parent=root))
    deleted = ask("DELETE", f"/v1/runs/{root}")
    assert (deleted.status_code, deleted.json()["runs"]) == (200, 2)
    for run_id in (root, child):
        assert_problem(ask("GET", f"/v1/runs/{run_id}"), 404, "run_not_found")
        assert_problem(ask("GET", f"/v1/runs/{run_id}/profile"), 404, "run_not_found")
        assert_problem(ask("DELETE", f"/v1/runs/{run_id}"), 404, "run_not_found")
        assert ask.items("/v1/steps", run_id=run_id) == []
    assert ask.items("/v1/runs", root=root) == []
    assert ask.items("/v1/runs", tag="team=gone") == []


async def test_deleted_session_takes_its_runs_along_unless_they_are_to_be_kept(ask: Ask) -> None:
    kept = await ask.ran("clerk", "x", session_id="hidden")
    gone = [await ask.ran("clerk", "x", session_id="gone") for _ in range(2)]
    await ask.caught_up()
    hidden = ask("DELETE", "/v1/sessions/hidden", "operator", keep_runs=True)
    assert (hidden.status_code, hidden.json()["runs"]) == (200, 0)
    assert ask("DELETE", "/v1/sessions/gone").json()["runs"] == 2
    for session in ("hidden", "gone"):
        assert_problem(ask("GET", f"/v1/sessions/{session}"), 404, "session_not_found")
    assert ask.stack.get(kept)["status"] == "done"
    for run_id in gone:
        assert_problem(ask("GET", f"/v1/runs/{run_id}"), 404, "run_not_found")
    again = await ask.ran("clerk", "x", session_id="gone")
    await ask.caught_up()
    assert [run["run_id"] for run in ask.items("/v1/runs", session_id="gone")] == [again]
    said = ask.command("history", "delete-session", "gone", "--yes")
    assert "deleted 1 runs" in said


async def test_deleted_data_of_a_tenant_is_its_own_alone(ask: Ask) -> None:
    mine = await ask.ran("clerk", "x")
    stranger = {"Authorization": f"Bearer {ask.keys['stranger']}"}
    documents = [scripted_agent("clerk", TURN)]
    body = {"documents": documents, "publish": True}
    client = ask.stack.client
    assert client.post("/v1/apply", json=body, headers=stranger).status_code == 200
    started = client.post(
        "/v1/runs", json={"name": "clerk", "input": "x"}, headers={**stranger, "Prefer": "wait=30"}
    ).json()
    assert started["status"] == "done"
    await ask.caught_up()
    assert_problem(ask("DELETE", "/v1/tenants/other/data"), 403, "forbidden")
    key = ("--api-key", ask.keys["stranger"])
    said = ask.stack.penstock(*key, "history", "delete-tenant", "other", "--yes")
    assert "deleted 1 runs" in said
    assert ask("GET", "/v1/runs", "stranger").json()["items"] == []
    assert_problem(ask("GET", f"/v1/runs/{started['run_id']}", "stranger"), 404, "run_not_found")
    assert ask("GET", "/v1/agents/clerk", "stranger").status_code == 200
    assert ask.stack.get(mine)["status"] == "done"
