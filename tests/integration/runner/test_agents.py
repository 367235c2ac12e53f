"""Agents through a real runner: scripted ones, and ones that are asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily
from penstock.contracts.facts import StepResult
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import decode
from penstock.runner import Runner
from penstock_agent_runner.agents import Agents
from penstock_agent_runner.providers import ProviderModel
from penstock_agent_runner.remote import RemoteAgent
from penstock_agent_runner.scripted import ScriptedModel
from tests.integration.runner.conftest import Bench
from tests.support.http_server import Answer, Call, HttpServer, Respond

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASKED = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}
Serve = Callable[..., HttpServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def serve(respond: Respond) -> HttpServer:
            return stack.enter_context(HttpServer(respond))

        yield serve


@pytest.fixture
async def runner(bench: Bench, queue: str) -> AsyncIterator[Runner]:
    remote = RemoteAgent(allow=("127.0.0.0/8",))
    agents = Agents(scripted=ScriptedModel(), provider=ProviderModel(environment={}), remote=remote)
    runner = Runner(kind="agent", queue=queue)
    runner.step()(agents.turn)
    await bench.start(runner)
    yield runner
    await remote.close()


def stream(*events: tuple[str, Any]) -> Answer:
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    return Answer(raw=text.encode(), headers={"Content-Type": "text/event-stream"})


async def ask(bench: Bench, runner: Runner, server: HttpServer, **more: Any) -> StepResult:
    config = {"endpoint": f"{server.url}/agents/one/", "session_id": "S"}
    return await bench.done(runner, "one", ASKED, config=config, **more)


async def deltas_of(bench: Bench, prefix: str) -> list[str]:
    tenant, shard, run_id = prefix.split(".")[1:]
    wanted = subjects.delta_filter(tenant, int(shard), run_id)
    return [
        text
        async for page in bench.harness.reader.pages(subjects.DELTAS, wanted)
        for message in page
        for text in decode(DeltaBatch, message.body).texts
    ]


async def test_scripted_turn_is_recorded_as_an_action_with_usage_and_model(
    bench: Bench, runner: Runner
) -> None:
    config = {"model": "scripted/demo", "script": {"turns": [{"deltas": ["It ", "is 42."]}]}}
    prefix = await bench.schedule(runner, "one", ASKED, config=config)
    result = await bench.result(prefix)
    assert result.output == {"action": "respond", "text": "It is 42.", "output": None}
    assert result.model == "scripted/demo"
    assert result.usage is not None
    assert result.usage.model_calls == 1
    assert result.deltas == 2
    assert await deltas_of(bench, prefix) == ["It ", "is 42."]


async def test_many_scripted_turns_at_once_lose_no_delta(bench: Bench, runner: Runner) -> None:
    pieces = [f"{number} " for number in range(200)]
    config = {"model": "scripted/w4", "script": {"turns": [{"deltas": pieces}]}}
    prefixes = [await bench.schedule(runner, "w4", ASKED, config=config) for _ in range(30)]
    for result in await asyncio.gather(*(bench.result(prefix) for prefix in prefixes)):
        assert result.deltas == 200
    for prefix in prefixes:
        assert await deltas_of(bench, prefix) == pieces


async def test_agent_elsewhere_streams_and_answers(
    bench: Bench, runner: Runner, serve: Serve
) -> None:
    server = serve(
        lambda _: stream(
            ("state", {"anything": 1}),
            ("delta", {"text": "It is ", "run_id": "x"}),
            ("delta", {"text": "42.", "run_id": "x"}),
            (
                "done",
                {
                    "final_message": {"role": "assistant", "content": "It is 42."},
                    "usage": {"prompt_tokens": 7, "output_tokens": 3},
                },
            ),
        )
    )
    config = {"endpoint": f"{server.url}/agents/one/", "session_id": "S"}
    prefix = await bench.schedule(runner, "one", ASKED, config=config, traceparent=TRACE)
    result = await bench.result(prefix)
    run_id = prefix.rsplit(".", 1)[1]
    assert result.output == {"action": "respond", "text": "It is 42.", "output": None}
    assert await deltas_of(bench, prefix) == ["It is ", "42."]
    assert result.usage is not None
    assert (result.usage.input_tokens, result.usage.output_tokens) == (7, 3)
    assert result.usage.unknown_price
    call = server.calls[0]
    assert (call.method, call.path) == ("POST", "/agents/one/invoke")
    assert call.headers["x-run-id"] == run_id
    assert call.headers["x-session-id"] == "S"
    assert call.headers["idempotency-key"] == f"{run_id}:a"
    assert call.headers["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert json.loads(call.body) == {
        "session_id": "S",
        "run_id": run_id,
        "input_message": {"role": "user", "content": "What is 6 times 7?"},
        "messages": [
            {
                "role": "user",
                "content": "What is 6 times 7?",
                "tool_calls": [],
                "tool_call_id": None,
            }
        ],
    }


@pytest.mark.parametrize(
    ("answer", "code", "family"),
    [
        (stream(("delta", {"text": "a"})), "agent_stream_ended", ErrorFamily.TRANSIENT),
        (stream(("error", {"message": "no"})), "agent_error", ErrorFamily.TRANSIENT),
        (
            stream(("error", {"code": "forbidden", "message": "no", "family": "rejected"})),
            "forbidden",
            ErrorFamily.REJECTED,
        ),
        (
            Answer(raw=b"event: delta\ndata: {\n\n"),
            "agent_answer_invalid",
            ErrorFamily.TRANSIENT,
        ),
        (Answer(status=404, body="no"), "http_404", ErrorFamily.REJECTED),
        (Answer(status=307, headers={"Location": "/x"}), "http_307", ErrorFamily.REJECTED),
        (Answer(status=503, headers={"Retry-After": "4"}), "http_503", ErrorFamily.TRANSIENT),
    ],
)
async def test_agent_elsewhere_that_fails_says_whether_to_try_again(
    bench: Bench, runner: Runner, serve: Serve, answer: Answer, code: str, family: ErrorFamily
) -> None:
    server = serve(lambda _: answer)
    result = await ask(bench, runner, server)
    assert result.error is not None
    assert (result.error.code, result.error.family) == (code, family)
    assert result.error.retry_after_seconds == (4.0 if code == "http_503" else None)
    assert len(server.calls) == 1


async def test_agent_elsewhere_is_left_at_the_deadline(
    bench: Bench, runner: Runner, serve: Serve
) -> None:
    release = threading.Event()

    def hang(_: Call) -> Answer:
        return Answer(wait=release)

    server = serve(hang)
    try:
        result = await ask(bench, runner, server, seconds=0.4)
        assert result.error is not None
        assert result.error.code == "step_timeout"
    finally:
        release.set()


async def test_agent_elsewhere_on_a_private_address_is_refused_unless_allowed(
    bench: Bench, queue: str, serve: Serve
) -> None:
    server = serve(lambda _: stream(("done", {"final_message": "x"})))
    remote = RemoteAgent()
    agents = Agents(scripted=ScriptedModel(), provider=ProviderModel(environment={}), remote=remote)
    runner = Runner(kind="agent", queue=queue)
    runner.step()(agents.turn)
    await bench.start(runner)
    result = await ask(bench, runner, server)
    assert result.error is not None
    assert result.error.code == "address_refused"
    assert server.calls == []
    await remote.close()


@pytest.mark.parametrize("arguments", [None, {}, {"messages": []}, {"messages": [{"role": "x"}]}])
async def test_input_without_messages_is_rejected(
    bench: Bench, runner: Runner, arguments: Any
) -> None:
    result = await bench.done(runner, "one", arguments, config={"model": "scripted/x"})
    assert result.error is not None
    assert result.error.code == "invalid_arguments"


async def test_agent_elsewhere_is_told_of_routes_and_may_take_one(
    bench: Bench, runner: Runner, serve: Serve
) -> None:
    asked: list[Any] = []

    def respond(call: Call) -> Answer:
        asked.append(json.loads(call.body))
        return stream(
            ("delta", {"text": "One moment."}),
            ("done", {"route": {"agent": "billing", "message": "Refund it"}}),
        )

    config = {
        "endpoint": serve(respond).url,
        "routes": [{"agent": "billing", "description": "Knows invoices."}],
        "can_respond": False,
    }
    result = await bench.done(runner, "one", ASKED, config=config)

    assert result.output == {
        "action": "route_to_agent",
        "agent": "billing",
        "message": "Refund it",
        "text": "One moment.",
    }
    assert (asked[0]["routes"], asked[0]["can_respond"]) == (config["routes"], False)


@pytest.mark.parametrize("route", ["billing", {"message": "x"}, {"agent": "b", "message": 3}])
async def test_agent_elsewhere_whose_route_is_none_has_not_answered(
    bench: Bench, runner: Runner, serve: Serve, route: Any
) -> None:
    server = serve(lambda _: stream(("done", {"final_message": "", "route": route})))
    result = await ask(bench, runner, server)

    assert result.error is not None
    assert result.error.code == "agent_answer_invalid"
