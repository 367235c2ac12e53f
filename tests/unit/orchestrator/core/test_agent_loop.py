"""The agent loop: a turn, the tools that it asks for, the next turn, at last an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.contracts.facts import ChatMessage, DefinitionKind, RunStatus
from penstock.contracts.plan import CompiledTool
from penstock.contracts.structs import convert, plain
from penstock.contracts.usage import RunLimits
from tests.support.simulation import (
    NEVER,
    Driver,
    agent_node,
    make_agent,
    make_plan,
    make_tool,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)

SECRET = make_tool(
    "look",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "key": {"type": "string"}, "unit": {}},
        "required": ["city", "key", "unit"],
    },
    sources={
        "key": {"source": "system", "value": "{{ run.tenant }}-key"},
        "unit": {"source": "default", "value": "metre"},
    },
)


def start(
    *,
    tools: tuple[CompiledTool, ...] = (make_tool("add"), SECRET),
    agent: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    **invoked: Any,
) -> Driver:
    names = tuple(tool.name for tool in tools)
    writer = make_agent(**{"tools": names, **(agent or {})})
    made = make_plan(
        agent_node("a"),
        agents=[writer],
        tools=tools,
        **{"kind": DefinitionKind.AGENT, **(plan or {})},
    )
    return Driver(made, **{"input": "How much?", **invoked}).start()


def messages(driver: Driver, step_id: str, attempt: int = 1) -> list[dict[str, Any]]:
    given = driver.fact(step_id, attempt).input
    assert isinstance(given, dict)
    found = given["messages"]
    assert isinstance(found, list)
    return [plain(convert(ChatMessage, message)) for message in found]


def config(driver: Driver, step_id: str = "a-1") -> dict[str, Any]:
    found = driver.fact(step_id).config
    assert isinstance(found, dict)
    return found


def test_agent_that_responds_at_once_ends_the_run() -> None:
    driver = start()

    driver.result("a-1", responds("42"))

    assert driver.scheduled == ["a-1.1"]
    assert driver.end.status is RunStatus.DONE
    assert driver.end.output == {"text": "42"}


def test_agent_with_structured_output_gives_text_and_output() -> None:
    driver = start()

    driver.result("a-1", {**responds("see"), "output": {"sum": 3}})

    assert driver.end.output == {"text": "see", "output": {"sum": 3}}


def test_agent_loop_turn_parallel_tools_turn_respond() -> None:
    driver = start()

    driver.result("a-1", uses(("add", {"a": 1}), ("add", {"a": 2}), text="I add."))
    assert driver.running == {"a-1-0", "a-1-1"}
    assert driver.fact("a-1-1").input == {"a": 2}
    driver.result("a-1-1", {"sum": 2})
    assert driver.running == {"a-1-0"}
    driver.result("a-1-0", "one")
    assert driver.running == {"a-2"}
    driver.result("a-2", responds("3"))

    assert driver.end.output == {"text": "3"}
    assert driver.scheduled == ["a-1.1", "a-1-0.1", "a-1-1.1", "a-2.1"]


def test_agent_turn_is_given_the_whole_conversation() -> None:
    history = (
        ChatMessage(role="user", content="Hi"),
        ChatMessage(role="assistant", content="Yes?"),
    )
    driver = start(history=history)
    driver.result("a-1", uses(("add", {"a": 1}), ("add", {"a": 2}), text="I add."))
    driver.result("a-1-1", {"sum": 2}).result("a-1-0", "one")

    said = messages(driver, "a-2")

    assert [(message["role"], message["content"]) for message in said] == [
        ("user", "Hi"),
        ("assistant", "Yes?"),
        ("user", "How much?"),
        ("assistant", "I add."),
        ("tool", "one"),
        ("tool", '{"sum": 2}'),
    ]
    assert [call["id"] for call in said[3]["tool_calls"]] == ["call_0", "call_1"]
    assert [message["tool_call_id"] for message in said[4:]] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("Hello", "Hello"),
        ({"message": "Hello"}, "Hello"),
        ({"text": "Hello"}, "Hello"),
        ({"message": "Hello", "n": 1}, '{"message": "Hello", "n": 1}'),
        ({"größe": 1}, '{"größe": 1}'),
        (None, "null"),
    ],
)
def test_agent_input_becomes_the_users_message(given: Any, said: str) -> None:
    assert messages(start(input=given), "a-1")[-1] == {
        "role": "user",
        "content": said,
        "tool_calls": [],
        "tool_call_id": None,
    }


def test_agent_in_a_workflow_is_not_given_the_sessions_history() -> None:
    history = (ChatMessage(role="user", content="Hi"),)

    driver = start(history=history, plan={"kind": DefinitionKind.WORKFLOW})

    assert len(messages(driver, "a-1")) == 1


def test_agent_config_says_all_that_a_runner_needs() -> None:
    agent = {
        "instructions": "You serve {{ run.tenant }}.",
        "parameters": {"temperature": 0},
        "script": {"turns": []},
        "stream": False,
        "endpoint": "http://127.0.0.1:1",
    }
    driver = start(agent=agent, session_id="s1")

    found = config(driver)

    assert {key: value for key, value in found.items() if key != "tools"} == {
        "model": "scripted/test",
        "instructions": "You serve acme.",
        "parameters": {"temperature": 0},
        "script": {"turns": []},
        "stream": False,
        "endpoint": "http://127.0.0.1:1",
        "session_id": "s1",
        "turn": 1,
    }


# -- what an agent may do ------------------------------------------------------------------------


def test_agent_is_not_shown_what_the_system_provides() -> None:
    shown = {tool["name"]: tool["parameters"] for tool in config(start())["tools"]}

    assert set(shown["look"]["properties"]) == {"city", "unit"}
    assert shown["look"]["required"] == ["city"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"city": "Ulm"}, {"city": "Ulm", "key": "acme-key", "unit": "metre"}),
        (
            {"city": "Ulm", "key": "stolen", "unit": "foot"},
            {"city": "Ulm", "key": "acme-key", "unit": "foot"},
        ),
        (
            {"key": "{{ run.id }}", "city": "{{ run.id }}"},
            {"city": "{{ run.id }}", "key": "acme-key", "unit": "metre"},
        ),
    ],
)
def test_agent_cannot_override_system_parameters(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    driver = start()

    driver.result("a-1", uses(("look", given)))

    assert driver.fact("a-1-0").input == expected


def test_agent_call_of_a_tool_that_is_not_equipped_is_blocked_and_the_model_is_told() -> None:
    driver = start()

    driver.result("a-1", uses(("rm", {"path": "/"}), ("add", {})))
    assert driver.running == {"a-1-1"}
    decision = driver.fact("a-1-1").decision
    assert decision is not None
    assert [(call.step_id, call.tool) for call in decision.blocked] == [("a-1-0", "rm")]
    driver.result("a-1-1", 3)

    told = messages(driver, "a-2")[-2]
    assert told["tool_call_id"] == "call_0"
    assert json.loads(told["content"]) == {"error": "tool 'rm' is not equipped; allowed: add, look"}


def test_agent_whose_calls_are_all_blocked_gets_its_next_turn_at_once() -> None:
    driver = start(tools=())

    driver.result("a-1", uses(("rm", {}), ("add", {})))

    assert driver.running == {"a-2"}
    decision = driver.fact("a-2").decision
    assert decision is not None
    assert [call.step_id for call in decision.blocked] == ["a-1-0", "a-1-1"]


def test_agent_blocked_call_is_told_in_one_decision_only() -> None:
    driver = start()

    driver.result("a-1", uses(("rm", {}), ("add", {}), ("add", {})))
    driver.result("a-1-1", error=transient(), now=1).wake(2)
    driver.result("a-1-2", 1).result("a-1-1", 2, attempt=2)

    blocked = [
        call.step_id
        for entry in driver.log.entries
        for call in getattr(getattr(entry.fact, "decision", None), "blocked", ())
    ]
    assert driver.running == {"a-2"}
    assert blocked == ["a-1-0"]


def test_agent_equipped_with_a_tool_that_the_plan_lacks_cannot_call_it() -> None:
    plan = make_plan(agent_node("a"), agents=[make_agent(tools=())], tools=[make_tool("add")])
    driver = Driver(plan).start()

    driver.result("a-1", uses(("add", {})))

    assert driver.running == {"a-2"}


# -- failures ------------------------------------------------------------------------------------


def test_agent_is_told_of_a_tools_failure() -> None:
    driver = start()

    driver.result("a-1", uses(("add", {}), ("add", {})))
    driver.result("a-1-0", error=rejected()).result("a-1-1", 1)

    assert driver.ended is None
    assert json.loads(messages(driver, "a-2")[-2]["content"]) == {
        "error": "bad_arguments: no such city"
    }


def test_agent_tool_is_tried_again_before_the_model_is_told() -> None:
    driver = start()
    driver.result("a-1", uses(("add", {}), ("add", {})))

    driver.result("a-1-0", error=transient(), now=1)
    assert driver.running == {"a-1-1"}
    driver.wake(2).result("a-1-1", 1, now=2)
    assert driver.running == {"a-1-0"}
    driver.result("a-1-0", 7, attempt=2)

    assert messages(driver, "a-2")[-2]["content"] == "7"


def test_agent_is_told_once_all_attempts_of_a_tool_have_failed() -> None:
    driver = start()
    driver.result("a-1", uses(("add", {})))

    now = 1.0
    for attempt in (1, 2, 3):
        driver.result("a-1-0", error=transient(), attempt=attempt, now=now)
        now += 10
        driver.wake(now)

    assert driver.running == {"a-2"}
    assert json.loads(messages(driver, "a-2")[-1]["content"]) == {"error": "busy: try later"}


def test_agent_turn_is_tried_again_with_the_same_conversation() -> None:
    driver = start()

    driver.result("a-1", error=transient(), now=1).wake(2)

    assert driver.scheduled == ["a-1.1", "a-1.2"]
    assert messages(driver, "a-1", 2) == messages(driver, "a-1")


def test_agent_turn_that_failed_for_good_fails_the_run() -> None:
    driver = start(agent={"retry": NEVER})

    driver.result("a-1", error=transient())

    assert driver.end.status is RunStatus.FAILED
    assert driver.end.error is not None
    assert driver.end.error.code == "busy"


@pytest.mark.parametrize(
    ("planned", "asked", "turns"), [(3, None, 3), (3, 2, 2), (3, 9, 3), (1, None, 1)]
)
def test_agent_that_never_responds_fails_after_max_turns(
    planned: int, asked: int | None, turns: int
) -> None:
    driver = start(agent={"max_turns": planned}, limits=RunLimits(max_turns=asked))

    for turn in range(1, turns + 1):
        assert driver.ended is None
        driver.result(f"a-{turn}", uses(("add", {}))).result(f"a-{turn}-0", 1)

    assert driver.end.error is not None
    assert driver.end.error.code == "max_turns_exceeded"
    assert driver.scheduled[-1] == f"a-{turns}-0.1"


def test_agent_that_responds_in_its_last_turn_is_done() -> None:
    driver = start(agent={"max_turns": 2})

    driver.result("a-1", uses(("add", {}))).result("a-1-0", 1).result("a-2", responds())

    assert driver.end.status is RunStatus.DONE


@pytest.mark.parametrize(
    "output",
    [None, "text", {}, {"action": "use_tools", "calls": []}, {"action": "respond", "text": 7}],
)
def test_agent_turn_with_no_valid_action_fails_the_run(output: Any) -> None:
    driver = start()

    driver.result("a-1", output)

    assert driver.end.error is not None
    assert driver.end.error.code == "invalid_action"


def test_agent_instructions_that_cannot_be_rendered_fail_the_run() -> None:
    driver = start(agent={"instructions": "{{ input.name.first }}"})

    assert driver.end.error is not None
    assert driver.end.error.code == "template_unresolved"


def test_agent_output_is_seen_by_the_nodes_that_need_it() -> None:
    plan = make_plan(
        agent_node("a"), tool_node("b", "a", input={"text": "{{ steps.a.output.text }}"})
    )
    driver = Driver(plan).start()

    driver.result("a-1", uses(("add", {}))).result("a-1-0", 1).result("a-2", responds("so"))

    assert driver.fact("b").input == {"text": "so"}
