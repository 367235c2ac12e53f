import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from penstock.client import (
    AsyncClient,
    Client,
    ProblemError,
    ReplyError,
    UnreachableError,
    UnsendableError,
)
from penstock.client import client as client_module
from penstock.client.events import EventFeed

AT = "2026-11-20T12:00:00Z"
RUN_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
RUN: dict[str, Any] = {
    "run_id": RUN_ID,
    "tenant": "default",
    "name": "helper",
    "kind": "agent",
    "version": 1,
    "plan_digest": "d" * 64,
    "status": "running",
    "trigger": "http",
    "created_at": AT,
    "updated_at": AT,
    "last_seq": 7,
}
DONE = {**RUN, "status": "done", "output": 42}

EVENTS = {"content-type": "text/event-stream"}

Handler = Callable[[httpx.Request], httpx.Response]


class Gateway:
    """Answers requests by a function and keeps them."""

    def __init__(self, handler: Handler) -> None:
        self.requests: list[httpx.Request] = []
        self._handler = handler

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._handler(request)


def connect(handler: Handler) -> tuple[Client, Gateway]:
    gateway = Gateway(handler)
    transport = httpx.MockTransport(gateway)
    return Client("http://gateway.test", "pk_test", transport=transport), gateway


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_proxy_of_the_environment_is_not_used_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                body = json.dumps(DONE).encode()
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n" % len(body) + body
                )

        with ThreadPoolExecutor(1) as pool, Client(f"http://{host}:{port}") as client:
            served = pool.submit(serve)
            assert client.get(RUN_ID).output == 42
            served.result()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between connections: noted, not spent."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_start_sends_key_name_input_and_options() -> None:
    client, gateway = connect(lambda _: httpx.Response(200, json=DONE))
    run = client.start(
        "helper@2",
        {"q": 1},
        session_id="s1",
        tags={"team": "a"},
        limits={"max_tokens": 100},
        priority=5,
        idempotency_key="k1",
        wait_seconds=5,
    )
    assert (run.run_id, run.status.final, run.output) == (RUN_ID, True, 42)
    (request,) = gateway.requests
    assert str(request.url) == "http://gateway.test/v1/runs"
    assert request.headers["authorization"] == "Bearer pk_test"
    assert request.headers["idempotency-key"] == "k1"
    assert request.headers["prefer"] == "wait=5, return=representation"
    assert json.loads(request.content) == {
        "name": "helper@2",
        "input": {"q": 1},
        "session_id": "s1",
        "tags": {"team": "a"},
        "limits": {"max_tokens": 100},
        "priority": 5,
    }


def test_refusal_carries_the_problem_document() -> None:
    problem = {
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "2 errors",
        "code": "invalid_document",
        "errors": [{"path": "spec.model", "message": "Field required", "allowed": "text"}],
    }
    client, _ = connect(lambda _: httpx.Response(422, json=problem, headers={"Retry-After": "3"}))
    with pytest.raises(ProblemError, match=r"^2 errors \[invalid_document\]$") as caught:
        client.get(RUN_ID)
    error = caught.value
    assert (error.status, error.title, error.code) == (422, problem["title"], problem["code"])
    assert [(one.path, one.message, one.allowed) for one in error.findings] == [
        ("spec.model", "Field required", "text")
    ]
    assert error.retry_after_seconds == 3


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"", b'{"status": "x"}', b"[" * 100_000])
def test_refusal_without_a_problem_document_has_the_status(body: bytes) -> None:
    client, _ = connect(lambda _: httpx.Response(502, content=body))
    with pytest.raises(ProblemError, match=r"^502 Bad Gateway$"):
        client.get(RUN_ID)


def test_no_reply_names_the_address() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client, _ = connect(refuse)
    with pytest.raises(UnreachableError, match=r"no gateway at http://gateway\.test \(refused\)"):
        client.get(RUN_ID)


def test_late_reply_is_reported_as_such() -> None:
    def hang(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    client, _ = connect(hang)
    with pytest.raises(UnreachableError, match="did not answer in time") as caught:
        client.get(RUN_ID)
    assert caught.value.timed_out


def test_reply_of_something_else_is_reported() -> None:
    client, _ = connect(lambda _: httpx.Response(200, content=b"<html>hello</html>"))
    with pytest.raises(ReplyError, match=r"http://gateway\.test"):
        client.get(RUN_ID)


def test_broken_url_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        Client("http://[::1")
    with pytest.raises(ValueError, match="is not a URL"):
        AsyncClient("http://[::1")


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        (3, [{"limit": "3"}, {"limit": "1", "cursor": "c1"}]),
        (None, [{"limit": "100"}, {"limit": "100", "cursor": "c1"}]),
    ],
)
def test_list_follows_the_cursor_up_to_the_limit(
    limit: int | None, asked: list[dict[str, str]]
) -> None:
    def page(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        items = [RUN, RUN] if first else [DONE]
        return httpx.Response(200, json={"items": items, "next_cursor": "c1" if first else None})

    client, gateway = connect(page)
    found = list(client.runs(status=["done"], name=None, limit=limit))
    assert [run.status for run in found] == ["running", "running", "done"]
    assert [dict(request.url.params) for request in gateway.requests] == [
        {"status": "done", **params} for params in asked
    ]


def test_wait_repeats_until_the_run_has_ended(pauses: list[float]) -> None:
    replies = iter([RUN, RUN, DONE])
    client, gateway = connect(lambda _: httpx.Response(200, json=next(replies)))
    assert client.wait(RUN_ID, 600).output == 42
    assert [request.headers["prefer"] for request in gateway.requests] == ["wait=60"] * 3


def test_wait_ends_at_its_time_limit(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 60.0, 60.2, 61.0, 61.2, 63.0])
    monkeypatch.setattr(client_module, "time", SimpleNamespace(
        monotonic=lambda: next(clock), sleep=pauses.append
    ))  # fmt: skip
    client, gateway = connect(lambda _: httpx.Response(200, json=RUN))
    assert client.wait(RUN_ID, 62.5).status == "running"
    waits = [request.headers["prefer"] for request in gateway.requests]
    assert waits == ["wait=60", "wait=3", "wait=2"]


def test_wait_returns_where_the_client_has_to_execute_a_tool() -> None:
    call = {"record_id": "ask", "kind": "client_tool", "status": "open", "at": AT}
    client, _ = connect(lambda _: httpx.Response(200, json={**RUN, "waiting_for": [call]}))
    assert client.wait(RUN_ID).waiting_for[0].record_id == "ask"


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Sends its bytes, then breaks off."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        raise httpx.ReadError("gone")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content
        raise httpx.ReadError("gone")


def sse(kind: str, event_id: int | None = None, step: str | None = None, **data: Any) -> bytes:
    event = {"type": kind, "run_id": RUN_ID, "step_id": step, "attempt": 1, "data": data}
    if event_id is None:
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()
    return f"id: {event_id}\ndata: {json.dumps({**event, 'id': event_id})}\n\n".encode()


CUT_OFF = [
    sse("run_started", 5)
    + sse("agent_invoke_started", 7, "a")
    + sse("agent_stream_delta", step="a", index=0, text="one ")
    + sse("agent_stream_delta", step="a", index=1, text="two ")
    + sse("policy_decision", step="a", tool="x"),
    sse("agent_stream_delta", step="a", index=0, text="one ")
    + sse("agent_stream_delta", step="a", index=1, text="two ")
    + sse("agent_stream_delta", step="a", index=2, text="three")
    + sse("policy_decision", step="a", tool="x")
    + sse("agent_invoke_done", 9, "a")
    + sse("run_done", 11, output=1),
]
WHOLE = [
    "run_started",
    "agent_invoke_started",
    *["agent_stream_delta"] * 2,
    "policy_decision",
    "agent_stream_delta",
    "agent_invoke_done",
    "run_done",
]


def cut_off() -> Handler:
    replies = iter(
        [
            httpx.Response(200, headers=EVENTS, stream=Broken(CUT_OFF[0])),
            httpx.Response(200, headers=EVENTS, content=CUT_OFF[1]),
        ]
    )
    return lambda _: next(replies)


def test_followed_stream_that_breaks_off_is_resumed_without_repetition(
    pauses: list[float],
) -> None:
    client, gateway = connect(cut_off())
    assert [event.type for event in client.follow(RUN_ID)] == WHOLE
    assert [request.headers["last-event-id"] for request in gateway.requests] == ["0", "7"]
    assert len(pauses) == 1


async def test_async_client_follows_waits_and_lists_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EventFeed, "backoff_seconds", lambda _feed, _error: 0)
    handler = cut_off()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return handler(request)
        if request.url.path == "/v1/runs":
            return httpx.Response(200, json={"items": [DONE, DONE], "next_cursor": "c"})
        return httpx.Response(200, json=DONE)

    transport = httpx.MockTransport(Gateway(answer))
    async with AsyncClient("http://gateway.test", transport=transport) as client:
        assert [event.type async for event in client.follow(RUN_ID)] == WHOLE
        assert (await client.wait(RUN_ID)).output == 42
        assert len([run async for run in client.runs(limit=3)]) == 3


def test_follow_that_is_refused_is_not_repeated(pauses: list[float]) -> None:
    problem = {"status": 404, "detail": "No such run", "code": "run_not_found"}
    client, gateway = connect(lambda _: httpx.Response(404, json=problem))
    with pytest.raises(ProblemError, match="No such run"):
        list(client.follow(RUN_ID))
    assert len(gateway.requests) == 1


def test_follow_without_any_gateway_fails_soon(pauses: list[float]) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client, gateway = connect(refuse)
    with pytest.raises(UnreachableError):
        list(client.follow(RUN_ID))
    assert len(gateway.requests) == 6
    assert sum(pauses) == 5.0


def test_follow_gives_up_after_many_failures_in_a_row(pauses: list[float]) -> None:
    first = iter([httpx.Response(200, headers=EVENTS, stream=Broken(sse("run_started", 5)))])
    client, gateway = connect(lambda _: next(first, httpx.Response(503)))
    with pytest.raises(ProblemError, match="503"):
        list(client.follow(RUN_ID))
    assert len(gateway.requests) == 21
    assert pauses[:3] == [0.2, 0.4, 0.8]
    assert max(pauses) == 2.0


def test_client_needs_no_other_extra() -> None:
    extras = ("re2", "cronsim", "faststream", "jsonpath_rfc9535", "jsonschema_rs", "rich",
              "sqlalchemy", "typer", "uvloop", "yaml")  # fmt: skip
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
import penstock.client
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_get_all_joins_the_pages_of_steps() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        cursor = request.url.params.get("steps_cursor")
        step = {"step_id": cursor or "1", "node_id": "a", "kind": "tool", "name": "t",
                "status": "succeeded", "attempt": 1}  # fmt: skip
        following = {None: "2", "2": "3", "3": None}[cursor]
        return httpx.Response(200, json={**RUN, "steps": [step], "next_steps_cursor": following})

    client, gateway = connect(page)
    run = client.get_all(RUN_ID, at_seq=9)
    assert [step.step_id for step in run.steps] == ["1", "2", "3"]
    assert run.next_steps_cursor is None
    assert [dict(request.url.params) for request in gateway.requests] == [
        {"at_seq": "9"},
        {"at_seq": "9", "steps_cursor": "2", "steps_limit": "1000"},
        {"at_seq": "9", "steps_cursor": "3", "steps_limit": "1000"},
    ]


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", "../archive", "a/b", "a?x=1", "a#b", "a b", "a\nb", "%2e%2e", "\udcff"],
)
def test_id_that_would_name_another_path_is_not_sent(run_id: str) -> None:
    client, gateway = connect(lambda _: httpx.Response(200, json=RUN))
    for call in (client.get, client.cancel, client.tool_calls, client.retry):
        with pytest.raises(UnsendableError, match="is not an id"):
            call(run_id)
    with pytest.raises(UnsendableError):
        client.cancel_step(RUN_ID, run_id)
    with pytest.raises(UnsendableError):
        next(client.follow(run_id))
    assert gateway.requests == []


@pytest.mark.parametrize(
    "options",
    [{"input": float("nan")}, {"idempotency_key": "caf\xe9"}, {"input": "\ud800"}],
)
def test_argument_without_a_form_in_http_or_json_is_not_sent(options: dict[str, Any]) -> None:
    client, gateway = connect(lambda _: httpx.Response(200, json=RUN))
    with pytest.raises(UnsendableError):
        client.start("helper", **options)
    assert gateway.requests == []


@pytest.mark.parametrize("url", ["http://a..b", "ftp://gateway.test", "gateway.test"])
def test_url_without_a_host_or_a_known_scheme_is_not_connected(url: str) -> None:
    with Client(url) as client, pytest.raises(UnsendableError):
        client.get(RUN_ID)


def test_header_with_a_line_break_is_refused_without_its_value() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError("Illegal header value b'Bearer pk_secret'")

    client, _ = connect(fail)
    with pytest.raises(UnsendableError) as refused:
        client.get(RUN_ID)
    assert "pk_secret" not in str(refused.value)


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(200, html="<html>hello</html>"),
        httpx.Response(200, headers=EVENTS, content=b'data: {"type": "tick"}\n\n'),
    ],
)
def test_follow_of_something_else_is_no_empty_run(reply: httpx.Response) -> None:
    client, _ = connect(lambda _: reply)
    with pytest.raises(ReplyError):
        list(client.follow(RUN_ID))


def test_step_that_is_retried_between_two_pages_is_returned_once() -> None:
    step = {"node_id": "a", "kind": "tool", "name": "t", "attempt": 1}
    first = {"steps": [{**step, "step_id": "a", "status": "waiting"}], "next_steps_cursor": "1.a"}
    last = {"steps": [{**step, "step_id": "a", "status": "succeeded", "attempt": 2}]}
    pages = iter([{**RUN, **first}, {**DONE, **last}])
    client, _ = connect(lambda _: httpx.Response(200, json=next(pages)))
    run = client.get_all(RUN_ID)
    assert [(one.step_id, one.status) for one in run.steps] == [("a", "succeeded")]
    assert run.status == "done"
