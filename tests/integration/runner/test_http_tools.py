"""HTTP tools against real servers on loopback, through a real runner where it matters."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import JsonValue

from penstock.contracts.errors import ErrorFamily, PenstockError, RejectedError, TransientError
from penstock.contracts.facts import SecretRef
from penstock.contracts.structs import encode
from penstock.egress import guarded_client
from penstock.masks import Mask
from penstock.runner import Runner
from penstock_tool_runner.http import HttpTools
from tests.integration.runner.conftest import Bench
from tests.support.http_server import Answer, Call, HttpServer, Respond

LOOPBACK = ("127.0.0.0/8",)
CANARY = "canary-4711-secret"
Serve = Callable[..., HttpServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def serve(respond: Respond, **options: Any) -> HttpServer:
            return stack.enter_context(HttpServer(respond, **options))

        yield serve


class FakeContext:
    """What a tool needs of its context."""

    name = "call"
    idempotency_key = "R:a"

    def __init__(
        self,
        http: dict[str, Any],
        parameters: JsonValue,
        seconds: float,
        *,
        hidden: str = "",
        at_most_once: bool = False,
    ) -> None:
        self.config = {"http": http, "parameters": parameters}
        self.remaining_seconds = seconds
        self.at_most_once = at_most_once
        self.mask = Mask([hidden]).text


async def call(
    http: dict[str, Any],
    arguments: JsonValue = None,
    *,
    parameters: JsonValue = None,
    allow: tuple[str, ...] = LOOPBACK,
    client: httpx.AsyncClient | None = None,
    seconds: float = 10.0,
    **more: Any,
) -> JsonValue:
    tools = HttpTools(allow=allow, environment={"PENSTOCK_SECRET_KEY": CANARY}, client=client)
    context: Any = FakeContext(http, parameters, seconds, **more)
    try:
        return await tools.call(context, arguments)
    finally:
        await tools.close()


async def fails(http: dict[str, Any], arguments: JsonValue = None, **more: Any) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await call(http, arguments, **more)
    return caught.value


def ok(_: Call) -> Answer:
    return Answer(body={"items": [{"name": "first"}]})


async def test_step_of_queue_http_is_answered_by_the_server(
    bench: Bench, queue: str, serve: Serve
) -> None:
    server = serve(ok)
    runner = Runner(kind="tool", queue=queue)
    tools = HttpTools(allow=LOOPBACK, environment={"PENSTOCK_SECRET_KEY": CANARY})
    runner.step()(tools.call)
    await bench.start(runner)
    config = {
        "http": {
            "method": "POST",
            "url": f"{server.url}/v1/{{{{ arguments.city }}}}",
            "headers": {"authorization": {"secret": "KEY", "prefix": "Bearer "}},
            "query": {"days": "{{ arguments.days }}"},
            "json": {"city": "{{ arguments.city }}"},
            "response": "{{ body.items[0].name }}",
        },
        "parameters": {"type": "object", "required": ["city"]},
    }
    prefix = await bench.schedule(runner, "forecast", {"city": "Bad Ems", "days": 2}, config=config)
    result = await bench.result(prefix)
    assert result.output == "first"
    received = server.calls[0]
    assert (received.method, received.path) == ("POST", "/v1/Bad%20Ems?days=2")
    assert received.body == b'{"city":"Bad Ems"}'
    assert received.headers["authorization"] == f"Bearer {CANARY}"
    assert received.headers["idempotency-key"] == f"{prefix.rsplit('.', 1)[1]}:a"
    assert received.headers["host"] == f"127.0.0.1:{server.port}"
    wrong = await bench.done(runner, "forecast", {"days": 2}, config=config)
    assert wrong.error is not None
    assert wrong.error.code == "invalid_arguments"
    assert len(server.calls) == 1
    await tools.close()


@pytest.mark.parametrize(
    ("status", "headers", "family", "after"),
    [
        (400, {}, ErrorFamily.REJECTED, None),
        (404, {}, ErrorFamily.REJECTED, None),
        (408, {}, ErrorFamily.TRANSIENT, None),
        (425, {}, ErrorFamily.TRANSIENT, None),
        (429, {"Retry-After": "3"}, ErrorFamily.TRANSIENT, 3.0),
        (500, {}, ErrorFamily.TRANSIENT, None),
        (503, {"Retry-After": "1.5"}, ErrorFamily.TRANSIENT, 1.5),
    ],
)
async def test_status_says_whether_to_try_again_and_one_request_is_sent(
    serve: Serve, status: int, headers: dict[str, str], family: ErrorFamily, after: float | None
) -> None:
    server = serve(lambda _: Answer(status=status, body="sorry", headers=headers))
    error = await fails({"url": server.url})
    assert (error.code, error.family) == (f"http_{status}", family)
    assert error.retry_after_seconds == after
    assert "sorry" in error.message
    assert len(server.calls) == 1


async def test_address_that_is_not_allowed_gets_no_connection(serve: Serve) -> None:
    server = serve(ok)
    error = await fails({"url": server.url}, allow=())
    assert (error.code, error.family) == ("address_refused", ErrorFamily.REJECTED)
    by_name = await fails({"url": f"http://localhost:{server.port}"}, allow=())
    assert by_name.code == "address_refused"
    assert server.calls == []


async def test_redirect_to_an_address_that_is_not_allowed_is_refused(serve: Serve) -> None:
    inside = serve(ok)
    target = f"http://127.0.0.2:{inside.port}/secret"
    outside = serve(lambda _: Answer(status=302, headers={"Location": target}))
    error = await fails({"url": outside.url}, allow=("127.0.0.1",))
    assert error.code == "address_refused"
    assert inside.calls == []


async def test_redirect_within_the_origin_keeps_secrets_and_to_another_drops_them(
    serve: Serve,
) -> None:
    other = serve(ok)

    def respond(call: Call) -> Answer:
        if call.path == "/start":
            return Answer(status=307, headers={"Location": "/next"})
        return Answer(status=307, headers={"Location": f"{other.url}/end"})

    server = serve(respond)
    output = await call(
        {"url": f"{server.url}/start", "headers": {"x-key": {"secret": "KEY"}, "x-plain": "1"}}
    )
    assert output == {"items": [{"name": "first"}]}
    assert [item.headers.get("x-key") for item in server.calls] == [CANARY, CANARY]
    assert "x-key" not in other.calls[0].headers
    assert other.calls[0].headers["x-plain"] == "1"


async def test_redirect_to_another_origin_takes_no_secret_of_the_step_along(serve: Serve) -> None:
    other = serve(ok)
    server = serve(lambda _: Answer(status=307, headers={"Location": f"{other.url}/end"}))

    headers = {"x-key": f"Key {CANARY}", "x-plain": "1"}
    await call({"url": server.url, "headers": headers}, hidden=CANARY)
    error = await fails(
        {"url": server.url, "method": "POST", "json": {"key": CANARY}}, hidden=CANARY
    )

    assert "x-key" not in other.calls[0].headers
    assert other.calls[0].headers["x-plain"] == "1"
    assert error.code == "address_refused"
    assert len(other.calls) == 1


async def test_secret_of_the_step_is_cut_out_of_a_refusal_before_it_is_shortened(
    serve: Serve,
) -> None:
    server = serve(lambda _: Answer(status=400, raw=(" " + "x" * 490 + CANARY).encode()))
    error = await fails({"url": server.url}, hidden=CANARY)

    assert CANARY[:6] not in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [(504, "outcome_unknown"), (500, "outcome_unknown"), (503, "http_503"), (422, "http_422")],
)
async def test_answer_that_does_not_say_what_was_done_is_unknown_at_most_once(
    serve: Serve, status: int, code: str
) -> None:
    server = serve(lambda _: Answer(status=status))

    assert (await fails({"url": server.url}, at_most_once=True)).code == code


async def test_answer_that_does_not_come_is_unknown_at_most_once(serve: Serve) -> None:
    released = threading.Event()
    server = serve(lambda _: Answer(wait=released))
    try:
        error = await fails({"url": server.url}, at_most_once=True, seconds=0.2)
    finally:
        released.set()
    assert (error.code, error.family) == ("outcome_unknown", ErrorFamily.TRANSIENT)


async def test_server_that_is_not_reached_has_done_nothing(serve: Serve) -> None:
    with HttpServer(ok) as server:
        url = server.url
    assert (await fails({"url": url}, at_most_once=True)).code == "http_unreachable"


async def test_endless_redirect_is_rejected(serve: Serve) -> None:
    server = serve(lambda _: Answer(status=302, headers={"Location": "/again"}))
    assert (await fails({"url": server.url})).code == "too_many_redirects"
    assert len(server.calls) == 6


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "not a url", "http://"])
async def test_url_of_another_kind_is_rejected(url: str) -> None:
    error = await fails({"url": "{{ arguments.url }}"}, {"url": url})
    assert error.family is ErrorFamily.REJECTED


async def test_name_is_resolved_once_and_the_connection_goes_there(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that points elsewhere the second time is asked only once."""
    server = serve(ok)
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def rebinding(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "rebind.example":
            return resolve(host, *rest, **more)
        asked.append(str(host))
        address = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return resolve(address, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert await call({"url": f"http://rebind.example:{server.port}/"}) is not None
    assert asked == ["rebind.example"]
    assert server.calls[0].headers["host"] == f"rebind.example:{server.port}"


async def test_name_with_one_forbidden_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(host: Any, port: Any, *_: Any, **__: Any) -> Any:
        kind = socket.SOCK_STREAM
        return [
            (socket.AF_INET, kind, 6, "", ("8.8.8.8", port)),
            (socket.AF_INET, kind, 6, "", ("10.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert (await fails({"url": "http://two.example/"}, allow=())).code == "address_refused"


async def test_tls_is_checked_against_the_name_not_the_address(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(  # noqa: ASYNC221 - before anything runs
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2"),
            *("-subj", "/CN=tls.example", "-addext", "subjectAltName=DNS:tls.example"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names: list[str | None] = []

    def on_name(_socket: object, name: str | None, _context: object) -> None:
        names.append(name)

    context.sni_callback = on_name
    server = serve(ok, context=context)
    resolve = socket.getaddrinfo

    def local(host: Any, *rest: Any, **more: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith(".example") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    trust = ssl.create_default_context(cafile=str(certificate))
    good = guarded_client(LOOPBACK, context=trust)
    assert await call({"url": f"https://tls.example:{server.port}/"}, client=good) is not None
    assert names == ["tls.example"]
    bad = guarded_client(LOOPBACK, context=trust)
    error = await fails({"url": f"https://other.example:{server.port}/"}, client=bad)
    assert error.code == "http_unreachable"


async def test_response_over_the_limit_is_rejected(serve: Serve) -> None:
    server = serve(lambda _: Answer(raw=b"x" * 5000))
    error = await fails({"url": server.url, "max_response_bytes": 4999})
    assert (error.code, error.family) == ("response_too_large", ErrorFamily.REJECTED)
    assert await call({"url": server.url, "max_response_bytes": 5000}) == "x" * 5000


async def test_slow_server_is_given_up_after_the_tool_s_timeout(serve: Serve) -> None:
    release = threading.Event()
    server = serve(lambda _: Answer(wait=release))
    try:
        error = await fails({"url": server.url, "timeout_seconds": 0.2})
        assert (error.code, error.family) == ("http_timeout", ErrorFamily.TRANSIENT)
        error = await fails({"url": server.url}, seconds=0.2)
        assert error.code == "http_timeout"
    finally:
        release.set()


async def test_refused_connection_is_transient() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = await fails({"url": f"http://127.0.0.1:{port}"})
    assert (error.code, error.family) == ("http_unreachable", ErrorFamily.TRANSIENT)


async def test_unknown_name_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert isinstance(await fails({"url": "http://no.such.example"}), TransientError)


async def test_missing_secret_is_rejected_by_name_and_nothing_is_sent(serve: Serve) -> None:
    server = serve(ok)
    error = await fails({"url": server.url, "headers": {"x": {"secret": "OTHER"}}})
    assert isinstance(error, RejectedError)
    assert (error.code, "PENSTOCK_SECRET_OTHER" in error.message) == ("secret_missing", True)
    assert server.calls == []


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_secret_that_comes_back_is_redacted_and_never_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    # Libraries for HTTP are kept quiet by `penstock.telemetry.logs.configure`.
    caplog.set_level(logging.DEBUG, logger="penstock")

    def echo(call: Call) -> Answer:
        said = call.headers["x-key"]
        return Answer(status=status, body={"you sent": said}, headers={"X-Echo": said})

    server = serve(echo)
    tool = {
        "url": server.url,
        "headers": {"x-key": {"secret": "KEY"}},
        "response": {"body": "{{ body }}", "headers": "{{ headers }}"},
    }
    shown = (
        str(await call(tool)) if status == 200 else " ".join(str(await fails(tool)).splitlines())
    )
    assert CANARY not in shown
    assert "[redacted]" in shown
    assert CANARY not in caplog.text
    assert server.calls[0].headers["x-key"] == CANARY


async def test_body_that_is_not_json_is_text(serve: Serve) -> None:
    server = serve(lambda _: Answer(raw=b"plain", headers={"Content-Type": "text/plain"}))
    assert await call({"url": server.url}) == "plain"
    empty = serve(lambda _: Answer(status=200, raw=b""))
    assert await call({"url": empty.url}) is None


async def test_response_of_another_shape_is_rejected(serve: Serve) -> None:
    server = serve(ok)
    error = await fails({"url": server.url, "response": "{{ body.missing }}"})
    assert (error.code, error.family) == ("template_unresolved", ErrorFamily.REJECTED)


async def test_proxy_of_the_environment_is_not_used(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(lambda _: Answer(body="proxied"))
    server = serve(ok)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    assert await call({"url": server.url}) == {"items": [{"name": "first"}]}
    assert proxy.calls == []


async def test_many_calls_at_once_share_the_client(serve: Serve) -> None:
    server = serve(ok)
    tools = HttpTools(allow=LOOPBACK, environment={})
    context: Any = FakeContext({"url": server.url}, None, 10.0)
    outputs = await asyncio.gather(*(tools.call(context, None) for _ in range(40)))
    assert len(outputs) == len(server.calls) == 40
    await tools.close()


async def test_secret_among_the_arguments_reaches_the_server_and_comes_back_masked(
    bench: Bench, queue: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET_KEY", f"{CANARY}/&?")

    def echo(call: Call) -> Answer:
        return Answer(body={"path": call.path, "key": call.headers["x-key"]})

    server = serve(echo)
    tools = HttpTools(allow=LOOPBACK, environment={})
    runner = Runner(kind="tool", queue=queue)
    runner.step()(tools.call)
    await bench.start(runner)
    http = {
        "url": f"{server.url}/of/{{{{ arguments.key }}}}",
        "query": {"q": "{{ arguments.key }}"},
        "headers": {"x-key": "Key {{ arguments.key }}"},
    }
    result = await bench.done(
        runner,
        "call",
        {"key": "[secret]"},
        config={"http": http},
        secrets={"/input/key": (SecretRef(secret="KEY"),)},
    )
    await tools.close()
    assert server.calls[0].headers["x-key"] == f"Key {CANARY}/&?"
    assert server.calls[0].path.startswith("/of/canary-4711-secret%2F%26%3F?q=canary")
    assert result.status == "succeeded"
    assert "canary" not in encode(result).decode()
    assert result.output == {"path": "/of/[secret]?q=[secret]", "key": "Key [secret]"}


@pytest.mark.parametrize("status", [200, 400])
async def test_secret_that_comes_back_in_escapes_is_redacted(serve: Serve, status: int) -> None:
    escaped = "".join(f"\\u{ord(sign):04x}" for sign in CANARY)
    raw = f'{{"you sent": "{escaped}", "{escaped}": [1]}}'.encode()
    server = serve(lambda _: Answer(status=status, raw=raw))
    tool = {"url": server.url, "headers": {"x-key": {"secret": "KEY"}}}
    shown = str(await call(tool)) if status == 200 else str((await fails(tool)).info())
    assert CANARY not in shown
    assert escaped not in shown
    assert shown.count("[redacted]") == 2


async def test_body_that_nests_too_deeply_is_text(serve: Serve) -> None:
    raw = b"[" * 5000 + b"]" * 5000
    server = serve(lambda _: Answer(raw=raw))
    assert await call({"url": server.url}) == raw.decode()
