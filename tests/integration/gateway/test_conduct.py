"""What HTTP asks of a server: media types, compression, conditional requests; the documentation."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import httpx
import pytest

from penstock.contracts.rpc import Definition, DefinitionPage, DocumentKind
from tests.integration.gateway.conftest import Engine, Running
from tests.integration.gateway.test_access import answer

FORM = "application/x-www-form-urlencoded"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/runs"),
        ("POST", "/v1/agents/echo/execute"),
        ("POST", "/v1/runs/x/cancel"),
        ("POST", "/v1/runs/x/signals"),
        ("POST", "/v1/apply"),
        ("POST", "/v1/agents"),
        ("PUT", "/v1/tools/x"),
        ("POST", "/v1/keys"),
        ("POST", "/v1/agents/register"),
        ("POST", "/invoke"),
        ("POST", "/webhooks/generic"),
    ],
)
async def test_body_of_another_media_type_is_refused(
    gateway: Running, method: str, path: str
) -> None:
    for form in (FORM, "multipart/form-data; boundary=x", "image/png", "jsonx/json", ""):
        response = await gateway.client.request(
            method, path, content=b'{"name": "echo"}', headers={"Content-Type": form}
        )
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
        (found,) = response.json()["errors"]
        assert found["path"] == "Content-Type"
        assert found["allowed"].startswith("application/json")


@pytest.mark.parametrize(
    "form",
    ["application/json", "Application/JSON;charset=utf-8", "application/vnd.x+json", None],
)
@pytest.mark.parametrize(("path", "status"), [("/v1/runs", 202), ("/v1/runs/x/cancel", 404)])
async def test_body_that_is_json_or_of_no_type_is_read(
    gateway: Running, engine: Engine, form: str | None, path: str, status: int
) -> None:
    await engine.publish("echo")
    body = b'{"name": "echo"}' if path == "/v1/runs" else b"{}"
    headers = {} if form is None else {"Content-Type": form}
    response = await gateway.client.post(path, content=body, headers=headers)
    assert response.status_code == status, response.text
    created = await gateway.client.post("/v1/keys", content=b"[]", headers=headers)
    assert (created.status_code, created.json()["code"]) == (422, "invalid_request")
    assert "body" in created.json()["errors"][0]["path"]


async def test_type_of_an_absent_body_does_not_matter(gateway: Running, engine: Engine) -> None:
    await engine.publish("echo")
    response = await gateway.client.post("/v1/agents/echo/execute", headers={"Content-Type": FORM})
    assert response.status_code == 202


async def test_larger_answers_are_compressed_and_streams_are_not(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish("echo")
    path = "/v1/agents/echo/execute"
    short = await gateway.client.post(path, json={})
    assert "content-encoding" not in short.headers
    started = await gateway.client.post(path, json={"input": "long " * 5000})
    run_id = started.json()["run_id"]
    await engine.play_turn(run_id, answer="answer " * 5000)
    for url in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/events", "/openapi.json"):
        plain = await gateway.client.get(url, headers={"Accept-Encoding": "identity"})
        small = await gateway.client.get(url, headers={"Accept-Encoding": "br, gzip"})
        assert "content-encoding" not in plain.headers
        assert small.headers["content-encoding"] == "gzip"
        assert plain.headers["vary"] == small.headers["vary"] == "Accept-Encoding"
        assert int(small.headers["content-length"]) < len(plain.content) / 3
        assert small.content == plain.content
    key = {"Idempotency-Key": "k", "Accept-Encoding": "gzip"}
    whole = {"name": "echo", "input": "long " * 5000}
    replayed = [await gateway.client.post("/v1/runs", json=whole, headers=key) for _ in range(2)]
    assert [one.status_code for one in replayed] == [202, 202]
    stream = await gateway.client.get(
        f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"}
    )
    assert "content-encoding" not in stream.headers


async def test_ended_run_is_sent_once_to_a_client_that_keeps_it(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish("echo")
    run_id = (await gateway.client.post("/v1/runs", json={"name": "echo"})).json()["run_id"]
    url = f"/v1/runs/{run_id}"
    assert "etag" not in (await gateway.client.get(url)).headers
    await engine.play_turn(run_id)
    full = await gateway.client.get(url)
    tag = full.headers["etag"]
    assert full.headers["cache-control"] == "private, no-cache"
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        same = await gateway.client.get(url, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert same.headers["cache-control"] == "private, no-cache"
    other = await gateway.client.get(url, headers={"If-None-Match": 'W/"other"'})
    assert (other.status_code, other.content) == (200, full.content)
    part = await gateway.client.get(url, params={"steps_limit": 1, "node_records": "true"})
    assert part.headers["etag"] != tag or part.content == full.content
    absent = await gateway.client.get("/v1/runs/nothing", headers={"If-None-Match": "*"})
    assert (absent.status_code, absent.headers["cache-control"]) == (404, "no-store")


@pytest.mark.parametrize("path", ["/v1/agents/a", "/v1/agents", "/config/agents/a"])
async def test_definition_is_sent_again_only_when_it_has_changed(
    gateway: Running, engine: Engine, path: str
) -> None:
    stored = Definition(
        tenant=engine.tenant,
        kind=DocumentKind.AGENT,
        name="a",
        document={"kind": "Agent"},
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )
    listed = path.endswith("agents")
    verb = "list_definitions" if listed else "get_definition"
    reply = DefinitionPage(items=(stored,)) if listed else stored
    await answer(engine, "registry", verb, reply)
    full = await gateway.client.get(path)
    tag = full.headers["etag"]
    same = await gateway.client.get(path, headers={"If-None-Match": tag})
    assert (full.status_code, same.status_code, same.content) == (200, 304, b"")
    assert "content-type" not in same.headers
    older = await gateway.client.get(path, headers={"If-None-Match": 'W/"older"'})
    assert older.content == full.content


@pytest.mark.parametrize("body", [b"", b" \n"])
async def test_apply_of_nothing_is_refused(gateway: Running, body: bytes) -> None:
    for form in ("application/json", "application/yaml"):
        headers = {"Content-Type": form}
        response = await gateway.client.post("/v1/apply", content=body, headers=headers)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("number", ["0.5", "1764000000", "-1", " 5 ", "1e9"])
async def test_number_is_no_point_in_time(gateway: Running, number: str) -> None:
    for path in ("/v1/runs?created_from=", "/v1/usage?until=", "/v1/steps?scheduled_from="):
        response = await gateway.client.get(path + number.strip())
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    wanted = {"name": "x", "expires_at": float(number)}
    assert (await gateway.client.post("/v1/keys", json=wanted)).status_code == 422


@pytest.mark.parametrize("value", [0, 1, "true", "no"])
async def test_dry_run_is_true_or_false(gateway: Running, value: object) -> None:
    for path in ("/v1/runs/cancel", "/v1/dead-letters/discard", "/v1/dead-letters/requeue"):
        response = await gateway.client.post(path, json={"dry_run": value})
        assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "body.dry_run")


async def test_documentation_needs_no_other_site(gateway: Running) -> None:
    page = await gateway.client.get("/docs")
    found = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(found) == 3
    for url in found:
        assert url.startswith("/docs/")
        file = await gateway.client.get(url)
        assert file.status_code == 200
        assert len(file.content) > 500
    assert "://" not in page.text
    assert (await gateway.client.get("/docs/__init__.py")).status_code == 404


async def test_connection_is_in_order_after_answers_without_a_body(
    gateway: Running, engine: Engine
) -> None:
    await engine.publish("echo")
    run_id = (await gateway.client.post("/v1/runs", json={"name": "echo"})).json()["run_id"]
    await engine.play_turn(run_id)
    async with httpx.AsyncClient(
        base_url=gateway.url, limits=httpx.Limits(max_connections=1)
    ) as one:
        for method, known, status in (("GET", "*", 304), ("HEAD", "*", 304), ("HEAD", "", 200)):
            headers = {"If-None-Match": known} if known else {}
            answered = await one.request(method, f"/v1/runs/{run_id}", headers=headers)
            assert (answered.status_code, answered.content) == (status, b"")
        assert (await one.get(f"/v1/runs/{run_id}")).json()["status"] == "done"
