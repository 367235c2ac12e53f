"""Where the endpoints of other systems are: each of them is in the table, and what it leads to."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest

from penstock_gateway.app import create_app
from penstock_gateway.settings import GatewaySettings

PAGE = Path(__file__).parents[3] / "docs" / "http-api.md"
ENDPOINTS = """
GET /health
POST /invoke
GET /config/agents
POST /config/agents
GET /config/agents/{name}
PUT /config/agents/{name}
PATCH /config/agents/{name}
DELETE /config/agents/{name}
GET /config/tools
POST /config/tools
GET /config/tools/{name}
PUT /config/tools/{name}
PATCH /config/tools/{name}
DELETE /config/tools/{name}
GET /config/routes
POST /config/routes
DELETE /config/routes/{network}/{source}/{target}
GET /runs/{run_id}/events
POST /webhooks/generic
POST /v1/workflows/workflows
GET /v1/workflows/workflows
GET /v1/workflows/workflows/{id}
PATCH /v1/workflows/workflows/{id}
POST /v1/workflows/workflows/execute
GET /v1/workflows/executions/{id}
POST /v1/workflows/executions/{id}/cancel
GET /v1/workflows/tasks
GET /v1/workflows/messages
POST /v1/agents/register
GET /v1/agents
POST /internal/invoke
GET /v1/runs/:run_id/events
GET /v1/sessions/:session_id/messages
""".strip().splitlines()
"""Endpoints that are offered under the paths that they have elsewhere."""
ELSEWHERE = {
    "RunConfig": "POST /v1/runs",
    "networks and their versions": "POST /v1/networks/{name}/publish",
    "live logs": "GET /v1/runs/{run_id}/events",
    "tool invocation": "POST /v1/runs",
    "dispatch of client tools": "POST /v1/runs/{run_id}/tool_results",
    "approvals": "POST /v1/approvals/{run_id}/{record_id}/approve",
}
"""What has another path here, by how its row begins, with one of the paths."""


def normal(path: str) -> str:
    return re.sub(r"\{[^}]*\}|:\w+", "{}", path)


@lru_cache(maxsize=1)
def offered() -> set[tuple[str, str]]:
    paths = create_app(GatewaySettings()).openapi()["paths"]
    return {
        (method.upper(), normal(path)) for path, methods in paths.items() for method in methods
    } | {("GET", "/metrics")}


@lru_cache(maxsize=1)
def rows() -> list[tuple[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("## Where the endpoints")[2]
    found = [
        row.split(" | ", maxsplit=1) for row in re.findall(r"^\| (.*) \|$", table, re.MULTILINE)
    ]
    return [(there, here) for there, here in found]


def named(cell: str) -> set[tuple[str, str]]:
    """Endpoints that a cell names: each path with the verbs before it."""
    return {
        (verb, normal(path))
        for verbs, path in re.findall(
            r"((?:`?(?:GET|POST|PUT|PATCH|DELETE)`?,? `?)*)`?(/[a-z][\w/{}.:-]*)", cell
        )
        for verb in re.findall(r"[A-Z]+", verbs) or [""]
    }


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_of_another_system_is_offered_and_in_the_table(endpoint: str) -> None:
    method, path = endpoint.split()

    assert (method, normal(path)) in offered()
    assert [
        there
        for there, here in rows()
        if here.startswith("the same") and normal(path) in {where for _, where in named(there)}
    ]


@pytest.mark.parametrize("topic", ELSEWHERE)
def test_what_has_another_path_here_is_in_the_table(topic: str) -> None:
    method, path = ELSEWHERE[topic].split()

    (here,) = [here for there, here in rows() if there.startswith(topic)]
    assert (method, normal(path)) in named(here)


def test_table_names_verbs_that_paths_have() -> None:
    claimed = {one for _, here in rows() for one in named(here) if one[0]}
    claimed |= {
        one for there, here in rows() if here.startswith("the same") for one in named(there)
    }

    assert {one for one in claimed if one[0]} - offered() == set()
