"""Plans that arrive in bundles: what the compiler would have refused is found."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts.plan import PLAN, Plan
from penstock.runs.plan_checks import child_digests, plan_faults

TOOL = {"name": "add", "queue": "builtin"}
AGENT = {"name": "helper", "model": "openai/gpt-5-mini", "tools": ["add"]}
NODE: dict[str, Any] = {"id": "a", "kind": "tool", "ref": "add", "input": {"x": "{{ input.x }}"}}


def plan(*nodes: dict[str, Any], **fields: Any) -> Plan:
    content = {
        "name": "flow",
        "kind": "workflow",
        "nodes": nodes or [NODE],
        "agents": {"helper": AGENT},
        "tools": {"add": TOOL},
        **fields,
    }
    return PLAN.validate_python(content)


def test_plan_as_the_registry_compiles_it_has_no_faults() -> None:
    steps: list[dict[str, Any]] = [
        NODE,
        {"id": "b", "kind": "agent", "ref": "helper", "needs": ["a"], "when": "input.x > 1"},
        {
            "id": "c",
            "kind": "map",
            "over": "input.items",
            "body": {"name": "c", "nodes": [{**NODE, "id": "d"}], "output": "{{ item }}"},
        },
    ]
    assert list(plan_faults(plan(*steps))) == []


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        (plan({**NODE, "ref": "unknown"}), "nodes.a.ref"),
        (plan({"id": "a", "kind": "agent", "ref": "unknown"}), "nodes.a.ref"),
        (plan({**NODE, "needs": ["b"]}, {**NODE, "id": "b", "needs": ["a"]}), "nodes.a.needs"),
        (plan({**NODE, "needs": ["x"]}), "nodes.a.needs"),
        (plan(NODE, NODE), "nodes.a"),
        (plan({**NODE, "input": "{{ input. }}"}), "nodes.a.input"),
        (plan({**NODE, "when": "1 +"}), "nodes.a.when"),
        (plan({**NODE, "compensate": {**NODE, "id": "u", "ref": "x"}}), "nodes.a.compensate.ref"),
        (plan({"id": "a", "kind": "wait", "seconds": "{{ }}"}), "nodes.a.seconds"),
        (plan(NODE, output="{{ 1 + }}"), "nodes.output"),
        (plan(NODE, finally_=[{**NODE, "id": "f", "ref": "x"}]), "finally.f.ref"),
        (plan(NODE, correlation="{{ }}"), "correlation"),
        (plan(NODE, concurrency={"key": "1 +"}), "concurrency.key"),
        (plan(NODE, input_schema={"type": "nothing"}), "input_schema.type"),
        (plan(NODE, tools={"add": {**TOOL, "parameters": {"type": 3}}}), "tools.add.parameters"),
        (
            plan(NODE, agents={"helper": {**AGENT, "parameters": {"api_key": "sk-literal"}}}),
            "agents.helper.parameters.api_key",
        ),
        (plan(NODE, agents={"helper": {**AGENT, "model": "x"}}), "agents.helper.model"),
        (
            plan(NODE, agents={"helper": {**AGENT, "endpoint": "file:///x"}}),
            "agents.helper.endpoint",
        ),
        (plan(NODE, agents={"helper": {**AGENT, "tools": ["x"]}}), "agents.helper.tools"),
        (plan(NODE, agents={"helper": {**AGENT, "routes": ["x"]}}), "agents.helper.routes"),
    ],
)
def test_fault_of_a_plan_is_found_at_its_place(changed: Plan, path: str) -> None:
    faults = list(plan_faults(changed))

    assert faults
    assert faults[0].path.startswith(path), faults


def test_plans_of_child_runs_are_found_in_every_block() -> None:
    child = {"name": "other", "kind": "workflow", "version": 1, "plan_digest": "d" * 64}
    inner = {"id": "w", "kind": "workflow", "child": child}
    body = {"name": "m", "nodes": [inner]}

    found = child_digests(plan({"id": "m", "kind": "map", "over": "input", "body": body}))

    assert found == {"d" * 64}
