"""The compiled plan: what a run executes, immutable and named by its content's digest.

Agents and workflows both compile to nodes that need one another. The engine reads nothing else:
definitions may change or vanish while a run executes.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, model_serializer
from pydantic_core import to_json

from penstock.contracts.errors import ErrorFamily
from penstock.contracts.facts import DefinitionKind, Record
from penstock.contracts.ids import NodeId, Token, content_digest
from penstock.contracts.json import Json, JsonObject
from penstock.contracts.usage import Reservation, RunLimits


class RetryPolicy(Record):
    """When and how often a failed step is retried. Transient errors only, by default."""

    max_attempts: int = Field(default=3, ge=1, le=100)
    initial_seconds: float = Field(default=1.0, ge=0)
    factor: float = Field(default=2.0, ge=1)
    max_seconds: float = Field(default=30.0, ge=0)
    jitter: float = Field(default=0.1, ge=0, le=1)
    """Share of the delay by which it is spread, derived from run, step and attempt."""
    retry_on: tuple[ErrorFamily, ...] = (ErrorFamily.TRANSIENT,)


class ToolParameter(Record):
    """Where one parameter of a tool comes from.

    ``agent``: the caller gives it. ``system``: always ``value`` (a template), hidden from the
    model and never overridden by it. ``default``: ``value`` where the caller gives none.
    """

    source: Literal["agent", "system", "default"] = "agent"
    value: Json = None


class ApprovalPolicy(Record):
    """Who may approve, and when an open approval expires."""

    role: str | None = None
    expires_seconds: float = Field(default=600.0, gt=0)
    message: str = ""


class CompiledTool(Record):
    """A tool as a plan carries it."""

    name: Token
    description: str = ""
    queue: Token
    parameters: dict[str, Json] = {"type": "object", "properties": {}}
    """JSON Schema (2020-12) of all arguments, system ones included."""
    sources: dict[str, ToolParameter] = {}
    config: Json = None
    """Given to the runner with each call (an HTTP tool's request)."""
    retry: RetryPolicy = RetryPolicy()
    timeout_seconds: float = Field(default=60.0, gt=0)
    policy: Literal["allow", "require_approval", "block"] = "allow"
    approval: ApprovalPolicy | None = None
    """Who approves and for how long, where ``policy`` requires it."""
    client: bool = False
    """The caller of the run executes it; the run waits for the result."""
    at_most_once: bool = False
    """A lost attempt becomes ``unknown`` and needs a decision; it is never made again silently."""
    heartbeat_seconds: float | None = Field(default=None, gt=0)
    reserve: Reservation | None = None
    """What a call may cost at most, where it costs anything."""


class Price(Record):
    """What a model costs, to reserve before a call; in USD per token."""

    input_usd: float = Field(ge=0)
    output_usd: float = Field(ge=0)


class CompiledAgent(Record):
    """An agent as a plan carries it."""

    name: Token
    queue: Token = "default"
    model: str
    instructions: str = ""
    tools: tuple[Token, ...] = ()
    max_turns: int = Field(default=10, ge=1, le=1000)
    parameters: dict[str, Json] = {}
    """Passed to the model, see `penstock.contracts.models.PARAMETERS`."""
    script: Json = None
    """The turns of a ``scripted/...`` model."""
    endpoint: str | None = None
    """URL of an agent that is asked by HTTP and answers by SSE, instead of a model."""
    stream: bool = True
    retry: RetryPolicy = RetryPolicy()
    timeout_seconds: float = Field(default=300.0, gt=0)
    description: str = ""
    routes: tuple[Token, ...] = ()
    """Agents of the same network that it may hand the conversation to."""
    responds_to: Literal["user", "caller", "nobody"] = "user"
    """Whom its answer is for: ``user`` ends the conversation, ``caller`` returns to the agent that
    routed to it, ``nobody``: it must route on."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of all its turns in one run."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    price: Price | None = None
    overrides: dict[str, CompiledTool] = {}
    """Tools that are another thing for this agent (an alias, other system parameters)."""


class Block(Record):
    """Nodes that belong together: the body of a map, one branch, a handler."""

    name: str
    nodes: tuple[Node, ...]
    output: Json = None
    """Template of the block's output; ``None``: the output of its last node."""

    @cached_property
    def successors(self) -> dict[str, tuple[Node, ...]]:
        """For each node those of the block that need it."""
        found: dict[str, list[Node]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for needed in node.needs:
                found[needed].append(node)
        return {node_id: tuple(nodes) for node_id, nodes in found.items()}


NodeKind = Literal[
    "agent",
    "tool",
    "transform",
    "branch",
    "parallel",
    "map",
    "loop",
    "wait",
    "approval",
    "workflow",
    "send",
    "end",
]


class BaseNode(Record):
    """What all nodes have in common: each starts once all that it needs is done."""

    id: NodeId
    kind: NodeKind
    needs: tuple[NodeId, ...] = ()
    """Nodes of the same block."""
    when: Json = None
    """Condition; where it does not hold the node is skipped."""
    input: Json = None
    """Template of the node's input; of a transform's output."""
    on_error: Literal["fail", "continue"] = "fail"
    fallback: Json = None
    """Output of a node that failed and after which the run continues."""
    compensate: Annotated[AgentNode | ToolNode, Field(discriminator="kind")] | None = None
    """Undoes the node if it succeeded and the run fails."""

    @model_serializer(mode="wrap")
    def _with_kind(self, dump: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Keep the discriminator where defaults are left out."""
        return {"kind": self.kind, **dump(self)}

    @cached_property
    def mentions_secrets(self) -> bool:
        """Whether the input may hold references to secrets."""
        return b"secrets" in to_json(self.input)


class LeafNode(BaseNode):
    """A node without nodes inside it."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks inside the node: none."""
        return ()


class CalledNode(LeafNode):
    """A node whose work is one or more steps, which may be retried and may take too long."""

    retry: RetryPolicy | None = None
    """Instead of the policy of the agent or tool."""
    timeout_seconds: float | None = Field(default=None, gt=0)
    """For one attempt."""


class AgentNode(CalledNode):
    """Turns of an agent until it responds."""

    kind: Literal["agent"] = "agent"
    ref: str
    """Name of the agent, a key of the plan's ``agents``."""


class ToolNode(CalledNode):
    """One call of a tool."""

    kind: Literal["tool"] = "tool"
    ref: str
    """Name of the tool, a key of the plan's ``tools``."""


class TransformNode(LeafNode):
    """Computes its output from a template."""

    kind: Literal["transform"] = "transform"


class BranchNode(BaseNode):
    """The first case whose condition holds is taken; ``None`` always holds (``else``)."""

    kind: Literal["branch"] = "branch"
    conditions: tuple[Json, ...]
    blocks: tuple[Block, ...]
    """One for each condition. Where no condition holds, the node is done, with output null."""


class ParallelNode(BaseNode):
    """All blocks run side by side."""

    kind: Literal["parallel"] = "parallel"
    blocks: tuple[Block, ...]
    wait: int | None = None
    """How many must succeed; ``None``: all. The others are stopped then."""
    collect: bool = False
    """A block that fails does not fail the node: its error is part of the result."""


class BodyNode(BaseNode):
    """A node that runs one block several times; each run of it extends the instance path."""

    body: Block

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks inside the node: its body."""
        return (self.body,)


class MapNode(BodyNode):
    """The body runs once for every item of a list; the result keeps the list's order."""

    kind: Literal["map"] = "map"
    over: str
    """CEL expression that gives the list."""
    variable: NodeId = "item"
    concurrency: int | None = Field(default=None, ge=1)
    max_items: int = Field(default=10_000, ge=1, le=10_000)
    collect: bool = False
    """An item that fails does not fail the node: its error is part of the result."""


class LoopNode(BodyNode):
    """The body runs repeatedly; ``iteration`` counts from 0, ``previous`` is its output."""

    kind: Literal["loop"] = "loop"
    while_: Json = None
    """Checked before each iteration."""
    until: Json = None
    """Checked after each iteration."""
    max_iterations: int = Field(default=100, ge=1, le=10_000)
    on_limit: Literal["fail", "stop"] = "fail"


class WaitNode(LeafNode):
    """Waits for a duration, for a moment or for a signal."""

    kind: Literal["wait"] = "wait"
    seconds: Json = None
    """A number, or a template that gives one."""
    until: Json = None
    """RFC 3339 text, or a template that gives one."""
    signal: str | None = None
    """Name of the event."""
    match: Json = None
    """Condition over ``signal.payload`` and the rest of the scope."""
    correlation: Json = None
    """Template of the key by which the event finds the run."""
    timeout_seconds: float | None = Field(default=None, gt=0)
    """How long to wait for the signal."""
    on_timeout: Literal["fail", "continue"] = "fail"


class ApprovalNode(LeafNode):
    """Waits for a person's decision."""

    kind: Literal["approval"] = "approval"
    message: Json = ""
    role: str | None = None
    expires_seconds: float = Field(default=86_400.0, gt=0)
    on_reject: Literal["fail", "continue"] = "fail"


class ChildSpec(Record):
    """A run of another definition, of exactly this plan."""

    name: Token
    kind: DefinitionKind
    version: int
    plan_digest: str
    limits: RunLimits = RunLimits()
    input_defaults: JsonObject | None = None
    """JSON Schema of its input, if that has defaults."""


class WorkflowNode(CalledNode):
    """A child run."""

    kind: Literal["workflow"] = "workflow"
    child: ChildSpec


class SendNode(CalledNode):
    """A message to another run, found by its id or by the key that it waits for."""

    kind: Literal["send"] = "send"
    name: str
    run_id: Json = None
    correlation: Json = None
    session_id: Json = None
    payload: Json = None


class EndNode(LeafNode):
    """Ends the run at once."""

    kind: Literal["end"] = "end"
    status: Literal["done", "failed"] = "done"
    output: Json = None
    message: Json = ""


Node = Annotated[
    AgentNode
    | ToolNode
    | TransformNode
    | BranchNode
    | ParallelNode
    | MapNode
    | LoopNode
    | WaitNode
    | ApprovalNode
    | WorkflowNode
    | SendNode
    | EndNode,
    Field(discriminator="kind"),
]
"""One node of a plan."""


class ConcurrencySpec(Record):
    """How many runs with the same key may be under way."""

    key: str = "''"
    """CEL expression over ``input`` and ``run``."""
    max: int = Field(default=1, ge=1, le=1000)
    policy: Literal["queue", "reject", "cancel_oldest", "cancel_newest"] = "queue"


class Position(NamedTuple):
    """Position of a node in a plan."""

    node: Node
    block: Block
    owner: Node | None
    """The node that the block belongs to; ``None`` for the plan's own blocks."""
    depth: int
    """How many maps and loops enclose it."""
    phase: str
    """``main``, ``compensation``, ``on_error`` or ``finally``."""
    order: int
    """How many nodes come before it in the plan."""


class Plan(Record):
    """What a run executes."""

    format: Literal["penstock.plan/2"] = "penstock.plan/2"
    name: Token
    kind: DefinitionKind
    nodes: tuple[Node, ...]
    agents: dict[str, CompiledAgent] = {}
    tools: dict[str, CompiledTool] = {}
    output: Json = None
    """Template of the run's output; ``None``: the output of the last node."""
    timeout_seconds: float = Field(default=3600.0, gt=0)
    limits: RunLimits = RunLimits()
    concurrency: ConcurrencySpec | None = None
    correlation: Json = None
    """Template of the key by which events find a run, from its beginning to its end."""
    on_error: tuple[Node, ...] = ()
    """Run if the run has failed, after compensation; ``error`` holds the reason."""
    finally_: tuple[Node, ...] = ()
    """Run at last, whether the run has failed or not."""
    input_schema: dict[str, Json] | None = None
    """JSON Schema (2020-12) of the input; checked when a run is started."""

    @cached_property
    def by_id(self) -> dict[str, Node]:
        """All nodes by their ids, those within others included."""
        return {node_id: position.node for node_id, position in self.positions.items()}

    @cached_property
    def main(self) -> Block:
        """The nodes of the run itself, as a block."""
        return Block.model_construct(name="main", nodes=self.nodes, output=self.output)

    @cached_property
    def handlers(self) -> dict[str, Block]:
        """The blocks of the later phases, by phase."""
        return {
            "on_error": Block.model_construct(name="on_error", nodes=self.on_error, output=None),
            "finally": Block.model_construct(name="finally", nodes=self.finally_, output=None),
        }

    @cached_property
    def positions(self) -> dict[str, Position]:
        """Position of every node, by id."""
        found: dict[str, Position] = {}

        def walk(block: Block, owner: Node | None, depth: int, phase: str) -> None:
            for node in block.nodes:
                found[node.id] = Position(node, block, owner, depth, phase, len(found))
                if node.compensate is not None:
                    undo = node.compensate
                    alone = Block.model_construct(name=undo.id, nodes=(undo,), output=None)
                    found[undo.id] = Position(undo, alone, None, depth, "compensation", len(found))
                below = depth + isinstance(node, BodyNode)
                for inner in node.blocks:
                    walk(inner, node, below, phase)

        walk(self.main, None, 0, "main")
        for phase, block in self.handlers.items():
            walk(block, None, 0, phase)
        return found

    @cached_property
    def successors(self) -> dict[str, tuple[Node, ...]]:
        """For each node those that need it."""
        return self.main.successors

    @cached_property
    def pools(self) -> frozenset[str]:
        """The runner pools (``{kind}.{queue}``) that a run may schedule steps for."""
        tools = [*self.tools.values()]
        for agent in self.agents.values():
            tools += agent.overrides.values()
        return frozenset(f"tool.{tool.queue}" for tool in tools) | frozenset(
            f"agent.{agent.queue}" for agent in self.agents.values()
        )

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the ones that the digest is taken of."""
        content = PLAN.dump_python(self, mode="json", exclude_defaults=True)
        return to_json({"format": self.format, **content})

    def digest(self) -> str:
        """Return the SHA-256 of the canonical bytes, in hexadecimal."""
        return content_digest(self.to_bytes())


PLAN: Final[TypeAdapter[Plan]] = TypeAdapter(Plan)


class CanaryVersion(Record):
    """Another version, to which some of the runs go."""

    version: int
    plan_digest: str
    weight: int = Field(ge=1, le=100)
    """Of a hundred runs so many; which ones, their ids decide."""
    input_schema: dict[str, Json] | None = None


class PublishedVersion(Record):
    """Value of bucket ``published``: the version that a name, a number or an alias stands for."""

    name: Token
    kind: DefinitionKind
    version: int
    plan_digest: str
    input_schema: dict[str, Json] | None = None
    """As in the plan, so that a start need not read the plan."""
    canary: CanaryVersion | None = None
