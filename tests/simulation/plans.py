"""Random plans: whatever the plan language can say, drawn from the seed.

One method for each kind of node; a world asks for the kinds that it wants. Deadlines are short,
so that a healthy installation ends every plan within minutes of virtual time.
"""

from __future__ import annotations

from random import Random
from typing import Any

from penstock.contracts.facts import DefinitionKind
from penstock.contracts.plan import CompiledAgent, CompiledTool, Node, Plan, RetryPolicy

TOOLS = ("add", "look")
NOT_EQUIPPED = "rm"
STEP_SECONDS = 8.0
QUEUES = (("tool", "builtin"), ("agent", "default"))


class PlanMaker:
    """Draws plans."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._made = 0

    def plan(self, name: str) -> Plan:
        """Draw a plan."""
        random = self.random
        self._made = 0
        tools = [
            self._tool("add"),
            self._tool("look", sources={"key": {"source": "system", "value": "{{ run.tenant }}"}}),
        ]
        agents = [self._agent("writer")]
        return Plan(
            name=name,
            kind=DefinitionKind.WORKFLOW,
            nodes=tuple(self.block(random.choice([1, 2, 3, 5, 8]))),
            agents={agent.name: agent for agent in agents},
            tools={tool.name: tool for tool in tools},
            timeout_seconds=random.choice([5.0, 40.0, 3600.0, 3600.0]),
        )

    def block(self, size: int) -> list[Node]:
        """Draw nodes that need one another."""
        random = self.random
        nodes: list[Node] = []
        for _ in range(size):
            earlier = [node.id for node in nodes]
            needs = random.sample(earlier, min(len(earlier), random.choice([0, 1, 1, 2])))
            nodes.append(self.node(needs))
        return nodes

    def node(self, needs: list[str]) -> Node:
        """Draw one node."""
        self._made += 1
        node_id = f"n{self._made}"
        if self.random.random() < 0.5:
            return self._agent_node(node_id, needs)
        return self._tool_node(node_id, needs)

    def _tool_node(self, node_id: str, needs: list[str]) -> Node:
        given: dict[str, Any] = {"city": "{{ input.city }}"}
        if self.random.random() < 0.5:
            given |= {f"from_{need}": f"{{{{ steps.{need}.output }}}}" for need in needs}
        return Node(
            id=node_id,
            kind="tool",
            ref=self.random.choice(TOOLS),
            needs=tuple(needs),
            input=given,
            **self._options(),
        )

    def _agent_node(self, node_id: str, needs: list[str]) -> Node:
        return Node(
            id=node_id,
            kind="agent",
            ref="writer",
            needs=tuple(needs),
            input="{{ input }}",
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        random = self.random
        options: dict[str, Any] = {}
        if random.random() < 0.2:
            options["retry"] = self._retry()
        if random.random() < 0.2:
            options["timeout_seconds"] = random.choice([1.0, 3.0])
        return options

    def _retry(self) -> RetryPolicy:
        random = self.random
        return RetryPolicy(
            max_attempts=random.choice([1, 3, 3, 5]),
            initial_seconds=random.choice([0.0, 0.2, 2.0]),
            factor=2.0,
            max_seconds=10.0,
            jitter=random.choice([0.0, 0.1]),
        )

    def _tool(self, name: str, **changes: Any) -> CompiledTool:
        return CompiledTool(
            **{
                "name": name,
                "queue": "builtin",
                "retry": self._retry(),
                "timeout_seconds": STEP_SECONDS,
                **changes,
            }
        )

    def _agent(self, name: str, **changes: Any) -> CompiledAgent:
        return CompiledAgent(
            **{
                "name": name,
                "model": "scripted/test",
                "tools": TOOLS,
                "retry": self._retry(),
                "timeout_seconds": STEP_SECONDS,
                "max_turns": self.random.choice([1, 3, 6]),
                **changes,
            }
        )
