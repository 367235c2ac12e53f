"""Routes: tools of their own for the model, one action for the engine."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts.actions import Respond, RouteToAgent, UseTools
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import ChatMessage, ToolCall
from penstock_agent_runner.core.routes import (
    LONGEST,
    instructions_of,
    route_tool_name,
    route_tools,
    split_route,
)
from penstock_agent_runner.core.script import perform, read_script
from penstock_agent_runner.core.turn import AgentConfig, RouteSpec, ToolSpec, Turn

CONFIG = AgentConfig(
    model="openai/x",
    instructions="Be brief.",
    tools=(ToolSpec(name="add"), ToolSpec(name="transfer_to_bank")),
    routes=(RouteSpec(agent="billing", description="Knows invoices."), RouteSpec(agent="desk")),
)
USER = ChatMessage(role="user", content="Refund A-17")


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id=name, name=name, arguments=arguments)


def test_route_is_shown_as_a_tool_with_a_message() -> None:
    first, second = route_tools(CONFIG.routes)

    assert (first.name, second.name) == ("transfer_to_billing", "transfer_to_desk")
    assert first.description == "Hand the conversation over to billing. Knows invoices."
    assert first.parameters["required"] == ["message"]


def test_route_to_an_agent_of_a_long_name_has_a_name_that_providers_take() -> None:
    names = {route_tool_name(f"{'a' * 60}{end}") for end in "bc"}

    assert len(names) == 2
    assert {len(name) for name in names} == {LONGEST}


def test_call_of_a_route_is_a_wish_to_hand_over() -> None:
    calls, route = split_route(CONFIG, (call("transfer_to_billing", message="Refund"),), "I ask.")

    assert calls == ()
    assert route == RouteToAgent(agent="billing", message="Refund", text="I ask.")


def test_call_of_a_long_named_route_is_found_by_its_tool() -> None:
    agent = "a" * 64
    config = AgentConfig(model="m", routes=(RouteSpec(agent=agent),))

    _, route = split_route(config, (call(route_tool_name(agent), message="x"),), "")

    assert route is not None
    assert route.agent == agent


def test_route_to_nobody_known_is_left_for_the_engine_to_block() -> None:
    _, route = split_route(CONFIG, (call("transfer_to_moon"),), "")

    assert route == RouteToAgent(agent="moon")


def test_tool_in_the_form_of_a_route_stays_a_tool() -> None:
    asked = (call("transfer_to_bank", amount=3),)

    assert split_route(CONFIG, asked, "") == (asked, None)


def test_calls_without_routes_are_left_alone() -> None:
    asked = (call("transfer_to_billing"),)

    assert split_route(AgentConfig(model="m"), asked, "") == (asked, None)


def test_tools_are_called_before_the_conversation_is_handed_over() -> None:
    calls, route = split_route(
        CONFIG, (call("transfer_to_desk", message="x"), call("add", a=1)), "text"
    )

    assert Turn(text="text", calls=calls, route=route).action() == UseTools(
        text="text", calls=(call("add", a=1),)
    )


def test_first_of_several_routes_is_taken() -> None:
    _, route = split_route(CONFIG, (call("transfer_to_desk"), call("transfer_to_billing")), "")

    assert route is not None
    assert route.agent == "desk"


def test_agent_that_cannot_respond_is_told_so() -> None:
    mute = CONFIG.model_copy(update={"can_respond": False})

    assert instructions_of(CONFIG) == "Be brief."
    assert instructions_of(mute).startswith("Be brief.\n\nYou cannot answer the user yourself")
    assert "transfer_to_billing, transfer_to_desk" in instructions_of(mute)


SCRIPT: Any = {
    "turns": [
        {"text": "Who knows?", "route": {"agent": "billing", "message": "{{ input }}"}},
        {"text": "Thanks."},
    ]
}


def play(own_turn: int | None, *messages: ChatMessage, script: Any = SCRIPT) -> Any:
    return perform(read_script(script), "scripted/x", messages, own_turn).turn.action()


def test_scripted_turn_hands_over_with_a_rendered_message() -> None:
    assert play(None, USER) == RouteToAgent(
        agent="billing", message="Refund A-17", text="Who knows?"
    )


def test_script_goes_by_the_turns_of_its_own_agent() -> None:
    others = tuple(ChatMessage(role="assistant", content="...") for _ in range(5))

    assert play(1, USER, *others).action == "route_to_agent"
    assert play(2, USER) == Respond(text="Thanks.")


def test_script_that_ends_with_a_route_has_no_further_turn() -> None:
    with pytest.raises(RejectedError) as caught:
        play(2, USER, script={"turns": SCRIPT["turns"][:1]})
    assert caught.value.code == "script_ended"
