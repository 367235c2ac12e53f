"""The compiled plan: what a run executes, immutable and named by its content's digest.

Agents and workflows both compile to nodes that need one another. The engine reads nothing else:
definitions may change or vanish while a run goes on.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final, Literal

from pydantic import Field, TypeAdapter

from penstock.contracts.errors import ErrorFamily
from penstock.contracts.facts import DefinitionKind, Record
from penstock.contracts.ids import NodeId, Token, content_digest
from penstock.contracts.json import Json


class RetryPolicy(Record):
    """When and how often a failed step is tried again. Transient errors only, unless said."""

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


class CompiledAgent(Record):
    """An agent as a plan carries it."""

    name: Token
    queue: Token = "default"
    model: str
    instructions: str = ""
    tools: tuple[Token, ...] = ()
    max_turns: int = Field(default=10, ge=1, le=1000)
    parameters: dict[str, Json] = {}
    """Passed to the model: temperature, max_tokens, api_base, ..."""
    script: Json = None
    """The turns of a ``scripted/...`` model."""
    endpoint: str | None = None
    """URL of an agent that is asked by HTTP and answers by SSE, instead of a model."""
    stream: bool = True
    retry: RetryPolicy = RetryPolicy()
    timeout_seconds: float = Field(default=300.0, gt=0)


class Node(Record):
    """One node of a plan: an agent to run or a tool to call, once all that it needs is done."""

    id: NodeId
    kind: Literal["agent", "tool"]
    ref: Token
    """Name of the agent or tool, a key of the plan's ``agents`` or ``tools``."""
    needs: tuple[NodeId, ...] = ()
    input: Json = None
    """Template of the node's input."""
    retry: RetryPolicy | None = None
    timeout_seconds: float | None = Field(default=None, gt=0)


class Plan(Record):
    """What a run executes."""

    format: Literal["penstock.plan/1"] = "penstock.plan/1"
    name: Token
    kind: DefinitionKind
    nodes: tuple[Node, ...]
    agents: dict[str, CompiledAgent] = {}
    tools: dict[str, CompiledTool] = {}
    output: Json = None
    """Template of the run's output; ``None``: the output of the last node."""
    timeout_seconds: float = Field(default=3600.0, gt=0)

    @cached_property
    def by_id(self) -> dict[str, Node]:
        """The nodes by their ids."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def successors(self) -> dict[str, tuple[Node, ...]]:
        """For each node those that need it."""
        found: dict[str, list[Node]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for needed in node.needs:
                found[needed].append(node)
        return {node_id: tuple(nodes) for node_id, nodes in found.items()}

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the ones that the digest is taken of."""
        return PLAN.dump_json(self)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical bytes, in hexadecimal."""
        return content_digest(self.to_bytes())


PLAN: Final[TypeAdapter[Plan]] = TypeAdapter(Plan)


class PublishedVersion(Record):
    """Value of bucket ``published``: which version of a definition is in force."""

    name: Token
    kind: DefinitionKind
    version: int
    plan_digest: str
