"""Requests that break programs: none of them is answered by 5xx or leaves a stack trace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from penstock.stack import Stack, StackOptions
from tests.support.fuzz import Fuzzer
from tests.support.installation import ENV, EXAMPLES, Installation
from tests.support.postgres import create_database

ROUNDS = 8
"""Requests for each operation; 60 found what is mended."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Installation]:
    """A stack of its own, so that its logs are its own, on PostgreSQL, the stricter database."""
    data_dir = tmp_path_factory.mktemp("stack")
    env = {**ENV, "DATABASE_URL": asyncio.run(create_database(postgres_url, "fuzz"))}
    with Stack(StackOptions(data_dir=str(data_dir), port=0, nats_port=0), env=env) as stack:
        found = Installation(stack, data_dir)
        found.apply(*(file.read_text() for file in sorted(EXAMPLES.glob("*.yaml"))))
        yield found
        found.client.close()


def stack_traces(installation: Installation) -> list[str]:
    return [
        line[-600:]
        for file in installation.data_dir.rglob("*.log")
        for line in file.read_text(errors="replace").splitlines()
        if "Traceback" in line
    ]


def samples() -> dict[str, list[Any]]:
    """Return the documents of the examples by the path that takes them."""
    found: dict[str, list[Any]] = {"apply": []}
    for file in sorted(EXAMPLES.rglob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if isinstance(document, dict) and "kind" in document:
                found.setdefault(f"{document['kind'].lower()}s", []).append(document)
                found["apply"].append({"documents": [document], "publish": True})
    return found


def fuzzer_of(installation: Installation, seed: int) -> Fuzzer:
    client = installation.client
    names = [
        item["name"]
        for kind in ("workflows", "agents", "schedules")
        for item in client.get(f"/v1/{kind}").json()["items"]
    ]
    runs = [installation.start(name, {})["run_id"] for name in ("growth-report", "reporter")]
    known = {"name": names, "run_id": runs, "tenant": ["default"], "session_id": ["s"]}
    return Fuzzer(client.get("/openapi.json").json(), known, samples(), seed)


def test_odd_requests_are_refused_and_never_crash(stored: Installation) -> None:
    failed = []
    for request in fuzzer_of(stored, seed=8).requests(ROUNDS):
        answer = stored.client.request(
            request.method, request.path, content=request.body, headers=request.headers
        )
        if answer.status_code >= 500:
            failed.append((request.method, request.path, request.body, answer.text))

    assert failed == []
    assert stack_traces(stored) == []
    for path in ("runs", "steps", "workflows", "schedules", "keys", "usage", "dead-letters"):
        assert stored.client.get(f"/v1/{path}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/runs", '{"name": "reporter", "tags": {"a\\u0000": "b"}}'),
        ("POST", "/v1/runs/cancel", '{"tag": {"\\u0000": "a"}}'),
        ("POST", "/v1/keys", '{"name": "a\\u0000b"}'),
        ("PUT", "/v1/agents/reporter/aliases/a", '{"version": 0}'),
        ("PUT", "/v1/agents/reporter/aliases/a", '{"version": 2147483648}'),
        ("GET", "/v1/agents?cursor=a%00b", None),
        ("GET", "/v1/agents/reporter/versions?cursor=99999999999", None),
        ("DELETE", "/v1/keys/%00", None),
        ("GET", "/v1/dead-letters/99999999999999999999", None),
        ("GET", "/v1/runs?tag=a%00=b", None),
        ("GET", "/v1/sessions/s/messages?cursor=99999999999999999999", None),
    ],
)
def test_what_databases_refuse_is_refused_before(
    stored: Installation, method: str, path: str, body: str | None
) -> None:
    headers = {"content-type": "application/json"}
    answer = stored.client.request(method, path, content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["path"]


def test_document_with_nul_is_refused_with_its_place(stored: Installation) -> None:
    document = {
        "apiVersion": "penstock/v1",
        "kind": "Workflow",
        "metadata": {"name": "nul", "description": "a\0b"},
        "spec": {"steps": [{"id": "a", "transform": 1}]},
    }
    answer = stored.client.post("/v1/workflows", json=document)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["path"] == "metadata.description"


def test_client_that_hangs_up_is_no_error(stored: Installation) -> None:
    address = urlsplit(stored.url)
    run_id = stored.start("reporter", {})["run_id"]
    head = f"Host: {address.netloc}\r\nContent-Type: application/json\r\n"
    for path in ("/v1/runs", f"/v1/runs/{run_id}/signals", "/v1/apply", "/webhooks/generic"):
        for length in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
            with socket.create_connection((address.hostname, address.port)) as client:
                client.sendall(f'POST {path} HTTP/1.1\r\n{head}{length}\r\n\r\n5\r\n{{"na'.encode())

    # The gateway has seen all of them when it has answered one more.
    assert stored.client.get(f"/v1/runs/{run_id}").status_code == 200
    assert stack_traces(stored) == []
