import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import Result

from penstock.cli.failure import CommandError
from penstock.cli.inputs import read_input, read_start_input
from tests.unit.cli.conftest import RUN


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": 1}', {"a": 1}), ("17", 17), ("what is it?", "what is it?"), ("null", None)],
)
def test_read_input_takes_json_or_text(text: str, value: Any) -> None:
    assert read_input(text) == value


def test_read_input_from_file_reads_it(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text("[1]")
    assert read_input(f"@{tmp_path}/input.json") == [1]


@pytest.mark.parametrize(
    "text",
    [
        *('{"a": ', "@no/such/file", "@/bin/sh", "@/", "[" * 100_000, "1e400", "[NaN]"),
        *("\udcff", '{"a": "\udcff"}', '{"a": 1, "a": 2}', r'["\ud800"]'),
    ],
)
def test_read_input_unreadable_is_misuse(text: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_input(text)
    assert caught.value.exit_code == 2


def test_invoke_sends_key_session_and_wait(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json=RUN)
        return httpx.Response(200, json={**RUN, "status": "done", "output": "42"})

    gateway(answer)
    arguments = ["--session", "s1", "--idempotency-key", "k1", "--wait", "5"]
    shown = run("invoke", "helper", "--input", '{"q": 1}', *arguments)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [f"{RUN['run_id']} done", "42"]
    sent = requests[0]
    assert json.loads(sent.content) == {"name": "helper", "input": {"q": 1}, "session_id": "s1"}
    assert sent.headers["idempotency-key"] == "k1"
    assert requests[1].headers["prefer"] == "wait=5"
    assert shown.stderr == f"{RUN['run_id']}\n"


@pytest.mark.parametrize("status", ["failed", "running", "cancelled"])
def test_invoke_awaited_that_does_not_end_well_exits_with_1(
    run: Callable[..., Result], gateway: Callable[..., None], status: str
) -> None:
    gateway(lambda _: httpx.Response(200, json={**RUN, "status": status}))
    assert run("invoke", "helper", "--wait", "1").exit_code == 1


def test_invoke_followed_prints_events_and_ends_with_the_run(
    run: Callable[..., Result], gateway: Callable[..., None]
) -> None:
    at = "2026-11-20T12:00:00Z"
    events = [
        {"type": "run_started", "run_id": RUN["run_id"], "at": at, "data": {"name": "helper"}},
        {"type": "agent_stream_delta", "run_id": RUN["run_id"], "step_id": "a-1",
         "data": {"index": 0, "text": "hello "}},
        {"type": "agent_stream_delta", "run_id": RUN["run_id"], "step_id": "a-1",
         "data": {"index": 1, "text": "world"}},
        {"type": "run_done", "run_id": RUN["run_id"], "at": at, "data": {"output": "hello world"}},
    ]  # fmt: skip
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json=RUN)
        return httpx.Response(200, text=stream, headers={"content-type": "text/event-stream"})

    gateway(answer)
    shown = run("invoke", "helper", "--follow")
    assert shown.exit_code == 0, shown.output
    assert "hello world\n" in shown.stdout
    assert "run_done" in shown.stdout.splitlines()[-1]
    assert shown.stderr == f"{RUN['run_id']}\n"


@pytest.mark.parametrize(
    "arguments",
    [("invoke", "helper", "--follow"), ("invoke", "helper", "--wait", "9"), ("runs", "tail", "R")],
)
def test_interrupted_command_shows_how_to_find_the_run_again(
    run: Callable[..., Result], gateway: Callable[..., None], arguments: tuple[str, ...]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json=RUN)
        raise KeyboardInterrupt

    gateway(answer)
    shown = run(*arguments)
    assert shown.exit_code == 130
    run_id = RUN["run_id"] if arguments[0] == "invoke" else "R"
    assert f"penstock runs tail {run_id}" in shown.stderr
    assert f"penstock runs cancel {run_id}" in shown.stderr


@pytest.mark.parametrize("text", ["17", '{"a": 1}', "@no/such/file", "[", ""])
def test_invoke_with_text_sends_it_as_it_is(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    requests: list[httpx.Request],
    text: str,
) -> None:
    gateway(lambda _: httpx.Response(202, json=RUN))
    assert run("invoke", "helper", "--text", text).exit_code == 0
    assert json.loads(requests[0].content) == {"name": "helper", "input": text}


def test_invoke_with_two_inputs_is_misuse() -> None:
    with pytest.raises(CommandError, match="either --input or --text"):
        read_start_input("1", "2")
