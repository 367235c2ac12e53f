"""Plans: canonical bytes, digests, and who needs whom."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penstock.contracts.plan import (
    PLAN,
    CompiledTool,
    RetryPolicy,
    ToolNode,
)
from tests.support.simulation import agent_node, make_plan, tool_node


def test_plan_of_the_same_content_has_the_same_digest() -> None:
    first, second = make_plan(tool_node("a")), make_plan(tool_node("a"))

    assert first.to_bytes() == second.to_bytes()
    assert first.digest() == second.digest()
    assert make_plan(tool_node("b")).digest() != first.digest()


def test_plan_read_from_its_bytes_is_itself() -> None:
    plan = make_plan(tool_node("a"), agent_node("b", "a"), output="{{ steps.b.output }}")

    assert PLAN.validate_json(plan.to_bytes()) == plan


def test_plan_successors_are_the_nodes_that_need_a_node() -> None:
    plan = make_plan(tool_node("a"), tool_node("b", "a"), tool_node("c", "a", "b"))

    assert {name: [node.id for node in nodes] for name, nodes in plan.successors.items()} == {
        "a": ["b", "c"],
        "b": ["c"],
        "c": [],
    }
    assert plan.by_id["c"].needs == ("a", "b")


@pytest.mark.parametrize("node_id", ["", "a-b", "1a", "a.b", "x" * 41])
def test_node_with_an_id_that_no_step_id_can_hold_is_refused(node_id: str) -> None:
    with pytest.raises(ValidationError):
        ToolNode(id=node_id, ref="add")


def test_tool_whose_queue_is_no_token_is_refused() -> None:
    with pytest.raises(ValidationError):
        CompiledTool(name="x", queue="a.b")


@pytest.mark.parametrize(
    "policy",
    [
        {"max_attempts": 0},
        {"factor": 0.5},
        {"jitter": 1.5},
        {"initial_seconds": -1},
        {"retry_on": ("sometimes",)},
    ],
)
def test_retry_policy_that_makes_no_sense_is_refused(policy: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy.model_validate(policy)
