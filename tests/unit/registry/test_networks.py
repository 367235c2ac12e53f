from typing import Any

import pytest

from penstock.contracts.plan import PLAN
from tests.unit.registry.builders import agent, compiled, document, faults_of, tool


def network(*members: dict[str, Any], entry: str = "a", **spec: Any) -> Any:
    return document("Network", "net", {"entry": entry, "agents": list(members), **spec})


def member(name: str, *routes: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "spec": {"model": "scripted/x"}, "routes": list(routes), **more}


def test_network_compiles_to_one_conversation() -> None:
    net = network(
        member("a", "b", description="leads"),
        {
            "name": "b",
            "agent": "helper",
            "responds_to": "caller",
            "tools": [
                {"name": "plus", "tool": "add", "sources": {"b": {"source": "system", "value": 2}}},
                {"name": "add"},
            ],
        },
        policy={"max_turns": 4},
        limits={"max_turns": 9, "max_steps": 20},
    )

    plan = PLAN.validate_json(compiled(net, agent(), tool()).body)

    assert [(node.id, node.kind, getattr(node, "ref", None)) for node in plan.nodes] == [
        ("network", "agent", "a")
    ]
    assert plan.agents["a"].routes == ("b",)
    assert plan.agents["a"].description == "leads"
    assert plan.agents["b"].responds_to == "caller"
    assert plan.agents["b"].tools == ("plus", "add")
    assert plan.agents["b"].overrides["plus"].name == "add"
    assert plan.agents["b"].overrides["plus"].sources["b"].value == 2
    assert set(plan.tools) == {"add"}
    assert (plan.limits.max_turns, plan.limits.max_steps) == (4, 20)


@pytest.mark.parametrize(
    ("members", "spec", "path", "message"),
    [
        ([member("a", "x")], {}, "agents[0].routes[0]", "there is no agent 'x'"),
        ([member("a", "a")], {}, "agents[0].routes[0]", "an agent cannot route to itself"),
        ([member("a"), member("b")], {}, "agents[1]", "no way leads from 'a' to 'b'"),
        ([member("a", "b"), member("b", "a")], {}, "policy.cycles", "routes lead in a circle"),
        ([member("a", "b"), member("b", "a")], {"policy": {"cycles": "allow"}}, "policy",
         "nothing bounds the circle"),
        ([member("a")], {"entry": "z"}, "entry", "there is no agent 'z'"),
        ([member("a", responds_to="caller")], {}, "agents", "no agent answers the user"),
        ([member("a", responds_to="nobody"), ], {}, "agents[0].routes", "it may neither answer"),
        ([member("a", tools=[{"name": "zzz"}])], {}, "agents[0].tools[0].name", "there is no tool"),
        ([member("a", tools=[{"name": "add", "sources": {"q": {"value": 1}}}])], {},
         "agents[0].tools[0].sources.q", "there is no parameter"),
        ([{"name": "a"}], {}, "agents[0].name", "there is no agent 'a'"),
        ([member("a", agent="helper")], {}, "agents[0]", "has agent and spec"),
        ([{"name": "a", "spec": {}}], {}, "agents[0].spec", "has none of these"),
    ],
)  # fmt: skip
def test_wrong_network_is_refused_at_its_place(
    members: list[dict[str, Any]], spec: dict[str, Any], path: str, message: str
) -> None:
    faults = faults_of(network(*members, **spec), agent(), tool())

    assert any(
        fault.path == f"spec.{path}" and fault.message.startswith(message) for fault in faults
    ), faults


def test_agents_of_a_network_that_differ_in_case_alone_are_refused() -> None:
    faults = faults_of(network(member("a", "A"), member("A")))

    assert "spec.agents[1].name" in [fault.path for fault in faults]


def test_circle_with_a_bound_is_allowed() -> None:
    policy = {"cycles": "allow", "max_steps": 10}

    assert compiled(network(member("a", "b"), member("b", "a"), policy=policy)).digest
