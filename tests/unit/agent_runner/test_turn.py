"""Turns: configuration, conversation, tool calls in pieces, events of a stream."""

from __future__ import annotations

import pytest

from penstock.contracts.errors import RejectedError, TransientError
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock_agent_runner.core.turn import (
    CallCollector,
    ToolSpec,
    chat_messages,
    chat_tools,
    read_config,
)


def test_config_is_read_and_what_it_does_not_know_is_ignored() -> None:
    config = read_config({"model": "openai/x", "tools": [{"name": "a"}], "later": 1})
    assert (config.model, config.stream, config.tools[0].name) == ("openai/x", True, "a")


@pytest.mark.parametrize("config", [None, {}, {"model": 3}, {"model": "a", "tools": [{}]}])
def test_config_that_is_none_is_rejected(config: object) -> None:
    with pytest.raises(RejectedError) as caught:
        read_config(config)  # type: ignore[arg-type]
    assert caught.value.code == "invalid_agent"


def test_conversation_takes_the_shape_of_chat_completions() -> None:
    call = ToolCall(id="c", name="add", arguments={"a": "ü"})
    messages = (
        ChatMessage(role="user", content="hi"),
        ChatMessage(role="assistant", tool_calls=(call,)),
        ChatMessage(role="tool", content="1", tool_call_id="c"),
    )
    assert chat_messages("Be brief.", messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": "ü"}'},
                }
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c"},
    ]
    assert chat_tools((ToolSpec(name="a", description="b", parameters={"c": 1}),)) == [
        {"type": "function", "function": {"name": "a", "description": "b", "parameters": {"c": 1}}}
    ]


def test_calls_are_put_together_from_pieces() -> None:
    calls = CallCollector()
    calls.add(1, call_id="b", name="second", arguments="")
    calls.add(0, call_id="a", name="first", arguments='{"x"')
    calls.add(0, call_id=None, name=None, arguments=": 1}")
    assert calls.calls() == (
        ToolCall(id="a", name="first", arguments={"x": 1}),
        ToolCall(id="b", name="second", arguments={}),
    )


def test_call_without_an_id_gets_one() -> None:
    calls = CallCollector()
    calls.add(0, call_id=None, name="a", arguments="{}")
    assert calls.calls()[0].id == "call_0"


@pytest.mark.parametrize(("name", "arguments"), [("a", "{"), ("a", "[1]"), ("", "{}")])
def test_broken_call_is_transient(name: str, arguments: str) -> None:
    calls = CallCollector()
    calls.add(0, call_id="c", name=name, arguments=arguments)
    with pytest.raises(TransientError) as caught:
        calls.calls()
    assert caught.value.code == "invalid_tool_call"
