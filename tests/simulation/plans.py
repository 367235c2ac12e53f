"""Random plans: whatever the plan language can say, drawn from the seed.

One method for each kind of node; each world uses some of the kinds. Deadlines are short, so that
a healthy installation ends every plan within minutes of virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from penstock.contracts.facts import DefinitionKind
from penstock.contracts.plan import (
    ApprovalPolicy,
    Block,
    ChildSpec,
    CompiledAgent,
    CompiledTool,
    ConcurrencySpec,
    Node,
    Plan,
    Price,
    RetryPolicy,
    ToolNode,
)
from penstock.contracts.usage import Reservation, RunLimits

TOOLS = ("add", "look")
MORE_TOOLS = ("guarded", "client", "once")
NOT_EQUIPPED = "rm"
STEP_SECONDS = 8.0
QUEUES = (("tool", "builtin"), ("agent", "default"))
EVENT = "news"
KEY = "order-7"
DEEPEST: Final = 2
MOST_NODES: Final = 14
MAX_TOKENS: Final = 60
"""What a model may answer, where a plan limits tokens."""

CONTAINERS = ("branch", "parallel", "map", "loop")
LEAVES = ("transform", "wait", "approval", "workflow", "send", "end")
FEATURES = (
    *CONTAINERS,
    *LEAVES,
    *MORE_TOOLS,
    "when",
    "on_error",
    "compensate",
    "handlers",
    "limits",
    "routes",
    "correlation",
    "concurrency",
    "one_at_a_time",
)


def draw_features(random: Random) -> frozenset[str]:
    """Draw what the plans of a world use."""
    share = random.choice([0.0, 0.2, 0.5, 0.9])
    return frozenset(each for each in FEATURES if random.random() < share)


NODE: TypeAdapter[Node] = TypeAdapter(Node)


class PlanMaker:
    """Draws plans."""

    def __init__(
        self, random: Random, features: frozenset[str], publish: Callable[[Plan], str]
    ) -> None:
        """Draw from a source of chance; ``publish`` stores the plans of child runs."""
        self.random = random
        self.features = features
        self._publish = publish
        self._made = 0
        self._generation = 0
        self._makers: dict[str, Callable[[str, int], dict[str, Any]]] = {
            "tool": self._tool_node,
            "agent": self._agent_node,
            "transform": self._transform,
            "branch": self._branch,
            "parallel": self._parallel,
            "map": self._map,
            "loop": self._loop,
            "wait": self._wait,
            "approval": self._approval,
            "workflow": self._workflow,
            "send": self._send,
            "end": self._end,
        }

    def uses(self, feature: str, chance: float = 1.0) -> bool:
        """Tell whether a plan uses a feature here."""
        return feature in self.features and self.random.random() < chance

    def plan(self, name: str) -> Plan:
        """Draw a plan."""
        random = self.random
        self._made = 0
        nodes = self.block(random.choice([1, 2, 3, 5, 8]), 0)
        handlers: dict[str, Any] = {}
        if self.uses("handlers", 0.5):
            handlers["on_error"] = tuple(self.block(random.choice([0, 1, 2]), DEEPEST))
            handlers["finally_"] = tuple(self.block(random.choice([0, 1, 2]), DEEPEST))
        if self.uses("limits", 0.6):
            handlers["limits"] = self._limits()
        if self.uses("correlation", 0.5):
            handlers["correlation"] = KEY
        if self.uses("concurrency", 0.7):
            handlers["concurrency"] = ConcurrencySpec(
                key="'here'",
                max=1 if "one_at_a_time" in self.features else 2,
                policy=random.choice(["queue", "queue", "reject", "cancel_oldest"]),
            )
        return Plan(
            name=name,
            kind=DefinitionKind.WORKFLOW,
            nodes=tuple(nodes),
            agents=self._agents(),
            tools={tool.name: tool for tool in self._tools()},
            timeout_seconds=random.choice([5.0, 40.0, 3600.0, 3600.0]),
            **handlers,
        )

    def block(self, size: int, depth: int) -> list[Node]:
        """Draw nodes that need one another."""
        random = self.random
        nodes: list[Node] = []
        for _ in range(size):
            earlier = [node.id for node in nodes]
            needs = random.sample(earlier, min(len(earlier), random.choice([0, 1, 1, 2])))
            nodes.append(self.node(tuple(needs), depth))
        return nodes

    def node(self, needs: tuple[str, ...], depth: int) -> Node:
        """Draw one node."""
        random = self.random
        kinds = ["tool", "tool", "agent"]
        kinds += [kind for kind in LEAVES if kind in self.features and kind != "end"]
        if depth < DEEPEST and self._made < MOST_NODES:
            kinds += [kind for kind in CONTAINERS if kind in self.features] * 2
        kind = "end" if self.uses("end", 0.05) else random.choice(kinds)
        node_id = self._new_id()
        told = {"id": node_id, "kind": kind, "needs": needs, **self._makers[kind](node_id, depth)}
        if self.uses("when", 0.2):
            told["when"] = random.choice(["input.n > 3", "size(input.items) > 2", True, False])
        if self.uses("on_error", 0.3) and kind != "end":
            told |= {"on_error": "continue", "fallback": random.choice([None, {"n": 0}])}
        if self.uses("compensate", 0.4) and kind in ("tool", "agent"):
            undo = self._new_id()
            told["compensate"] = ToolNode(id=undo, ref="add", input={"undo": node_id})
        return NODE.validate_python(told)

    def _new_id(self) -> str:
        self._made += 1
        return f"n{self._made}"

    # -- kinds of nodes --------------------------------------------------------------------------

    def _tool_node(self, _node_id: str, _depth: int) -> dict[str, Any]:
        more = [tool for tool in MORE_TOOLS if tool in self.features]
        ref = self.random.choice([*TOOLS, *TOOLS, *more])
        return {"ref": ref, "input": {"city": "{{ input.city }}"}, **self._options()}

    def _agent_node(self, _node_id: str, _depth: int) -> dict[str, Any]:
        return {"ref": "writer", "input": "{{ input.n }}", **self._options()}

    def _transform(self, _node_id: str, _depth: int) -> dict[str, Any]:
        return {"input": self.random.choice(["{{ input.items }}", {"n": "{{ input.n }}"}])}

    def _inner(self, name: str, depth: int) -> Block:
        size = self.random.choice([1, 1, 2, 3])
        return Block(name=name, nodes=tuple(self.block(size, depth + 1)))

    def _branch(self, _node_id: str, depth: int) -> dict[str, Any]:
        conditions = self.random.choice([("input.n > 4", None), ("input.n > 4", "input.n > 8")])
        blocks = tuple(self._inner(f"case{index}", depth) for index in range(2))
        return {"conditions": conditions, "blocks": blocks}

    def _parallel(self, _node_id: str, depth: int) -> dict[str, Any]:
        count = self.random.choice([2, 3])
        return {
            "blocks": tuple(self._inner(f"side{index}", depth) for index in range(count)),
            "wait": self.random.choice([None, None, 1, 2]),
            "collect": self.random.random() < 0.4,
        }

    def _map(self, _node_id: str, depth: int) -> dict[str, Any]:
        return {
            "over": "input.items",
            "body": self._inner("body", depth),
            "concurrency": self.random.choice([None, 1, 2]),
            "collect": self.random.random() < 0.4,
        }

    def _loop(self, _node_id: str, depth: int) -> dict[str, Any]:
        told: dict[str, Any] = self.random.choice(
            [{"until": "iteration >= 1"}, {"while_": "iteration < 2"}, {"until": "input.n < 0"}]
        )
        return dict(
            body=self._inner("body", depth),
            max_iterations=3,
            on_limit=self.random.choice(["fail", "stop"]),
            **told,
        )

    def _wait(self, _node_id: str, _depth: int) -> dict[str, Any]:
        random = self.random
        if random.random() < 0.5:
            return {"seconds": random.choice([0, 0.5, "3s"])}
        return {
            "signal": EVENT,
            "match": random.choice([None, "signal.payload.n > 3"]),
            "correlation": random.choice([None, KEY]),
            "timeout_seconds": random.choice([2.0, 10.0]),
            "on_timeout": random.choice(["fail", "continue", "continue"]),
        }

    def _approval(self, _node_id: str, _depth: int) -> dict[str, Any]:
        return {
            "input": {"n": "{{ input.n }}"},
            "message": "may it?",
            "expires_seconds": self.random.choice([3.0, 15.0]),
            "on_reject": self.random.choice(["fail", "continue"]),
        }

    def _workflow(self, _node_id: str, _depth: int) -> dict[str, Any]:
        random = self.random
        below = PlanMaker(random, self.features, self._publish)
        below._generation = self._generation + 1
        if below._generation > 1:
            below.features -= {"workflow"}
        plan = below.plan(f"child{below._generation}")
        spec = ChildSpec(
            name=plan.name,
            kind=plan.kind,
            version=1,
            plan_digest=self._publish(plan),
            limits=RunLimits(timeout_seconds=random.choice([None, 20.0])),
        )
        given = {"city": "{{ input.city }}", "n": "{{ input.n }}", "items": "{{ input.items }}"}
        return {"child": spec, "input": given}

    def _send(self, _node_id: str, _depth: int) -> dict[str, Any]:
        to: dict[str, Any] = self.random.choice([{"correlation": KEY}, {"run_id": "{{ run.id }}"}])
        return {"name": EVENT, "payload": {"n": "{{ input.n }}"}, **to}

    def _end(self, _node_id: str, _depth: int) -> dict[str, Any]:
        status: Literal["done", "failed"] = self.random.choice(["done", "failed"])
        return {"status": status, "output": "{{ input.n }}", "message": "over"}

    # -- what nodes refer to ---------------------------------------------------------------------

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

    def _tools(self) -> list[CompiledTool]:
        system: Any = {"key": {"source": "system", "value": "{{ run.tenant }}"}}
        policy = ApprovalPolicy(expires_seconds=self.random.choice([3.0, 15.0]))
        return [
            self._tool("add", reserve=self.random.choice([None, Reservation(cost_usd=0.1)])),
            self._tool("look", sources=system),
            self._tool("guarded", policy="require_approval", approval=policy),
            self._tool("client", client=True),
            self._tool("once", at_most_once=True),
        ]

    def _tool(self, name: str, **changes: Any) -> CompiledTool:
        given = {"name": name, "queue": "builtin", "retry": self._retry()}
        return CompiledTool(**{**given, "timeout_seconds": STEP_SECONDS, **changes})

    def _agents(self) -> dict[str, CompiledAgent]:
        more = tuple(tool for tool in MORE_TOOLS if tool in self.features)
        routes = self.uses("routes", 0.6)
        writer = self._agent("writer", tools=(*TOOLS, *more), routes=("editor",) if routes else ())
        if not routes:
            return {"writer": writer}
        answers = self.random.choice(["user", "caller"])
        back = ("writer",) if self.random.random() < 0.5 else ()
        return {"writer": writer, "editor": self._agent("editor", responds_to=answers, routes=back)}

    def _agent(self, name: str, **changes: Any) -> CompiledAgent:
        given: dict[str, Any] = {
            "name": name,
            "model": "scripted/test",
            "tools": TOOLS,
            "retry": self._retry(),
            "timeout_seconds": STEP_SECONDS,
            "max_turns": self.random.choice([1, 3, 6]),
        }
        if "limits" in self.features:
            given["parameters"] = {"max_tokens": MAX_TOKENS}
            price = Price(input_usd=0.001, output_usd=0.01)
            given["price"] = self.random.choice([None, price])
            given["max_tokens"] = self.random.choice([None, None, 2000])
        return CompiledAgent(**{**given, **changes})

    def _limits(self) -> RunLimits:
        random = self.random
        return RunLimits(
            max_steps=random.choice([None, 2, 6, 20]),
            max_tokens=random.choice([None, 300, 2000]),
            max_cost_usd=random.choice([None, 0.5, 3.0]),
            max_turns=random.choice([None, 2]),
            max_depth=random.choice([None, 0, 1]),
        )
