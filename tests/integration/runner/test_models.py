"""Turns through the real LiteLLM, against a scripted server on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.contracts.actions import Respond, RouteToAgent, UseTools
from penstock.contracts.errors import RejectedError, TransientError
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock_agent_runner.core.turn import AgentConfig, RouteSpec, ToolSpec, Turn, TurnInput
from penstock_agent_runner.models import Request
from penstock_agent_runner.providers import ProviderModel
from tests.support.http_server import Answer, HttpServer
from tests.support.openai_server import (
    OpenAIServer,
    Reply,
    chunk,
    completion,
    failure,
    usage,
    usage_chunk,
)

# LiteLLM and what it imports warn of their own affairs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore:Item .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

KEY = "sk-canary-4711"


@pytest.fixture
def openai() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture(scope="module")
def model() -> ProviderModel:
    return ProviderModel(environment={"PENSTOCK_SECRET_OPENAI": KEY}, allow=["127.0.0.1"])


def request(server: OpenAIServer | HttpServer, **changes: Any) -> Request:
    parameters = changes.pop("parameters", {})
    messages = changes.pop("messages", (ChatMessage(role="user", content="How warm is Ulm?"),))
    config = AgentConfig(
        model=changes.pop("model", "openai/gpt-4o-mini"),
        instructions="Be brief.",
        parameters={
            "api_base": server.url,
            "api_key": {"secret": "OPENAI"},
            "temperature": 0,
            **parameters,
        },
        tools=(
            ToolSpec(name="weather", parameters={"type": "object", "properties": {"city": {}}}),
        ),
        **changes,
    )
    return Request(
        config=config,
        input=TurnInput(messages=messages),
        run_id="R",
        attempt=1,
        seconds=20.0,
        idempotency_key="R:a-1",
    )


async def ask(model: ProviderModel, asked: Request) -> tuple[Turn, list[str]]:
    pieces: list[str] = []

    async def emit(text: str) -> None:
        pieces.append(text)

    return await model.answer(asked, emit), pieces


async def test_streamed_answer_is_emitted_in_pieces_with_usage_and_cost(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    openai.script(
        Reply(
            chunks=[
                chunk("It is "),
                chunk("warm."),
                chunk(finish="stop"),
                usage_chunk(1000, 100),
            ]
        )
    )
    turn, pieces = await ask(model, request(openai))
    assert turn.action() == Respond(text="It is warm.")
    assert pieces == ["It is ", "warm."]
    assert turn.usage is not None
    assert (turn.usage.input_tokens, turn.usage.output_tokens) == (1000, 100)
    assert turn.usage.cost_usd == pytest.approx(1000 * 0.15e-6 + 100 * 0.6e-6)
    assert not turn.usage.unknown_price
    assert turn.usage.model_calls == 1
    sent = openai.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.body["stream_options"] == {"include_usage": True}
    assert sent.body["temperature"] == 0
    assert sent.body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent.body["tools"][0]["function"]["name"] == "weather"


async def test_streamed_tool_calls_are_put_together(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    def part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        name = more.pop("name", None)
        function = {"arguments": arguments} | ({"name": name} if name else {})
        return {"index": index, "function": function, **more}

    openai.script(
        Reply(
            chunks=[
                chunk(calls=[part(0, "", id="c1", type="function", name="weather")]),
                chunk(calls=[part(0, '{"ci')]),
                chunk(calls=[part(0, 'ty": "Ulm"}')]),
                chunk(
                    calls=[part(1, '{"city": "Bonn"}', id="c2", type="function", name="weather")]
                ),
                chunk(finish="tool_calls"),
                usage_chunk(10, 5),
            ]
        )
    )
    turn, pieces = await ask(model, request(openai))
    assert turn.action() == UseTools(
        calls=(
            ToolCall(id="c1", name="weather", arguments={"city": "Ulm"}),
            ToolCall(id="c2", name="weather", arguments={"city": "Bonn"}),
        )
    )
    assert pieces == []


async def test_tool_results_are_sent_back_in_the_provider_s_shape(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    openai.script(Reply(body=completion("21 degrees", usage=usage(1, 1))))
    messages = (
        ChatMessage(role="user", content="How warm?"),
        ChatMessage(
            role="assistant",
            tool_calls=(ToolCall(id="c1", name="weather", arguments={"city": "Ulm"}),),
        ),
        ChatMessage(role="tool", content="21", tool_call_id="c1"),
    )
    turn, pieces = await ask(model, request(openai, messages=messages, stream=False))
    assert turn.action() == Respond(text="21 degrees")
    assert pieces == []
    sent = openai.requests[0].body["messages"]
    assert sent[2]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city": "Ulm"}',
    }
    assert sent[3] == {"role": "tool", "content": "21", "tool_call_id": "c1"}
    assert "stream" not in openai.requests[0].body or not openai.requests[0].body["stream"]


async def test_unknown_model_has_an_unknown_price_not_a_price_of_zero(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    openai.script(Reply(chunks=[chunk("hi"), chunk(finish="stop"), usage_chunk(3, 1)]))
    turn, _ = await ask(model, request(openai, model="openai/our-own-model"))
    assert turn.usage is not None
    assert turn.usage.unknown_price
    assert turn.usage.cost_usd == 0.0


async def test_stream_without_usage_is_counted_by_ourselves(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    openai.script(Reply(chunks=[chunk("It is warm."), chunk(finish="stop")]))
    turn, _ = await ask(model, request(openai))
    assert turn.usage is not None
    assert turn.usage.input_tokens > 5
    assert turn.usage.output_tokens > 1
    assert turn.usage.cost_usd > 0


@pytest.mark.parametrize(
    ("status", "headers", "code", "after"),
    [
        (429, {"Retry-After": "7"}, "rate_limited", 7.0),
        (429, {}, "model_rate_limited", None),
        (500, {}, "model_unavailable", None),
        (503, {"Retry-After": "2"}, "model_unavailable", 2.0),
    ],
)
async def test_provider_s_passing_trouble_is_transient_and_not_retried_here(
    model: ProviderModel,
    openai: OpenAIServer,
    status: int,
    headers: dict[str, str],
    code: str,
    after: float | None,
) -> None:
    openai.script(Reply(status=status, headers=headers, body=failure("slow down")))
    openai.script(Reply(chunks=[chunk("never"), chunk(finish="stop")]))
    with pytest.raises(TransientError) as caught:
        await ask(model, request(openai))
    assert caught.value.code == code
    assert caught.value.retry_after_seconds == after
    assert len(openai.requests) == 1


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, "bad", "model_request_invalid"),
        (401, "no key", "model_unauthorized"),
        (404, "no such model", "model_not_found"),
        (
            400,
            "This model's maximum context length is 10 tokens",
            "context_window_exceeded",
        ),
    ],
)
async def test_provider_s_refusal_is_rejected(
    model: ProviderModel, openai: OpenAIServer, status: int, message: str, code: str
) -> None:
    openai.script(Reply(status=status, body=failure(message)))
    with pytest.raises(RejectedError) as caught:
        await ask(model, request(openai))
    assert caught.value.code == code
    assert KEY not in caught.value.message


async def test_key_that_a_provider_repeats_is_redacted(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    openai.script(Reply(status=401, body=failure(f"Incorrect API key provided: {KEY}")))
    with pytest.raises(RejectedError) as caught:
        await ask(model, request(openai))
    assert KEY not in caught.value.message
    assert "[redacted]" in caught.value.message


async def test_anthropic_model_streams_text_and_tool_calls(model: ProviderModel) -> None:
    events: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "model": "claude-haiku-4-5",
                "content": [],
                "stop_reason": None,
                "usage": {"input_tokens": 1000, "output_tokens": 1},
            },
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "Let me see."},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"city": "Ulm"}'},
        },
        {"type": "content_block_stop", "index": 1},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 100},
        },
        {"type": "message_stop"},
    ]
    raw = "".join(f"event: {item['type']}\ndata: {json.dumps(item)}\n\n" for item in events)
    answer = Answer(raw=raw.encode(), headers={"Content-Type": "text/event-stream"})
    with HttpServer(lambda _: answer) as server:
        asked = request(server, model="anthropic/claude-haiku-4-5")
        turn, pieces = await ask(model, asked)
    assert pieces == ["Let me see."]
    assert turn.action() == UseTools(
        text="Let me see.",
        calls=(ToolCall(id="t1", name="weather", arguments={"city": "Ulm"}),),
    )
    assert turn.usage is not None
    assert (turn.usage.input_tokens, turn.usage.output_tokens) == (1000, 100)
    assert turn.usage.cost_usd > 0
    assert server.calls[0].headers["x-api-key"] == KEY


async def test_ollama_model_costs_nothing_and_that_is_known(model: ProviderModel) -> None:
    common = {"model": "llama3", "created_at": "2026-01-01T00:00:00.000000Z"}
    lines: list[dict[str, Any]] = [
        {**common, "message": {"role": "assistant", "content": "Hello"}, "done": False},
        {
            **common,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 26,
            "eval_count": 2,
        },
    ]
    raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
    answer = Answer(raw=raw, headers={"Content-Type": "application/x-ndjson"})
    with HttpServer(lambda _: answer) as server:
        turn, pieces = await ask(model, request(server, model="ollama_chat/llama3"))
    assert (turn.text, pieces) == ("Hello", ["Hello"])
    assert turn.usage is not None
    assert (turn.usage.input_tokens, turn.usage.output_tokens) == (26, 2)
    assert (turn.usage.cost_usd, turn.usage.unknown_price) == (0.0, False)


async def test_malformed_answer_is_transient(model: ProviderModel, openai: OpenAIServer) -> None:
    openai.script(Reply(chunks=["data: {not json\n\n"]))
    with pytest.raises(TransientError):
        await ask(model, request(openai))


async def test_error_contains_no_traceback_of_a_library(model: ProviderModel) -> None:
    answer = Answer(raw=b"{not json", headers={"Content-Type": "application/json"})
    with HttpServer(lambda _: answer) as server:
        asked = request(server, model="ollama_chat/llama3", stream=False)
        with pytest.raises(TransientError) as caught:
            await ask(model, asked)
    assert "Expecting property name" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert "site-packages" not in caught.value.message


async def test_malformed_tool_arguments_are_transient(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    broken = {"index": 0, "id": "c", "function": {"name": "weather", "arguments": '{"ci'}}
    openai.script(Reply(chunks=[chunk(calls=[broken]), chunk(finish="tool_calls")]))
    with pytest.raises(TransientError) as caught:
        await ask(model, request(openai))
    assert caught.value.code == "invalid_tool_call"


async def test_unreachable_provider_is_transient(model: ProviderModel) -> None:
    with OpenAIServer() as gone:
        asked = request(gone)
    with pytest.raises(TransientError) as caught:
        await ask(model, asked)
    assert caught.value.code in ("model_unreachable", "model_unavailable")


async def test_key_of_the_environment_does_not_go_to_another_address(
    model: ProviderModel, openai: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-house")
    openai.script(Reply(chunks=[chunk("hi"), chunk(finish="stop"), usage_chunk(1, 1)]))
    await ask(model, request(openai, parameters={"api_key": None}))
    assert "sk-of-the-house" not in str(openai.requests[0].headers)


@pytest.mark.parametrize("name", ["num_retries", "fallbacks", "mock_response"])
async def test_parameter_that_is_not_the_agent_s_is_rejected(
    model: ProviderModel, openai: OpenAIServer, name: str
) -> None:
    with pytest.raises(RejectedError) as caught:
        await ask(model, request(openai, parameters={name: 3}))
    assert name in caught.value.message
    assert openai.requests == []


def test_process_start_does_not_import_litellm() -> None:
    script = (
        "import sys\n"
        "from penstock_agent_runner.main import build_runner\n"
        "from penstock_agent_runner.settings import AgentRunnerSettings\n"
        "build_runner(AgentRunnerSettings())\n"
        "heavy = {'litellm', 'openai', 'httpx', 'fastapi', 'sqlalchemy', 'faststream'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


async def test_routes_are_tools_of_the_request_and_their_call_is_a_route(
    model: ProviderModel, openai: OpenAIServer
) -> None:
    part = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "transfer_to_billing", "arguments": '{"message": "Refund it"}'},
    }
    openai.script(Reply(chunks=[chunk("I ask."), chunk(calls=[part]), chunk(finish="tool_calls")]))
    routes = (RouteSpec(agent="billing", description="Knows invoices."),)
    turn, _ = await ask(model, request(openai, routes=routes, can_respond=False))

    assert turn.action() == RouteToAgent(agent="billing", message="Refund it", text="I ask.")
    sent = openai.requests[0].body
    assert [tool["function"]["name"] for tool in sent["tools"]] == [
        "weather",
        "transfer_to_billing",
    ]
    assert "transfer_to_billing" in sent["messages"][0]["content"]
