import re
from collections.abc import Callable

import httpx
import pytest
from typer.testing import Result

from penstock.cli.failure import CommandError

Gateway = Callable[..., None]
Run = Callable[..., Result]


def error_of(result: Result) -> CommandError:
    assert isinstance(result.exception, CommandError), result.output
    return result.exception


def test_refusal_prints_detail_code_and_paths(run: Run, gateway: Gateway) -> None:
    problem = {
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "2 errors",
        "code": "invalid_document",
        "errors": [{"path": "spec.model", "message": "Field required", "allowed": None}],
    }
    gateway(lambda _: httpx.Response(422, json=problem))
    error = error_of(run("runs", "list"))
    assert error.message == "2 errors [invalid_document]"
    assert error.findings == (("spec.model", "Field required", None),)
    assert error.exit_code == 2


def test_refusal_without_a_problem_document_prints_the_status(run: Run, gateway: Gateway) -> None:
    gateway(lambda _: httpx.Response(502, content=b"<html>"))
    error = error_of(run("runs", "list"))
    assert (error.message, error.exit_code) == ("502 Bad Gateway", 1)


def test_missing_key_names_the_options(run: Run, gateway: Gateway) -> None:
    gateway(lambda _: httpx.Response(401, json={"detail": "No key", "code": "unauthenticated"}))
    assert "give a key by PENSTOCK_API_KEY" in error_of(run("runs", "list")).message


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (httpx.ConnectError("refused"), r"no gateway at http://gateway\.test \(refused\): is "),
        (httpx.ReadTimeout(""), r"the gateway at http://gateway\.test did not answer in time$"),
    ],
)
def test_unreachable_gateway_prints_the_address(
    run: Run, gateway: Gateway, failure: httpx.TransportError, message: str
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise failure

    gateway(fail)
    error = error_of(run("--url", "http://gateway.test", "runs", "list"))
    assert re.match(message, error.message)
    assert error.exit_code == 1


def test_reply_of_something_else_is_reported(run: Run, gateway: Gateway) -> None:
    gateway(lambda _: httpx.Response(200, content=b"<html>hello</html>"))
    assert "is not that of a Penstock gateway" in error_of(run("runs", "list")).message


def test_broken_url_is_misuse(run: Run) -> None:
    error = error_of(run("--url", "http://[::1", "runs", "list"))
    assert "is not a URL" in error.message
    assert error.exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "show", "../archive"),
        ("runs", "tail", "a/b"),
        ("runs", "export", ".."),
        ("runs", "unknown", "a?b"),
        ("runs", "resolve", "a", "../b", "retry"),
        ("runs", "message", "../sessions/a", "hello"),
        ("history", "delete-run", "../sessions/a", "--yes"),
        ("history", "delete-session", "../runs/a", "--yes"),
        ("history", "delete-tenant", "a/../b", "--yes"),
        (
            "history",
            "restore",
            "..",
        ),
        ("versions", ".."),
        ("alias", "set", "helper", "../x", "1"),
        ("schedules", "pause", ".."),
        ("schedules", "show", ".."),
    ],
)
def test_id_that_would_name_another_path_is_misuse(
    run: Run, gateway: Gateway, requests: list[httpx.Request], arguments: tuple[str, ...]
) -> None:
    gateway(lambda _: httpx.Response(404, json={"code": "unknown_definition"}))
    error = error_of(run(*arguments))
    assert (error.exit_code, error.message.endswith("is not an id")) == (2, True), error.message
    assert not any(".." in str(one.url) or "?" in str(one.url) for one in requests)
