import json
import shlex
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from typer.testing import Result

from penstock.cli.failure import CommandError
from tests.unit.cli.conftest import AT, RUN_ID
from tests.unit.cli.conftest import RUN as RUNNING

STEP = {"step_id": "a", "node_id": "a", "kind": "tool", "name": "pay", "status": "failed",
        "attempt": 1}  # fmt: skip
RUN = {**RUNNING, "status": "waiting", "steps": [STEP]}
SIGNAL = {"run_id": RUN_ID, "signal_id": "s", "seq": 7, "name": "paid", "at": AT}
APPROVAL = {
    "run_id": RUN_ID,
    "record_id": "pay-a",
    "step_id": "pay",
    "run_name": "shop",
    "status": "approved",
    "tool": "pay",
    "arguments": {"amount": 250},
    "digest": "d" * 64,
    "role": "finance",
    "message": "more than 100",
    "asked_at": AT,
    "expires_at": AT,
    "decided": {"decision": "approve", "by": "ada", "reason": "fine", "at": AT},
}
UNKNOWN = {
    "run_id": RUN_ID,
    "items": [
        {"step_id": "a", "record_id": "a-r", "tool": "pay", "asked_at": AT, "message": "lost"}
    ],
}
CALL = {"step_id": "ask", "tool": "screen", "digest": "d" * 64, "asked_at": AT, "arguments": {}}


def sent(request: httpx.Request) -> tuple[str, str, Any]:
    body = json.loads(request.content) if request.content else None
    return request.method, request.url.path, body


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body", "answer"),
    [
        (
            ("signal", RUN_ID, "paid", "--payload", '{"amount": 3}'),
            "POST",
            f"/v1/runs/{RUN_ID}/signals",
            {"name": "paid", "payload": {"amount": 3}},
            SIGNAL,
        ),
        (
            ("signal", "paid", "--correlation", "order 17"),
            "POST",
            "/v1/signals",
            {"name": "paid", "payload": None, "correlation": "order 17"},
            {"items": [SIGNAL]},
        ),
        (
            ("runs", "message", RUN_ID, "hi", "--from", RUN_ID, "-p", "text"),
            "POST",
            f"/v1/runs/{RUN_ID}/messages",
            {"name": "hi", "payload": "text", "from_run": RUN_ID},
            SIGNAL,
        ),
        (
            ("runs", "message", "hi", "--session", "s1"),
            "POST",
            "/v1/sessions/s1/messages",
            {"name": "hi", "payload": None},
            SIGNAL,
        ),
        (
            ("runs", "pause", RUN_ID, "--reason", "lunch"),
            "POST",
            f"/v1/runs/{RUN_ID}/pause",
            {"reason": "lunch"},
            RUN,
        ),
        (("runs", "resume", RUN_ID), "POST", f"/v1/runs/{RUN_ID}/resume", {"reason": ""}, RUN),
        (
            ("runs", "cancel-step", RUN_ID, "a"),
            "POST",
            f"/v1/runs/{RUN_ID}/steps/a/cancel",
            {"reason": ""},
            RUN,
        ),
        (
            ("runs", "cancel-many", "--tag", "team=a", "--status", "waiting", "--dry-run"),
            "POST",
            "/v1/runs/cancel",
            {
                "tag": {"team": "a"},
                "status": ["waiting"],
                "limit": 1000,
                "dry_run": True,
                "reason": "",
            },
            {
                "dry_run": True,
                "matched": 3,
                "asked": ["x"],
                "asked_before": ["y"],
                "ended": ["z"],
                "more": True,
            },
        ),
        (
            ("runs", "tool-calls", RUN_ID),
            "GET",
            f"/v1/runs/{RUN_ID}/tool_calls",
            None,
            {"run_id": RUN_ID, "items": [CALL]},
        ),
        (
            ("runs", "tool-result", RUN_ID, "ask", "--output", "[1]"),
            "POST",
            f"/v1/runs/{RUN_ID}/tool_results",
            {"results": [{"step_id": "ask", "output": [1]}]},
            RUN,
        ),
        (
            ("runs", "tool-result", RUN_ID, "ask", "--error", "no screen"),
            "POST",
            f"/v1/runs/{RUN_ID}/tool_results",
            {
                "results": [
                    {"step_id": "ask", "status": "failed", "error": {"message": "no screen"}}
                ]
            },
            RUN,
        ),
        (("runs", "unknown", RUN_ID), "GET", f"/v1/runs/{RUN_ID}/unknown", None, UNKNOWN),
        (
            ("runs", "resolve", RUN_ID, "pay", "succeed", "-o", "7", "--digest", "attempt-1"),
            "POST",
            f"/v1/runs/{RUN_ID}/steps/pay/resolve",
            {"action": "succeed", "reason": "", "output": 7, "digest": "attempt-1"},
            RUN,
        ),
        (("approvals", "list"), "GET", "/v1/approvals", None, {"items": [APPROVAL]}),
        (
            ("approvals", "show", RUN_ID, "pay-a"),
            "GET",
            f"/v1/approvals/{RUN_ID}/pay-a",
            None,
            APPROVAL,
        ),
        (
            ("approvals", "approve", RUN_ID, "pay-a", "--reason", "fine"),
            "POST",
            f"/v1/approvals/{RUN_ID}/pay-a/approve",
            {"reason": "fine"},
            APPROVAL,
        ),
        (
            ("approvals", "reject", RUN_ID, "pay-a", "--digest", "d"),
            "POST",
            f"/v1/approvals/{RUN_ID}/pay-a/reject",
            {"reason": "", "digest": "d"},
            APPROVAL,
        ),
    ],
)
def test_command_asks_the_gateway_and_shows_the_answer(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    requests: list[httpx.Request],
    arguments: tuple[str, ...],
    method: str,
    path: str,
    body: Any,
    answer: Any,
) -> None:
    gateway(lambda _: httpx.Response(200, json=answer))
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.strip()
    assert sent(requests[0]) == (method, path, body)


@pytest.mark.parametrize(("status", "said"), [("done", True), ("running", False)])
def test_cancel_of_a_run_that_has_ended_says_so(
    run: Callable[..., Result], gateway: Callable[..., None], status: str, said: bool
) -> None:
    gateway(lambda _: httpx.Response(200, json={**RUN, "status": status}))
    shown = run("runs", "cancel", RUN_ID)
    assert shown.exit_code == 0
    assert ("nothing was cancelled" in shown.stdout) is said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("signal", RUN_ID), "give RUN and NAME, or NAME and --correlation"),
        (("signal", RUN_ID, "paid", "--correlation", "k"), "give RUN and NAME"),
        (("signal", RUN_ID, "paid", "--payload", "{"), "--payload is not JSON"),
        (("runs", "message", "hi"), "give RUN and NAME, or NAME and --session"),
        (("runs", "cancel-many"), "give a filter, or --all"),
        (("runs", "cancel-many", "--tag", "team"), "--tag takes NAME=VALUE"),
        (("invoke", "x", "--limit", "max_tokens"), "--limit takes NAME=VALUE"),
    ],
)
def test_command_that_is_misused_says_so_and_asks_nobody(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    requests: list[httpx.Request],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    gateway(lambda _: httpx.Response(500))
    result = run(*arguments)
    assert result.exit_code != 0
    assert words in result.stderr or words in str(result.exception)
    assert requests == []


def test_decision_that_was_taken_is_told_with_what_was_decided(
    run: Callable[..., Result], gateway: Callable[..., None]
) -> None:
    problem = {
        "code": "already_decided",
        "detail": "ada has answered already: reject",
        "errors": [{"path": "decision", "message": "decided by ada", "allowed": "reject"}],
    }
    gateway(lambda _: httpx.Response(409, json=problem))
    result = run("approvals", "approve", RUN_ID, "pay-a")
    assert result.exit_code == 1
    assert isinstance(result.exception, CommandError)
    assert result.exception.findings == (("decision", "decided by ada", "reject"),)
    assert "ada has answered already: reject [already_decided]" in str(result.exception)


def test_invoke_sends_priority_tags_and_limits(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    gateway(lambda _: httpx.Response(202, json=RUN))
    options = ["--priority", "5", "--tag", "team=a", "--limit", "max_tokens=100"]
    shown = run("invoke", "helper@2", *options, "--limit", "max_cost_usd=0.5")
    assert shown.exit_code == 0, shown.output
    assert json.loads(requests[0].content) == {
        "name": "helper@2",
        "input": None,
        "priority": 5,
        "tags": {"team": "a"},
        "limits": {"max_tokens": 100, "max_cost_usd": 0.5},
    }


@pytest.mark.parametrize(
    ("kind", "record_id", "choice", "path"),
    [
        ("approval", "pay-a", "approve", "approvals/{}/pay-a/approve"),
        ("approval", "ask", "reject", "approvals/{}/ask/reject"),
        ("client_tool", "screen-x1", "", "runs/{}/tool_results"),
        ("resolution", "pay-r", "retry", "runs/{}/steps/pay/resolve"),
        ("wait", "until-paid", "", "runs/{}/signals"),
    ],
)
def test_show_of_a_waiting_run_prints_the_command_that_answers(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    requests: list[httpx.Request],
    kind: str,
    record_id: str,
    choice: str,
    path: str,
) -> None:
    record = {"record_id": record_id, "kind": kind, "status": "open", "at": AT,
              "request": {"name": "it's paid"}}  # fmt: skip
    view = {**RUNNING, "status": "waiting", "waiting_for": [record]}
    gateway(lambda _: httpx.Response(200, json=view))
    shown = run("runs", "show", RUN_ID).stdout
    program, *typed = shlex.split(shown.partition("to answer: ")[2])
    assert program == "penstock"
    replies = {"approval": APPROVAL, "wait": SIGNAL}
    gateway(lambda _: httpx.Response(200, json=replies.get(kind, RUN)))
    typed = [choice if "|" in word else "1" if word == "JSON" else word for word in typed]
    result = run(*typed)
    assert result.exit_code == 0, result.output
    assert requests[-1].method == "POST"
    assert requests[-1].url.path == "/v1/" + path.format(RUN_ID)


def test_show_distinguishes_steps_in_work_from_those_that_wait(
    run: Callable[..., Result], gateway: Callable[..., None]
) -> None:
    waiting = {**STEP, "queue": "text", "status": "scheduled"}
    steps = [
        {**waiting, "step_id": "a", "activity": "unserved"},
        {**waiting, "step_id": "b", "activity": "unserved"},
        {**waiting, "step_id": "c", "activity": "queued"},
        {**waiting, "step_id": "d", "activity": "working", "progress": "page 7"},
        {**waiting, "step_id": "e", "kind": "run", "queue": "workflow"},
    ]
    gateway(lambda _: httpx.Response(200, json={**RUNNING, "steps": steps}))

    shown = run("runs", "show", RUN_ID)

    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert [line[3] for line in lines if line and line[0] in "abcde"] == [
        "unserved",
        "unserved",
        "queued",
        "working",
        "scheduled",
    ]
    assert "page 7" in shown.stdout
    hints = [line.strip() for line in shown.stdout.splitlines() if "no runner" in line]
    assert hints == ["no runner serves queue tool.text; waiting steps: 2"]


def test_show_of_an_open_approval_prints_its_question(
    run: Callable[..., Result], gateway: Callable[..., None]
) -> None:
    asked = {"name": "pay", "arguments": {"amount": 5}, "message": "Pay 5 to Eva?"}
    record = {
        "record_id": "pay-a",
        "kind": "approval",
        "status": "open",
        "at": AT,
        "request": asked,
    }
    gateway(lambda _: httpx.Response(200, json={**RUNNING, "waiting_for": [record]}))

    assert 'pay {"amount": 5} Pay 5 to Eva?' in run("runs", "show", RUN_ID).stdout


def test_show_of_a_run_that_waits_for_a_time_prints_no_command(
    run: Callable[..., Result], gateway: Callable[..., None]
) -> None:
    record = {"record_id": "nap", "kind": "wait", "status": "open", "at": AT, "due_at": AT}
    gateway(lambda _: httpx.Response(200, json={**RUN, "waiting_for": [record]}))
    shown = run("runs", "show", RUN_ID)
    assert "nap" in shown.stdout
    assert "to answer" not in shown.stdout


def test_show_at_a_sequence_asks_for_it_and_tells_what_the_run_waits_for(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    node_record = {"record_id": "pay-a", "kind": "approval", "status": "open", "due_at": AT,
                   "at": AT}  # fmt: skip
    shop = {
        **RUNNING,
        "status": "waiting",
        "waiting_for": [{**node_record, "request": {"name": "pay", "arguments": {"amount": 250}}}],
        "node_records": [{**node_record, "kind": "branch", "choice": "large"}],
        "budget": {"tokens": {"limit": 100, "spent": 30, "reserved": 0, "left": 70}},
        "parent": {
            "run_id": "PARENT",
            "shard": 1,
            "step_id": "s",
            "attempt": 1,
            "root_run_id": "PARENT",
            "depth": 1,
        },
        "forked_from": {"run_id": "ORIGIN", "at_seq": 9, "mode": "fork"},
        "children": [{"run_id": "CHILD", "step_id": "a", "name": "b", "status": "done"}],
    }
    gateway(lambda _: httpx.Response(200, json=shop))
    shown = run("runs", "show", RUN_ID, "--at", "17", "--records")
    assert shown.exit_code == 0, shown.output
    assert dict(requests[0].url.params) == {"at_seq": "17", "node_records": "true"}
    for words in ("pay-a", '{"amount": 250}', "large", "70 of 100 tokens", "PARENT", "CHILD"):
        assert words in shown.stdout
    assert "ORIGIN at 9 (fork)" in shown.stdout


OTHER_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
REPLIES = {"signals": SIGNAL, "messages": SIGNAL}


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "show", "{}"),
        ("runs", "cancel", "{}"),
        ("runs", "message", "{}", "paid"),
        ("signal", "{}", "paid"),
        ("history", "delete-run", "{}", "--yes"),
        ("observability", "profile-report", "{}", "--json"),
    ],
)
def test_run_is_found_by_the_beginning_of_its_id(
    run: Callable[..., Result],
    gateway: Callable[..., None],
    requests: list[httpx.Request],
    arguments: tuple[str, ...],
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/runs":
            return httpx.Response(200, json={"items": [RUN]})
        return httpx.Response(200, json=REPLIES.get(request.url.path.rpartition("/")[2], RUN))

    gateway(answer)
    run(*(part.format("01arz") for part in arguments))
    assert dict(requests[0].url.params)["id_prefix"] == "01ARZ"
    assert requests[1].url.path.startswith(f"/v1/runs/{RUN_ID}")

    requests.clear()
    run(*(part.format(RUN_ID.lower()) for part in arguments))
    assert requests[0].url.path.startswith(f"/v1/runs/{RUN_ID}")


def test_beginning_of_several_ids_is_refused_with_the_candidates(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    items = [RUNNING, {**RUNNING, "run_id": OTHER_ID, "status": "done"}]
    gateway(lambda _: httpx.Response(200, json={"items": items}))

    result = run("runs", "cancel", "01ARZ")

    assert isinstance(result.exception, CommandError)
    assert result.exception.exit_code == 2
    assert str(result.exception) == "2 runs have ids that begin with 01ARZ"
    assert [one[:2] for one in result.exception.findings] == [
        (RUN_ID, "helper running"),
        (OTHER_ID, "helper done"),
    ]
    assert [request.method for request in requests] == ["GET"]


def test_beginning_of_no_id_is_answered_by_the_gateway(
    run: Callable[..., Result], gateway: Callable[..., None], requests: list[httpx.Request]
) -> None:
    problem = {"code": "run_not_found", "detail": "there is no run 01XX"}

    def answer(request: httpx.Request) -> httpx.Response:
        listed = request.url.path == "/v1/runs"
        return (
            httpx.Response(200, json={"items": []}) if listed else httpx.Response(404, json=problem)
        )

    gateway(answer)
    assert "there is no run 01XX" in str(run("runs", "show", "01XX").exception)
    assert [request.url.path for request in requests] == ["/v1/runs", "/v1/runs/01XX"]

    requests.clear()
    run("runs", "show", "not-an-id")
    assert [request.url.path for request in requests] == ["/v1/runs/not-an-id"]
