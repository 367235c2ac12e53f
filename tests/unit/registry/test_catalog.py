from penstock.contracts.rpc import DocumentKind
from penstock_registry.core.catalog import Catalog, dependants, key_of
from tests.unit.registry.builders import (
    agent,
    document,
    tool,
    workflow,
)


def test_dependants_of_a_tool_are_agents_then_workflows() -> None:
    hook = document("Webhook", "push", {"target": "flow"})
    catalog = Catalog.of(
        [
            workflow({"id": "a", "agent": "helper"}),
            hook,
            agent(tools=["add"]),
            agent("other"),
            tool(),
            workflow({"id": "a", "tool": "sub", "input": {"a": 1, "b": 2}}, name="second"),
        ]
    )

    found = dependants(catalog, [(DocumentKind.TOOL, "add")])

    assert [key_of(one) for one in found] == [
        (DocumentKind.AGENT, "helper"),
        (DocumentKind.WORKFLOW, "flow"),
    ]
