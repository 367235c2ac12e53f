import json
from typing import Any

import pytest

from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.plan import PLAN
from penstock.contracts.runners import WebhookRecord
from penstock_registry.core.compiler import MAX_PLAN_BYTES
from tests.unit.registry.builders import (
    NUMBERS,
    agent,
    compiled,
    document,
    tool,
    workflow,
)


def test_agent_compiles_to_one_node_with_its_tools() -> None:
    plan = PLAN.validate_json(compiled(agent(tools=["add"], max_turns=3), tool()).body)

    assert plan.kind is DefinitionKind.AGENT
    assert [(node.kind, getattr(node, "ref", None), node.input) for node in plan.nodes] == [
        ("agent", "helper", "{{ input }}")
    ]
    assert plan.agents["helper"].max_turns == 3
    assert plan.tools["add"].queue == "builtin"
    assert plan.tools["add"].parameters == NUMBERS


def test_agent_with_endpoint_compiles_without_model() -> None:
    target = document("Agent", "web", {"endpoint": "http://localhost:9000/"})

    plan = PLAN.validate_json(compiled(target).body)

    assert plan.agents["web"].endpoint == "http://localhost:9000"
    assert plan.agents["web"].model == "http/web"


def test_workflow_carries_agents_tools_and_tools_of_agents() -> None:
    flow = workflow(
        {"id": "first", "tool": "add", "input": {"a": 1, "b": "{{ input.b }}"}},
        {"id": "second", "agent": "helper", "input": "{{ steps.first.output }}"},
        {"id": "third", "agent": "helper", "depends_on": []},
        {"id": "fourth", "tool": "echo", "depends_on": ["second", "third"]},
        output={"sum": "{{ steps.first.output }}"},
    )
    echo = tool("echo", runner={"queue": "mine"}, builtin=None, parameters={"type": "object"})

    plan = PLAN.validate_json(
        compiled(flow, echo, tool(), tool("hidden"), agent(tools=["hidden"])).body
    )

    assert [node.needs for node in plan.nodes] == [(), ("first",), (), ("second", "third")]
    assert [node.input for node in plan.nodes] == [
        {"a": 1, "b": "{{ input.b }}"},
        "{{ steps.first.output }}",
        "{{ input }}",
        None,
    ]
    assert set(plan.agents) == {"helper"}
    assert {name: found.queue for name, found in plan.tools.items()} == {
        "add": "builtin",
        "echo": "mine",
        "hidden": "builtin",
    }


def test_plan_of_the_same_documents_has_the_same_digest() -> None:
    flow = workflow(
        {"id": "x", "agent": "helper"}, {"id": "y", "tool": "add", "input": {"a": 1, "b": 2}}
    )

    one = compiled(flow, tool(), tool("sub"), agent(tools=["sub", "add"]))
    other = compiled(flow, agent(tools=["sub", "add"]), tool("sub"), tool(), tool("unrelated"))

    assert one.digest == other.digest
    assert PLAN.validate_json(one.body).digest() == one.digest


def test_plan_of_a_changed_tool_has_another_digest() -> None:
    target = agent(tools=["add"])

    before = compiled(target, tool())
    after = compiled(target, tool(timeout_seconds=5))

    assert before.digest != after.digest


def test_http_tool_carries_its_request_and_schema() -> None:
    target = document(
        "Tool",
        "weather",
        {
            "http": {
                "url": "https://api.example/{{ arguments.city }}",
                "headers": {"authorization": {"secret": "WEATHER", "prefix": "Bearer "}},
                "json": {"q": "{{ arguments.city }}"},
                "method": "POST",
            },
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    )

    found = json.loads(compiled(target).body)

    assert found["queue"] == "http"
    assert found["config"]["http"]["json"] == {"q": "{{ arguments.city }}"}
    assert found["config"]["http"]["headers"]["authorization"]["secret"] == "WEATHER"
    assert found["config"]["parameters"]["properties"] == {"city": {"type": "string"}}
    assert "queue" not in found["config"]["http"]


def test_scripted_agent_carries_its_turns() -> None:
    target = agent(
        model="scripted/demo",
        script={
            "turns": [{"tool_calls": [{"name": "add", "arguments": {"a": 1}}]}, {"text": "ok"}]
        },
    )

    plan = PLAN.validate_json(compiled(target).body)

    script: Any = plan.agents["helper"].script
    assert script["turns"][0]["tool_calls"][0]["arguments"] == {"a": 1}
    assert script["turns"][1]["text"] == "ok"


def test_webhook_compiles_to_its_record() -> None:
    target = document("Webhook", "push", {"target": "helper", "secrets": ["GITHUB"]})

    record = WebhookRecord.model_validate_json(compiled(target, agent()).body)

    assert (record.target, record.secrets, record.input) == ("helper", ("GITHUB",), "{{ payload }}")


def test_plan_that_is_too_large_for_a_message_is_refused() -> None:
    target = agent(instructions="x" * (MAX_PLAN_BYTES + 1))

    with pytest.raises(RejectedError) as caught:
        compiled(target)

    assert caught.value.code == "plan_too_large"
