"""Keys, roles, tenants and problems, against a real server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.archive import FactPage, RunPage
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import DefinitionKind, RunStatus, Trigger
from penstock.contracts.rpc import Applied, AppliedDefinition, DocumentKind, Reply
from penstock.contracts.runners import KeyRecord
from penstock.contracts.structs import convert
from penstock.runs.views import RunView
from penstock_gateway.core.access import key_digest
from penstock_gateway.settings import GatewaySettings
from tests.integration.gateway.conftest import CreateGateway, Engine, Running
from tests.support.waiting import eventually


async def add_key(engine: Engine, key: str, *roles: Any, tenant: str = "", **fields: Any) -> None:
    record = KeyRecord(key_id=key, tenant=tenant or engine.tenant, roles=roles, **fields)
    await Bucket(engine.bus, subjects.KEYS).put(
        key_digest(key.encode()), record.model_dump_json().encode()
    )


async def answer(engine: Engine, service: Any, verb: str, reply: BaseModel | ErrorInfo) -> None:
    """Play a service that always answers the same."""

    async def respond(message: Msg) -> None:
        envelope = (
            Reply(ok=False, error=reply)
            if isinstance(reply, ErrorInfo)
            else Reply(ok=True, result=reply.model_dump(mode="json"))
        )
        await message.respond(envelope.model_dump_json().encode())

    await engine.bus.subscribe(subjects.rpc(service, verb), respond)
    await engine.bus.nc.flush()


NO_RUN = ErrorInfo(code="run_not_found", message="there is no such run")


@pytest.fixture
async def guarded(engine: Engine, create_gateway: CreateGateway) -> Running:
    await engine.publish("echo")
    for role in ("viewer", "operator", "admin", "runner"):
        await add_key(engine, f"{role}-{engine.tenant}", role)
    return await create_gateway(auth_required=True)


def bearer(engine: Engine, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}-{engine.tenant}"}


@pytest.mark.parametrize("header", [{}, {"Authorization": "Basic x"}, {"Authorization": "Bearer"}])
async def test_request_without_a_key_is_refused(guarded: Running, header: dict[str, str]) -> None:
    response = await guarded.client.post("/v1/runs", json={"name": "echo"}, headers=header)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["code"] == "unauthenticated"


async def test_unknown_and_expired_keys_are_refused(guarded: Running, engine: Engine) -> None:
    await add_key(
        engine, "old" + engine.tenant, "admin", expires_at=datetime.now(UTC) - timedelta(seconds=1)
    )
    await eventually(
        lambda: key_digest(f"old{engine.tenant}".encode()) in guarded.gateway.keys.values
    )
    for key in ("old" + engine.tenant, "guess"):
        response = await guarded.client.get(
            "/v1/runs/x", headers={"Authorization": f"Bearer {key}"}
        )
        assert response.status_code == 401


async def test_revoked_key_is_refused_at_once(guarded: Running, engine: Engine) -> None:
    headers = bearer(engine, "operator")
    body = {"name": "echo"}
    assert (await guarded.client.post("/v1/runs", json=body, headers=headers)).status_code == 202
    digest = key_digest(f"operator-{engine.tenant}".encode())
    await Bucket(engine.bus, subjects.KEYS).delete(digest)
    await eventually(lambda: digest not in guarded.gateway.keys.values)
    assert (await guarded.client.post("/v1/runs", json=body, headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("role", "method", "path", "allowed"),
    [
        ("viewer", "POST", "/v1/runs", False),
        ("operator", "POST", "/v1/runs", True),
        ("admin", "POST", "/v1/runs", True),
        ("runner", "POST", "/v1/runs", False),
        ("operator", "POST", "/v1/apply", False),
        ("viewer", "POST", "/v1/agents/register", False),
        ("operator", "GET", "/v1/keys", False),
        ("runner", "GET", "/v1/runs", False),
    ],
)
async def test_role_decides(
    guarded: Running, engine: Engine, role: str, method: str, path: str, allowed: bool
) -> None:
    body = {"name": "echo"} if path == "/v1/runs" else {"agent_id": "a", "endpoint": "http://x"}
    response = await guarded.client.request(
        method, path, json=body if method == "POST" else None, headers=bearer(engine, role)
    )
    assert (response.status_code == 403) is not allowed, response.text
    assert allowed or response.json()["code"] == "forbidden"


async def test_run_of_another_tenant_is_not_found(guarded: Running, engine: Engine) -> None:
    await answer(engine, "archive", "run_facts", NO_RUN)
    await add_key(engine, "stranger" + engine.tenant, "admin", tenant=f"o{engine.tenant}")
    started = await guarded.client.post(
        "/v1/runs", json={"name": "echo"}, headers=bearer(engine, "operator")
    )
    run_id = started.json()["run_id"]
    stranger = {"Authorization": f"Bearer stranger{engine.tenant}"}
    await eventually(
        lambda: key_digest(f"stranger{engine.tenant}".encode()) in guarded.gateway.keys.values
    )
    own = await guarded.client.get(f"/v1/runs/{run_id}", headers=bearer(engine, "viewer"))
    assert own.status_code == 200
    for path in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/events"):
        assert (await guarded.client.get(path, headers=stranger)).status_code == 404
    for accept in ("application/json", "text/event-stream"):
        response = await guarded.client.get(
            f"/v1/runs/{run_id}/events", headers={**stranger, "Accept": accept}
        )
        assert response.status_code == 404
    cancelled = await guarded.client.post(f"/v1/runs/{run_id}/cancel", headers=stranger)
    assert cancelled.status_code == 404


def test_public_address_without_authentication_is_refused() -> None:
    with pytest.raises(ValidationError, match="refusing to listen"):
        GatewaySettings(host="0.0.0.0", auth_required=False)
    assert GatewaySettings(host="0.0.0.0", auth_required=True).auth_required


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example:8080"},
    ],
)
async def test_page_of_another_site_cannot_drive_a_gateway_without_keys(
    gateway: Running, headers: dict[str, str]
) -> None:
    response = await gateway.client.post("/v1/runs", json={"name": "echo"}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "origin_refused")


async def test_own_page_may_use_a_gateway_without_keys(gateway: Running) -> None:
    response = await gateway.client.post(
        "/v1/runs", json={"name": "echo"}, headers={"Origin": gateway.url}
    )
    assert response.status_code == 202


# Problems


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/runs", b"{", 400, "malformed_json"),
        ("POST", "/v1/runs", b"{}", 422, "invalid_request"),
        ("POST", "/v1/runs", b'{"name":"no dots.allowed"}', 422, "invalid_request"),
        ("POST", "/v1/runs", b'{"name":"echo","extra":1}', 422, "invalid_request"),
        ("POST", "/v1/runs", b'{"name":"nobody"}', 404, "unknown_name"),
        ("POST", "/v1/agents/a.b/execute", b"{}", 422, "invalid_token"),
        ("GET", "/v1/runs/short", b"", 404, "run_not_found"),
        ("GET", "/v1/runs/short/events?types=nonsense", b"", 422, "invalid_event_type"),
        ("GET", "/v1/runs/short/events?after=x", b"", 422, "invalid_cursor"),
        ("GET", "/v1/runs/short/events?limit=0", b"", 422, "invalid_request"),
        ("GET", "/v1/runs?limit=0", b"", 422, "invalid_request"),
        ("GET", "/v1/runs?unknown=1", b"", 422, "invalid_request"),
        ("POST", "/v1/keys", b"{", 400, "malformed_json"),
        ("GET", "/v1/nothing", b"", 404, "not_found"),
        ("DELETE", "/v1/runs", b"", 405, "method_not_allowed"),
        ("POST", "/v1/apply", b"{", 400, "malformed_json"),
    ],
)
async def test_every_error_is_a_problem_document(
    gateway: Running, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    response = await gateway.client.request(
        method, path, content=content, headers={"content-type": "application/json"}
    )
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), response.text
    assert problem["status"] == status
    assert problem["type"] == f"urn:penstock:problem:{code}"
    assert set(problem) == {"type", "title", "status", "detail", "code", "errors"}
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_invalid_field_is_named_by_its_path(gateway: Running) -> None:
    response = await gateway.client.post(
        "/v1/runs", json={"name": "echo", "limits": {"max_turns": 0, "timeout_second": 3}}
    )
    found = {error["path"]: error for error in response.json()["errors"]}
    assert set(found) == {"limits.max_turns", "limits.timeout_second"}
    assert found["limits.max_turns"]["allowed"] == "ge 1"


BIG_PATHS = pytest.mark.parametrize("path", ["/v1/runs", "/v1/apply", "/hooks/a/b", "/v1/keys"])


@BIG_PATHS
async def test_body_announced_over_the_limit_is_refused(
    engine: Engine, create_gateway: CreateGateway, path: str
) -> None:
    gateway = await create_gateway(max_body_bytes=2048)
    response = await gateway.client.post(
        path, content=b" " * 2049, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert response.json()["errors"][0]["allowed"] == "at most 2048 bytes"


@BIG_PATHS
async def test_body_over_the_limit_is_refused_before_it_has_ended(
    engine: Engine, create_gateway: CreateGateway, path: str
) -> None:
    gateway = await create_gateway(max_body_bytes=2048)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
    )
    for _ in range(3):
        writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
    # The last chunk never comes.
    status = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    assert status.startswith(b"HTTP/1.1 413 ")


async def test_silent_service_answers_503_with_retry_after(gateway: Running) -> None:
    response = await gateway.client.get("/v1/usage")
    assert response.status_code == 503
    assert response.json()["code"] == "no_responders"
    assert int(response.headers["retry-after"]) >= 1


async def test_crash_in_a_handler_says_nothing_of_its_inside(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(gateway.gateway.authenticator, "caller", crash)
    for method, path in (("POST", "/v1/runs"), ("GET", "/v1/keys"), ("GET", "/v1/runs/x")):
        response = await gateway.client.request(method, path)
        assert (response.status_code, response.json()["code"]) == (500, "internal_error")
        assert "secret detail" not in response.text


# What other services answer


async def test_unknown_run_is_not_found_once_the_archive_was_asked(
    gateway: Running, engine: Engine
) -> None:
    unknown = "01HZZZZZZZZZZZZZZZZZZZZZZZ"
    assert (await gateway.client.get(f"/v1/runs/{unknown}")).status_code == 503
    await answer(engine, "archive", "run_facts", NO_RUN)
    assert (await gateway.client.get(f"/v1/runs/{unknown}")).status_code == 404


async def test_run_that_left_the_log_comes_from_the_archive(
    gateway: Running, engine: Engine
) -> None:
    run_id = (await gateway.client.post("/v1/runs", json={"name": "echo"})).json()["run_id"]
    await engine.play_turn(run_id)
    stored = await engine.reader.stored(
        engine.tenant, int(engine.prefix(run_id).split(".")[2]), run_id
    )
    live = (await gateway.client.get(f"/v1/runs/{run_id}")).json()
    page = FactPage.model_validate(
        {"items": [{"seq": s.seq, "subject": s.subject, "body": s.body.decode()} for s in stored]}
    )
    await engine.bus.api("STREAM.PURGE.RUNS", {"filter": f"{engine.prefix(run_id)}.>"})
    await answer(engine, "archive", "run_facts", page)
    assert (await gateway.client.get(f"/v1/runs/{run_id}")).json() == live
    events = await gateway.client.get(
        f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"}
    )
    assert "event: run_done" in events.text


async def test_list_of_runs_comes_from_the_archive(gateway: Running, engine: Engine) -> None:
    now = datetime.now(UTC)
    view = RunView(
        run_id="01HZZZZZZZZZZZZZZZZZZZZZZZ",
        tenant=engine.tenant,
        name="echo",
        kind=DefinitionKind.AGENT,
        version=1,
        plan_digest="d",
        status=RunStatus.DONE,
        trigger=Trigger.HTTP,
        created_at=now,
        updated_at=now,
        last_seq=3,
    )
    page = RunPage(items=(view,), next_cursor="c")
    await answer(engine, "archive", "list_runs", page)
    response = await gateway.client.get("/v1/runs", params={"status": ["done", "failed"]})
    assert response.status_code == 200, response.text
    assert RunPage.model_validate(response.json()) == page


async def test_apply_takes_yaml_and_json_and_is_in_force_at_once(
    gateway: Running, engine: Engine
) -> None:
    done = AppliedDefinition(
        kind=DocumentKind.AGENT, name="fresh", version=1, plan_digest="d" * 64, change="created"
    )
    await answer(engine, "registry", "apply", Applied(results=(done,)))
    document = {"apiVersion": "penstock/v1", "kind": "Agent", "metadata": {"name": "fresh"}}
    for body in (document, [document], {"documents": [document], "publish": True}):
        response = await gateway.client.post("/v1/apply", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["results"][0]["change"] == "created"
    response = await gateway.client.post(
        "/v1/apply", content=b"kind: Agent\n", headers={"content-type": "application/yaml"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b'{"kind": "Agent", "kind": "Tool"}', "application/json", "malformed_json"),
        (b'{"kind": "Agent", "kind": "Tool"}', "text/plain", "malformed_json"),
        ("kind: Agent".encode("utf-16"), "application/yaml", "malformed_yaml"),
        ("{}".encode("utf-16"), "application/json", "malformed_json"),
        (b'{"a": "\xff"}', "text/plain", "malformed_yaml"),
    ],
)
async def test_apply_refuses_a_text_that_cannot_be_read(
    gateway: Running, body: bytes, media_type: str, code: str
) -> None:
    headers = {"content-type": media_type}
    response = await gateway.client.post("/v1/apply", content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, code)


async def test_apply_takes_a_flow_mapping_as_yaml_and_a_byte_order_mark(
    gateway: Running, engine: Engine
) -> None:
    await answer(engine, "registry", "apply", Applied(results=()))
    for body, media_type in (
        (b"{kind: Agent}", "application/yaml"),
        (b"\xef\xbb\xbfkind: Agent", "application/yaml"),
        (b'\xef\xbb\xbf[{"kind": "Agent"}]', "application/json"),
    ):
        headers = {"content-type": media_type}
        response = await gateway.client.post("/v1/apply", content=body, headers=headers)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("method", ["post", "put", "patch"])
async def test_document_with_a_key_twice_is_refused(gateway: Running, method: str) -> None:
    path = "/v1/agents" if method == "post" else "/v1/agents/a"
    headers = {"content-type": "application/json"}
    response = await gateway.client.request(
        method, path, content=b'{"a": {"b": 1, "b": 2}}', headers=headers
    )
    assert (response.status_code, response.json()["code"]) == (400, "malformed_json")
    assert "b" in response.json()["errors"][0]["message"]


async def test_refusal_of_the_registry_keeps_its_findings(gateway: Running, engine: Engine) -> None:
    refusal = convert(
        ErrorInfo,
        {
            "code": "invalid_document",
            "message": "spec.model: missing",
            "details": [{"path": "spec.model", "message": "missing", "allowed": "a model"}],
        },
    )
    await answer(engine, "registry", "put_definition", refusal)
    response = await gateway.client.post("/v1/agents", json={"kind": "Agent"})
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"path": "spec.model", "message": "missing", "allowed": "a model"}
    ]


async def test_health_and_openapi_need_no_key(guarded: Running) -> None:
    assert (await guarded.client.get("/health")).json()["status"] == "ok"
    document = (await guarded.client.get("/openapi.json")).json()
    paths = document["paths"]
    assert "requestBody" in paths["/v1/runs"]["post"]
    assert "RunView" in document["components"]["schemas"]
    assert (await guarded.client.get("/docs")).status_code == 200


async def test_other_sites_are_kept_out_unless_they_are_named(
    engine: Engine, create_gateway: CreateGateway
) -> None:
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    closed = await create_gateway()
    refused = await closed.client.options("/v1/runs", headers=preflight)
    assert refused.status_code == 405
    assert "access-control-allow-origin" not in refused.headers
    await add_key(engine, f"web-{engine.tenant}", "operator")
    await engine.publish("echo")
    named = await create_gateway(auth_required=True, cors_origins=("https://app.example",))
    allowed = await named.client.options("/v1/runs", headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    started = await named.client.post(
        "/v1/runs",
        json={"name": "echo"},
        headers={"Origin": "https://app.example", "Authorization": f"Bearer web-{engine.tenant}"},
    )
    assert started.status_code == 202
    assert started.headers["access-control-allow-origin"] == "https://app.example"


async def test_page_of_a_named_origin_may_use_a_gateway_without_keys(
    engine: Engine, create_gateway: CreateGateway
) -> None:
    await engine.publish("echo")
    named = await create_gateway(cors_origins=("http://localhost:5173",))
    for origin, status in (("http://localhost:5173", 202), ("http://localhost:5174", 403)):
        started = await named.client.post(
            "/v1/runs", json={"name": "echo"}, headers={"Origin": origin}
        )
        assert started.status_code == status
    rebound = {"Origin": "http://localhost:5173", "Host": "rebound.example"}
    assert (await named.client.get("/v1/runs/x", headers=rebound)).status_code == 403


async def test_every_answer_carries_the_headers_for_safety(gateway: Running) -> None:
    for method, path in (("POST", "/v1/runs"), ("GET", "/health"), ("GET", "/nothing")):
        headers = (await gateway.client.request(method, path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "strict-transport-security" not in headers
    assert "content-security-policy" not in (await gateway.client.get("/docs")).headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/runs", "GET, HEAD, POST"),
        ("PATCH", "/v1/runs/x", "DELETE, GET, HEAD"),
        ("POST", "/v1/agents/x", "DELETE, GET, HEAD, PATCH, PUT"),
        ("GET", "/v1/apply", "POST"),
        ("OPTIONS", "/hooks/t/n", "GET, HEAD, POST"),
        ("POST", "/docs", "GET, HEAD"),
        # Not also what the path of a run or a definition has.
        ("OPTIONS", "/v1/runs/import", "POST"),
        ("GET", "/v1/dead-letters/discard", "POST"),
        ("OPTIONS", "/v1/workflows/workflows/execute", "POST"),
        ("OPTIONS", "/v1/agents/register", "POST"),
    ],
)
async def test_method_that_a_path_lacks_is_answered_with_all_that_it_has(
    gateway: Running, method: str, path: str, allowed: str
) -> None:
    response = await gateway.client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/docs", "/v1/runs/nothing"])
async def test_head_is_answered_as_get_without_a_body(gateway: Running, path: str) -> None:
    full = await gateway.client.get(path)
    head = await gateway.client.head(path)
    assert (head.status_code, head.content) == (full.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == full.headers[name]
    # The connection is in order afterwards.
    assert (await gateway.client.get(path)).content == full.content


async def test_head_of_an_open_run_does_not_wait(gateway: Running, engine: Engine) -> None:
    await engine.publish("echo")
    run_id = (await gateway.client.post("/v1/runs", json={"name": "echo"})).json()["run_id"]
    for path in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/events"):
        head = await gateway.client.head(
            path, headers={"Accept": "text/event-stream", "Prefer": "wait=300"}
        )
        assert head.status_code == 200
        assert head.headers["content-type"] == "application/json"
        assert "preference-applied" not in head.headers
    assert (await gateway.client.head("/v1/apply")).status_code == 405
