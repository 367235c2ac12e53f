"""Waiting runs on a whole stack: events, approvals, client tools, pause, by REST and commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.client_tools import run_with_tools
from tests.support.installation import Installation
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]

Apply = Callable[..., str]


@pytest.fixture
def create_workflow(installation: Installation) -> Apply:
    """Publish a workflow under a name of its own, with tools."""

    def create(*steps: dict[str, Any], tools: dict[str, dict[str, Any]] | None = None) -> str:
        name = f"flow-{uuid.uuid4().hex[:12]}"
        documents = [
            {
                "apiVersion": "penstock/v1",
                "kind": "Tool",
                "metadata": {"name": tool},
                "spec": spec,
            }
            for tool, spec in (tools or {}).items()
        ]
        workflow = {
            "apiVersion": "penstock/v1",
            "kind": "Workflow",
            "metadata": {"name": name},
            "spec": {"steps": list(steps)},
        }
        installation.apply(*documents, workflow)
        return name

    return create


def penstock(installation: Installation, *arguments: str) -> str:
    """Run a command against the stack; return what it prints."""
    command = [sys.executable, "-m", "penstock.cli.app", "--url", installation.url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def waiting(installation: Installation, run_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        run = installation.get(run_id)
        return run if run["status"] == "waiting" else None

    found = await eventually(look)
    assert found is not None
    return found


async def ended(installation: Installation, run_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        run = installation.get(run_id)
        return run if run["status"] in ("done", "failed", "cancelled") else None

    found = await eventually(look)
    assert found is not None
    return found


async def test_run_that_waits_for_an_event_goes_on_when_the_command_sends_it(
    installation: Installation, create_workflow: Apply
) -> None:
    name = create_workflow(
        {"id": "paid", "wait": {"signal": {"name": "paid"}}},
        {"id": "say", "transform": "{{ steps.paid.output.payload.amount }}"},
    )
    run_id = installation.start(name)["run_id"]
    run = await waiting(installation, run_id)
    assert [one["record_id"] for one in run["waiting_for"]] == ["paid"]
    shown = penstock(installation, "signal", run_id, "paid", "--payload", '{"amount": 250}')
    assert run_id in shown
    assert (await ended(installation, run_id))["output"] == 250
    kinds = [event["type"] for event in installation.log(run_id)]
    told = ["wait_started", "signal_received", "wait_ended"]
    assert [kind for kind in kinds if kind in told] == told


async def test_event_finds_its_run_by_a_correlation_key(
    installation: Installation, create_workflow: Apply
) -> None:
    name = create_workflow(
        {
            "id": "paid",
            "wait": {"signal": {"name": "paid", "correlation": "order-{{ input.order }}"}},
        }
    )
    order = uuid.uuid4().hex
    run_id = installation.start(name, {"order": order})["run_id"]
    body = {"name": "paid", "correlation": f"order-{order}", "payload": 1}
    await waiting(installation, run_id)

    def send() -> bool:
        return installation.client.post("/v1/signals", json=body).status_code == 202

    assert await eventually(send)
    assert (await ended(installation, run_id))["status"] == "done"
    late = installation.client.post("/v1/signals", json={**body, "payload": 2})
    assert (late.status_code, late.json()["code"]) == (404, "nobody_waits")


async def test_waits_for_the_same_key_are_each_found_by_it(
    installation: Installation, create_workflow: Apply
) -> None:
    signals = [{"name": name, "correlation": "{{ input }}"} for name in ("paid", "sent", "got")]
    name = create_workflow(
        {"id": "paid", "wait": {"signal": signals[0]}},
        {"id": "sent", "wait": {"signal": signals[1]}},
        {"id": "got", "wait": {"signal": signals[2]}, "depends_on": ["paid"]},
    )
    order = uuid.uuid4().hex
    run_id = installation.start(name, order)["run_id"]

    def tell(event: str) -> bool:
        body = {"name": event, "correlation": order}
        key = {"Idempotency-Key": event}
        return installation.client.post("/v1/signals", json=body, headers=key).is_success

    def waits() -> set[str]:
        return {node_record["record_id"] for node_record in installation.get(run_id)["waiting_for"]}

    await eventually(lambda: tell("paid"))
    await eventually(lambda: waits() == {"sent", "got"})
    await eventually(lambda: tell("sent"))
    await eventually(lambda: waits() == {"got"})
    # What the engine writes into the index comes a moment after the log has it.
    await eventually(lambda: tell("got"))
    assert (await ended(installation, run_id))["status"] == "done"
    assert not tell("more")


@pytest.mark.parametrize("verb", ["approve", "reject"])
async def test_call_is_made_only_when_somebody_agrees_to_exactly_it(
    installation: Installation, create_workflow: Apply, verb: str
) -> None:
    spec = {
        "builtin": {},
        "parameters": {"type": "object"},
        "policy": "require_approval",
        "approval": {"message": "sure?"},
    }
    name = create_workflow(
        {"id": "pay", "tool": "echo", "input": {"amount": "{{ input }}"}}, tools={"echo": spec}
    )
    run_id = installation.start(name, 250)["run_id"]
    await waiting(installation, run_id)

    def listed() -> list[dict[str, Any]]:
        items = installation.client.get("/v1/approvals").json()["items"]
        return [item for item in items if item["run_id"] == run_id]

    (item,) = await eventually(listed)
    assert (item["tool"], item["arguments"]) == ("echo", {"amount": 250})
    path = f"/v1/approvals/{run_id}/{item['record_id']}"
    wrong = installation.client.post(f"{path}/approve", json={"digest": "0" * 64})
    assert (wrong.status_code, wrong.json()["code"]) == (409, "digest_mismatch")
    answer = ("approvals", verb, run_id, item["record_id"], "--digest", item["digest"])
    assert "by development" in penstock(installation, *answer, "--reason", "because")
    run = await ended(installation, run_id)
    if verb == "approve":
        assert run["status"] == "done"
        opposite = installation.client.post(f"{path}/reject")
    else:
        assert (run["status"], run["error"]["code"]) == ("failed", "approval_rejected")
        opposite = installation.client.post(f"{path}/approve")
    assert (opposite.status_code, opposite.json()["code"]) == (409, "already_decided")
    await eventually(lambda: not listed())


def test_client_tools_are_a_loop_over_plain_http(
    installation: Installation, create_agent: Callable[..., str]
) -> None:
    tool = f"screen-{uuid.uuid4().hex[:8]}"
    installation.apply(
        {
            "apiVersion": "penstock/v1",
            "kind": "Tool",
            "metadata": {"name": tool},
            "spec": {"client": {}, "parameters": {"type": "object"}},
        }
    )
    calls = [{"name": tool, "arguments": {"part": part}} for part in ("top", "bottom")]
    agent = create_agent({"tool_calls": calls}, {"text": "a cat on a mat"}, tools=[tool])
    seen = []

    def look(part: str) -> str:
        seen.append(part)
        return "fur"

    with httpx.Client(base_url=installation.url, timeout=70) as client:
        run = run_with_tools(client, agent, "?", {tool: look})
    assert sorted(seen) == ["bottom", "top"]
    assert (run["status"], run["output"]["text"]) == ("done", "a cat on a mat")


async def test_workflow_of_the_page_is_led_to_its_end_by_commands(
    installation: Installation,
) -> None:
    page = (ROOT / "docs/control.md").read_text(encoding="utf-8")
    (documents,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    installation.apply(documents)
    order = uuid.uuid4().hex
    given = {"order": order, "article": "a lamp"}
    run_id = installation.start("shop-order", given)["run_id"]
    await waiting(installation, run_id)

    async def asked(kind: str) -> dict[str, Any] | None:
        node_records = installation.get(run_id)["waiting_for"]
        return next(
            (node_record for node_record in node_records if node_record["kind"] == kind), None
        )

    def pay() -> bool:
        body = {"name": "paid", "correlation": f"order {order}"}
        return installation.client.post("/v1/signals", json=body).is_success

    await eventually(pay)
    call = await eventually(lambda: asked("client_tool"))
    assert call is not None
    assert "inspect-goods" in penstock(installation, "runs", "tool-calls", run_id)
    penstock(installation, "runs", "tool-result", run_id, "look", "-o", '{"state": "new"}')
    question = await eventually(lambda: asked("approval"))
    assert question is not None
    assert question["request"]["message"] == "Send a lamp, which is new?"
    assert "Send a lamp" in penstock(installation, "approvals", "show", run_id, "release")
    penstock(installation, "approvals", "approve", run_id, "release")
    run = await ended(installation, run_id)
    assert (run["status"], run["output"]) == ("done", "a lamp, released by development")


async def test_message_of_a_run_reaches_the_latest_run_of_a_session(
    installation: Installation, create_workflow: Apply
) -> None:
    session = uuid.uuid4().hex
    listener = create_workflow(
        {"id": "heard", "wait": {"signal": {"name": "news"}}},
        {"id": "more", "wait": {"signal": {"name": "more"}}},
    )
    to = {"session": "{{ input }}"}
    sender = create_workflow({"id": "tell", "send": {"name": "news", "to": to, "payload": "hi"}})
    run_id = installation.start(listener, session_id=session)["run_id"]
    await waiting(installation, run_id)
    sent = installation.start(sender, session, wait=30)
    assert (sent["status"], sent["output"]) == ("done", {"run_ids": [run_id]})
    told = [event for event in installation.log(run_id) if event["type"] == "signal_received"]
    assert [event["data"]["from_run"] for event in told] == [sent["run_id"]]
    penstock(installation, "runs", "message", "more", "--session", session)
    assert (await ended(installation, run_id))["status"] == "done"
    kinds = [event["type"] for event in installation.log(sent["run_id"])]
    assert [kind for kind in kinds if kind.startswith("message_")] == [
        "message_sent",
        "message_delivered",
    ]


async def test_paused_run_begins_nothing_until_it_is_resumed(
    installation: Installation, create_workflow: Apply
) -> None:
    name = create_workflow(
        {"id": "go", "wait": {"signal": {"name": "go"}}},
        {"id": "say", "transform": "said"},
    )
    run_id = installation.start(name)["run_id"]
    await waiting(installation, run_id)
    assert "paused" in penstock(installation, "runs", "pause", run_id)
    penstock(installation, "signal", run_id, "go")
    assert installation.get(run_id)["status"] == "paused"
    penstock(installation, "runs", "resume", run_id)
    assert (await ended(installation, run_id))["output"] == "said"


async def test_many_runs_are_cancelled_by_a_tag_and_no_other(
    installation: Installation, create_workflow: Apply
) -> None:
    name = create_workflow({"id": "go", "wait": {"signal": {"name": "go"}}})
    tags = {"batch": uuid.uuid4().hex}
    runs = [installation.start(name, tags=tags)["run_id"] for _ in range(3)]
    other = installation.start(name)["run_id"]
    await waiting(installation, other)
    chosen = ("runs", "cancel-many", "--tag", f"batch={tags['batch']}", "--json")

    def found() -> bool:
        dry = json.loads(penstock(installation, *chosen, "--dry-run"))
        return sorted(dry["asked"]) == sorted(runs)

    await eventually(found)
    assert sorted(json.loads(penstock(installation, *chosen))["asked"]) == sorted(runs)
    for run_id in runs:
        assert (await ended(installation, run_id))["status"] == "cancelled"
    assert installation.get(other)["status"] == "waiting"
    penstock(installation, "runs", "cancel", other)
    assert (await ended(installation, other))["status"] == "cancelled"


async def test_run_can_be_shown_as_it_was_at_every_sequence(installation: Installation) -> None:
    growth = {"principal": 1000, "rate": 2, "years": 5}
    run = installation.start("growth-report", growth, wait=30)
    events = installation.log(run["run_id"])
    seen = []
    for seq in sorted({event["id"] for event in events if event.get("id")}):
        shown = penstock(installation, "runs", "show", run["run_id"], "--at", str(seq), "--json")
        then = json.loads(shown)
        assert then["last_seq"] == seq
        seen.append((then["status"], len(then["steps"])))
    assert seen[0] == ("created", 0)
    assert seen[-1][0] == "done"
    assert seen == sorted(seen, key=lambda pair: pair[1])
