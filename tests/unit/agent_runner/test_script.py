"""The scripted model."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts.actions import Respond, UseTools
from penstock.contracts.errors import ErrorFamily, RejectedError, TransientError
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock_agent_runner.core.script import perform, read_script
from penstock_agent_runner.core.turn import AgentConfig, TurnInput
from penstock_agent_runner.models import Request
from penstock_agent_runner.scripted import ScriptedModel

USER = ChatMessage(role="user", content="What is 6 times 7?")
CALLS = ChatMessage(
    role="assistant", tool_calls=(ToolCall(id="call_1_0", name="multiply", arguments={"a": 6}),)
)
RESULT = ChatMessage(role="tool", content="42", tool_call_id="call_1_0")
SCRIPT: Any = {
    "turns": [
        {
            "text": "Let me see.",
            "tool_calls": [{"name": "multiply", "arguments": {"a": 6, "b": 7, "q": "{{ input }}"}}],
        },
        {"text": "It is {{ tools[0] }}."},
    ]
}


def play(script: Any, *messages: ChatMessage) -> Any:
    return perform(read_script(script), "scripted/demo", messages)


def test_first_turn_calls_tools_and_the_next_uses_their_results() -> None:
    first = play(SCRIPT, USER).turn
    assert first.action() == UseTools(
        text="Let me see.",
        calls=(
            ToolCall(
                id="call_1_0",
                name="multiply",
                arguments={"a": 6, "b": 7, "q": "What is 6 times 7?"},
            ),
        ),
    )
    assert play(SCRIPT, USER, CALLS, RESULT).turn.action() == Respond(text="It is 42.")


def test_same_conversation_gives_the_same_answer() -> None:
    assert play(SCRIPT, USER, CALLS, RESULT) == play(SCRIPT, USER, CALLS, RESULT)


def test_earlier_messages_of_a_session_do_not_count() -> None:
    told = (ChatMessage(role="user", content="Hi"), ChatMessage(role="assistant", content="Hello"))
    assert play(SCRIPT, *told, USER).turn.calls != ()
    assert play(SCRIPT, *told, USER, CALLS, RESULT).turn.text == "It is 42."


def test_last_turn_is_repeated_unless_it_calls_tools() -> None:
    answered = ChatMessage(role="assistant", content="It is 42.")
    assert play(SCRIPT, USER, CALLS, RESULT, answered).turn.text == "It is 42."
    with pytest.raises(RejectedError) as caught:
        play({"turns": SCRIPT["turns"][:1]}, USER, CALLS, RESULT)
    assert caught.value.code == "script_ended"


def test_tool_results_are_values_where_they_are_json() -> None:
    result = ChatMessage(role="tool", content='{"sum": [1, 2]}', tool_call_id="x")
    script = {"turns": [{"text": "a"}, {"text": "{{ tools[0].sum[1] }} of {{ tools[0] }}"}]}
    turn = play(script, USER, CALLS, result).turn
    assert turn.text == '2 of {"sum": [1, 2]}'


def test_without_a_script_it_says_what_it_was_told() -> None:
    assert play(None, USER).turn.text == "What is 6 times 7?"


def test_words_are_the_pieces_unless_others_are_given() -> None:
    assert play({"turns": [{"text": "It is  42.\n"}]}, USER).pieces == ("It ", "is  ", "42.\n")
    given = play({"turns": [{"deltas": ["a", "b{{ input }}"]}]}, USER)
    assert given.pieces == ("a", "bWhat is 6 times 7?")
    assert given.turn.text == "abWhat is 6 times 7?"


def test_usage_is_counted_in_words_and_costs_nothing() -> None:
    usage = play({"turns": [{"text": "a b c"}]}, USER).turn.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cost_usd) == (5, 3, 0.0)
    assert (usage.unknown_price, usage.model_calls) == (False, 1)


@pytest.mark.parametrize(
    "script", [{}, {"turns": []}, {"turns": [{"text": 1}]}, {"turns": [{"delay_seconds": -1}]}, 3]
)
def test_script_that_is_none_is_rejected(script: Any) -> None:
    with pytest.raises(RejectedError) as caught:
        read_script(script)
    assert caught.value.code == "invalid_script"
    assert caught.value.details[0].path.startswith("script")


def request(script: Any, *, attempt: int = 1, stream: bool = True) -> Request:
    return Request(
        config=AgentConfig(model="scripted/x", script=script, stream=stream),
        input=TurnInput(messages=(USER,)),
        run_id="R",
        attempt=attempt,
        seconds=5.0,
        idempotency_key="R:a",
    )


async def answer(asked: Request) -> tuple[Any, list[str]]:
    pieces: list[str] = []

    async def emit(text: str) -> None:
        pieces.append(text)

    return await ScriptedModel().answer(asked, emit), pieces


async def test_pieces_are_emitted_if_the_agent_streams() -> None:
    script = {"turns": [{"deltas": ["a", "b"]}]}
    turn, pieces = await answer(request(script))
    assert (turn.text, pieces) == ("ab", ["a", "b"])
    turn, pieces = await answer(request(script, stream=False))
    assert (turn.text, pieces) == ("ab", [])


async def test_scripted_error_has_its_family_and_its_attempts() -> None:
    error = {"code": "busy", "family": "transient", "retry_after_seconds": 2, "attempts": 1}
    script = {"turns": [{"text": "better", "error": error}]}
    with pytest.raises(TransientError) as caught:
        await answer(request(script))
    assert (caught.value.code, caught.value.retry_after_seconds) == ("busy", 2.0)
    turn, _ = await answer(request(script, attempt=2))
    assert turn.text == "better"
    lasting = {"turns": [{"error": {"code": "no", "family": "rejected"}}]}
    with pytest.raises(RejectedError) as refused:
        await answer(request(lasting, attempt=9))
    assert refused.value.family is ErrorFamily.REJECTED
