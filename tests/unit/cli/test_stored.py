"""``penstock definitions`` against a gateway that the test plays."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from typer.testing import Result

from tests.unit.cli.conftest import AT

DOCUMENT = {"kind": "Tool", "metadata": {"name": "pay"}, "spec": {"builtin": {"name": "sum"}}}
TOOL: dict[str, Any] = {
    "tenant": "default",
    "kind": "tool",
    "name": "pay",
    "description": "pays",
    "document": DOCUMENT,
    "revision": 3,
    "published_version": 2,
    "status": "published",
    "created_at": AT,
    "updated_at": AT,
}
UNKNOWN = httpx.Response(404, json={"code": "unknown_definition", "detail": "no such one"})


def answer(request: httpx.Request) -> httpx.Response:
    """Answer as a gateway that has two pages of tools, and nothing else."""
    path = request.url.path
    if request.method == "DELETE":
        return httpx.Response(204)
    if path == "/v1/tools/pay":
        return httpx.Response(200, json=TOOL)
    if path.count("/") > 2:
        return UNKNOWN
    if path != "/v1/tools":
        return httpx.Response(200, json={"items": []})
    if "cursor" in request.url.params:
        return httpx.Response(200, json={"items": [{**TOOL, "name": "refund"}]})
    return httpx.Response(200, json={"items": [TOOL], "next_cursor": "pay"})


def test_list_shows_all_kinds_and_pages(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    gateway(answer)
    shown = run("definitions", "list")
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:4] for line in shown.stdout.splitlines()[1:]] == [
        ["tool", "pay", "v2", "published"],
        ["tool", "refund", "v2", "published"],
    ]
    kinds = ["workflows", "networks", "agents", "tools", "tools", "webhooks", "schedules"]
    assert [one.url.path for one in requests] == [f"/v1/{kind}" for kind in kinds]


def test_list_of_one_kind_asks_for_it_alone(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    gateway(answer)
    shown = run("definitions", "list", "--kind", "agent", "--json")
    assert json.loads(shown.stdout) == []
    assert [one.url.path for one in requests] == ["/v1/agents"]


def test_show_prints_the_document_and_with_json_its_state(
    run: Callable[..., Result], gateway: Callable[..., None]
) -> None:
    gateway(answer)
    assert json.loads(run("definitions", "show", "pay").stdout) == DOCUMENT
    whole = json.loads(run("definitions", "show", "pay", "--json").stdout)
    assert (whole["document"], whole["revision"]) == (DOCUMENT, 3)


@pytest.mark.parametrize("kind", [(), ("--kind", "tool")])
def test_delete_finds_the_kind_of_a_name(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    requests: list[httpx.Request],
    kind: tuple[str, ...],
) -> None:
    gateway(answer)
    shown = run("definitions", "delete", "pay", "--yes", *kind)
    assert shown.exit_code == 0, shown.output
    assert (requests[-1].method, requests[-1].url.path) == ("DELETE", "/v1/tools/pay")


def test_delete_without_a_terminal_or_consent_deletes_nothing(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    gateway(answer)
    shown = run("definitions", "delete", "pay")
    assert "needs --yes" in str(shown.exception)
    assert "DELETE" not in [one.method for one in requests]
