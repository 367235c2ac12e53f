"""The examples of docs/workflows.md and docs/networks.md: each is applied and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.http_server import Answer, Call, HttpServer
from tests.support.installation import ENV, Installation
from tests.support.waiting import eventually

DOCS = Path(__file__).parents[2] / "docs"
SECRET: Final = ENV["PENSTOCK_SECRET_QUOTES_KEY"]
OVER: Final = ("done", "failed", "cancelled")


def blocks(page: str) -> dict[str, list[dict[str, Any]]]:
    """Return the documents of each YAML block of a page by the name of the last of them."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [
        list(yaml.safe_load_all(block))
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    ]
    return {documents[-1]["metadata"]["name"]: documents for documents in found}


EXAMPLES: Final = {**blocks("workflows.md"), **blocks("networks.md")}


@pytest.fixture(scope="module")
def pages(installation: Installation) -> Installation:
    """Apply everything that the pages show."""
    installation.apply(*(document for documents in EXAMPLES.values() for document in documents))
    return installation


@pytest.mark.parametrize(
    ("name", "given", "output"),
    [
        ("doc-hello", {"name": "you"}, {"greeting": "Hello you!"}),
        ("doc-order", None, 3),
        ("doc-errors", {"by": 4}, {"value": 0.25, "why": None}),
        ("doc-errors", {"by": 0}, {"value": 0, "why": "could not: division_by_zero"}),
        (
            "doc-transform",
            {"lines": [{"title": "a"}, {"title": "b"}]},
            {"count": 2, "titles": ["a", "b"]},
        ),
        ("doc-branch", {"amount": 500}, "a large order"),
        ("doc-branch", {"amount": 50}, "a medium order"),
        ("doc-branch", {"amount": 5}, "a small order"),
        ("doc-parallel", {"n": 5}, 35),
        ("doc-map", {"numbers": [3, 1, 2]}, [9, 1, 4]),
        ("doc-map", {"numbers": []}, []),
        ("doc-loop", {"from": 3}, 192),
        ("doc-parent", {"n": 3}, 12),
        ("doc-end", {"lines": []}, {"count": 0}),
        ("doc-end", {"lines": [1, 2]}, {"count": 2}),
        ("doc-limits", {"customer": "c", "numbers": [1, 2]}, [2, 4]),
        ("doc-desk", "How much is it?", {"text": "They say: [arithmetic] 480"}),
    ],
)
def test_example_of_the_page_gives(pages: Installation, name: str, given: Any, output: Any) -> None:
    run = pages.start(name, given, wait=30)

    assert run["status"] == "done", run
    assert run["output"] == output


def test_every_example_of_the_pages_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")

    assert [name for name in EXAMPLES if f'"{name}"' not in text and name != "doc-child"] == []


def test_agent_and_tool_example_hands_the_product_on(pages: Installation) -> None:
    run = pages.start("doc-agent-and-tool", {"a": 6}, wait=30)

    assert run["status"] == "done", run
    assert "42" in run["output"]["text"]


def test_http_example_sends_what_it_says(installation: Installation) -> None:
    def respond(call: Call) -> Answer:
        return Answer(body={"quote": 12.5})

    (document,) = EXAMPLES["doc-http"]
    with HttpServer(respond) as server:
        installation.apply(yaml.safe_dump(document).replace("https://api.example.com", server.url))
        given = {"city": "Århus/C", "unit": "m²", "amount": 3}
        run = installation.start("doc-http", given, wait=30)

    assert run["status"] == "done", run
    assert run["output"] == {"status": 200, "quote": 12.5}
    call = server.calls[0]
    assert (call.method, call.path) == ("POST", "/quotes/%C3%85rhus%2FC?unit=m%C2%B2")
    assert json.loads(call.body) == {"amount": 3}
    assert call.headers["authorization"] == f"Bearer {SECRET}"
    assert call.headers["x-run"] == run["run_id"]
    assert SECRET not in str(installation.log(run["run_id"]))


async def test_wait_example_goes_on_with_the_event_that_matches(pages: Installation) -> None:
    order = uuid.uuid4().hex
    run = pages.start("doc-wait", {"amount": 5, "order": order})

    for amount in (1, 7):
        signal = {"name": "payment", "payload": {"amount": amount}}
        answer = pages.client.post(f"/v1/runs/{run['run_id']}/signals", json=signal)
        assert answer.is_success, answer.text

    ended = await over(pages, run["run_id"])
    assert (ended["status"], ended["output"]) == (
        "done",
        {"name": "payment", "payload": {"amount": 7}},
    )


@pytest.mark.parametrize(("decision", "approved"), [("approve", True), ("reject", False)])
async def test_approval_example_says_what_was_decided(
    pages: Installation, decision: str, approved: bool
) -> None:
    run = pages.start("doc-approval", {"amount": 5})

    def asked() -> str:
        answer = pages.client.get("/v1/approvals", params={"run_id": run["run_id"]}).json()
        assert answer["items"], answer
        return str(answer["items"][0]["record_id"])

    record_id = await eventually(asked)
    answer = pages.client.post(f"/v1/approvals/{run['run_id']}/{record_id}/{decision}", json={})
    assert answer.status_code == 202, answer.text

    ended = await over(pages, run["run_id"])
    assert ended["status"] == "done", ended
    assert ended["output"]["approved"] is approved


async def test_send_example_reaches_the_run_that_waits(pages: Installation) -> None:
    room = uuid.uuid4().hex
    receiver = pages.start("doc-receiver", {"room": room})

    async def sent() -> dict[str, Any]:
        sender = pages.start("doc-sender", {"room": room}, wait=30)
        assert sender["status"] == "done", sender
        view = pages.get(receiver["run_id"])
        assert view["status"] in OVER, view
        return view

    ended = await eventually(sent)
    assert (ended["status"], ended["output"]) == (
        "done",
        {"name": "word", "payload": {"text": "hello"}},
    )


def test_end_example_fails_the_run_with_its_message(pages: Installation) -> None:
    run = pages.start("doc-end", {"lines": [1, 2, 3, 4]}, wait=30)

    assert run["status"] == "failed"
    assert "4 are too many" in run["error"]["message"]


def test_saga_example_undoes_tells_and_closes(pages: Installation) -> None:
    run = pages.start("doc-saga", {"item": "a bench", "broke": True}, wait=30)

    assert run["status"] == "failed"
    steps = pages.get(run["run_id"])["steps"]
    done = [step["node_id"] for step in steps if step["status"] == "succeeded"]
    assert done == ["reserve", "reserve_undo", "tell", "close"]


def test_child_that_changes_publishes_its_parent_again(installation: Installation) -> None:
    suffix = uuid.uuid4().hex[:8]

    def document(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "penstock/v1",
            "kind": "Workflow",
            "metadata": {"name": f"{name}-{suffix}"},
            "spec": {"steps": list(steps)},
        }

    parent = document("parent", {"id": "run", "workflow": {"name": f"child-{suffix}"}})
    installation.apply(document("child", {"id": "one", "transform": 1}), parent)
    assert installation.start(f"parent-{suffix}", wait=30)["output"] == 1

    results = installation.apply(document("child", {"id": "one", "transform": 2}))

    assert [(one["name"], one["version"], one["dependant"]) for one in results] == [
        (f"child-{suffix}", 2, False),
        (f"parent-{suffix}", 2, True),
    ]
    assert installation.start(f"parent-{suffix}", wait=30)["output"] == 2
    assert installation.start(f"parent-{suffix}@1", wait=30)["output"] == 1


def test_alias_with_a_canary_sends_some_runs_to_the_other_version(
    installation: Installation,
) -> None:
    name = f"versions-{uuid.uuid4().hex[:8]}"
    for number in (1, 2):
        installation.apply(
            {
                "apiVersion": "penstock/v1",
                "kind": "Workflow",
                "metadata": {"name": name},
                "spec": {"steps": [{"id": "one", "transform": number}]},
            }
        )
    path = f"/v1/workflows/{name}/aliases/stable"
    body = {"version": 1, "canary": {"version": 2, "weight": 50}}
    assert installation.client.put(path, json=body).status_code == 200

    runs = [installation.start(f"{name}@stable", wait=30) for _ in range(20)]

    outputs = [run["output"] for run in runs]
    assert set(outputs) == {1, 2}
    assert outputs == [run["version"] for run in runs]
    archived = installation.client.post(f"/v1/workflows/{name}/archive")
    assert archived.json()["status"] == "archived"
    for selected in (name, f"{name}@1", f"{name}@stable"):
        refused = installation.client.post("/v1/runs", json={"name": selected})
        assert refused.status_code == 404


async def over(installation: Installation, run_id: str) -> dict[str, Any]:
    def probe() -> dict[str, Any]:
        view = installation.get(run_id)
        assert view["status"] in OVER, view
        return view

    return await eventually(probe)


def test_routes_of_a_network_are_changed_one_by_one(installation: Installation) -> None:
    name = f"net-{uuid.uuid4().hex[:8]}"
    spec = {"model": "scripted/echo"}
    installation.apply(
        {
            "apiVersion": "penstock/v1",
            "kind": "Network",
            "metadata": {"name": name},
            "spec": {
                "entry": "a",
                "agents": [
                    {"name": "a", "spec": spec, "routes": ["b"]},
                    {"name": "b", "spec": spec, "routes": ["c"]},
                    {"name": "c", "spec": spec},
                ],
            },
        }
    )
    client = installation.client

    def routes() -> list[tuple[str, str]]:
        items = client.get("/config/routes", params={"network": name}).json()["items"]
        return [(one["source"], one["target"]) for one in items]

    added = client.post("/config/routes", json={"network": name, "source": "a", "target": "c"})
    assert added.status_code == 201, added.text
    assert routes() == [("a", "b"), ("a", "c"), ("b", "c")]
    assert client.delete(f"/config/routes/{name}/b/c").status_code == 204
    assert routes() == [("a", "b"), ("a", "c")]
    assert client.get(f"/v1/networks/{name}").json()["published_version"] == 3

    circle = client.post("/config/routes", json={"network": name, "source": "b", "target": "a"})
    assert circle.status_code == 422
    assert circle.json()["errors"][0]["path"] == "spec.policy.cycles"
    stranger = client.post("/config/routes", json={"network": name, "source": "x", "target": "a"})
    assert (stranger.status_code, stranger.json()["errors"][0]["allowed"]) == (422, "a, b, c")
    assert client.delete(f"/config/routes/{name}/b/c").status_code == 404
    assert client.get("/config/networks").json()["items"]
    assert client.get("/config/agents").status_code == 200
    answer = client.post(
        f"/v1/networks/{name}/execute", json={"input": "hi"}, headers={"Prefer": "wait=30"}
    )
    assert answer.json()["output"]["text"] == "hi", answer.text


def test_alias_is_set_shown_and_removed_by_the_command_line(installation: Installation) -> None:
    name = f"cli-{uuid.uuid4().hex[:8]}"
    for number in (1, 2):
        installation.apply(
            {
                "apiVersion": "penstock/v1",
                "kind": "Workflow",
                "metadata": {"name": name},
                "spec": {"steps": [{"id": "one", "transform": number}]},
            }
        )

    def penstock(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "penstock.cli.app", *words],
            env={**os.environ, "PENSTOCK_URL": installation.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = penstock("alias", "set", name, "stable", "1", "--canary", "2", "--weight", "25")
    assert made.strip() == f"{name}@stable is v1, 25% v2"
    assert "25% v2" in penstock("alias", "list", name)
    assert "in force" in penstock("versions", name)
    assert "v1 is in force" in penstock("publish", name, "--version", "1")
    penstock("alias", "delete", name, "stable")
    assert "stable" not in penstock("alias", "list", name)
    assert "archived" in penstock("archive", name, "--kind", "workflow")
