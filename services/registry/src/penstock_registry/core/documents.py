"""Documents: the form of what users write.

Constraints of single fields are types here; constraints between fields and documents are in
``checks``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AnyHttpUrl, Field, JsonValue, TypeAdapter, UrlConstraints

from penstock.contracts.durations import MAX_DURATION_SECONDS
from penstock.contracts.ids import Token
from penstock.contracts.rpc import DocumentKind, Role
from penstock.contracts.runners import WebhookScheme
from penstock_registry.core.parts import (
    Duration,
    JsonSchema,
    LimitsSpec,
    Part,
    RetrySpec,
    SecretName,
    WrittenObject,
)
from penstock_registry.core.schedules import ScheduleSpec
from penstock_registry.core.scripts import Script
from penstock_registry.core.steps import Expression, HttpForm, Steps, StepSpec

API_VERSION: Final = "penstock/v1"

Endpoint = Annotated[AnyHttpUrl, UrlConstraints(max_length=2000)]
ENDPOINT: Final[TypeAdapter[AnyHttpUrl]] = TypeAdapter(Endpoint)


class Metadata(Part):
    """What a definition is called."""

    name: Token
    description: str = Field(default="", max_length=4000)
    labels: dict[str, str] = {}


class PriceSpec(Part):
    """What a model costs, in USD per million tokens."""

    input_usd: float = Field(ge=0)
    """For a million tokens that it reads."""
    output_usd: float = Field(ge=0)
    """For a million tokens that it writes."""


class AgentSpec(Part):
    """An agent: a model with instructions and tools, or an endpoint that is one."""

    exactly_one = ("model", "endpoint")

    model: str | None = Field(default=None, min_length=1, max_length=200)
    """``provider/name``, such as ``openai/gpt-5-mini``; ``scripted/...`` plays ``script``, or says
    its input where there is none."""
    instructions: str = ""
    tools: tuple[Token, ...] = ()
    max_turns: int = Field(default=10, ge=1, le=1000)
    parameters: WrittenObject = {}
    """Passed to the model: temperature, max_tokens, api_base, ...; a finding lists them all."""
    script: Script | None = None
    endpoint: Endpoint | None = None
    """Base URL of an agent that is asked by HTTP and answers by SSE, instead of a model."""
    queue: Token = "default"
    stream: bool = True
    timeout_seconds: float = Field(default=300.0, gt=0, le=86_400)
    retry: RetrySpec = RetrySpec()
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens, in and out, of all its turns in one run."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    """Cost of all its turns in one run."""
    price: PriceSpec | None = None
    """What the model costs, where no price is known or another one holds."""


class BuiltinSpec(Part):
    """A tool that comes with the tool-runner, by the document's name."""

    queue: Token = "builtin"


class HttpSpec(HttpForm):
    """A tool that is an HTTP request. Its strings are templates over ``arguments``."""

    queue: Token = "http"


class RunnerSpec(Part):
    """A tool that your own runner serves, by the document's name."""

    queue: Token


class SourceSpec(Part):
    """Where a parameter comes from; see `penstock.contracts.plan.ToolParameter`."""

    source: Literal["agent", "system", "default"] = "agent"
    value: JsonValue = None


class ClientSpec(Part):
    """A tool that the caller of the run executes; the run waits for the result."""


class ApprovalSpec(Part):
    """Who approves the calls of a tool, and for how long they wait."""

    role: Role | None = None
    """The role that may answer; operators where not given."""
    expires_seconds: Duration = 600.0
    """How long a call waits; then it counts as rejected."""
    message: str = Field(default="", max_length=4000)
    """The question: a template over ``arguments``, ``input``, ``run`` and ``session``."""


class ReserveSpec(Part):
    """What one call may cost at most; set aside before it is made."""

    tokens: int = Field(default=0, ge=0)
    cost_usd: float = Field(default=0.0, ge=0)


class ToolSpec(Part):
    """A tool: exactly one of ``builtin``, ``http``, ``runner`` and ``client``."""

    exactly_one = ("builtin", "http", "runner", "client")

    builtin: BuiltinSpec | None = None
    http: HttpSpec | None = None
    runner: RunnerSpec | None = None
    client: ClientSpec | None = None
    parameters: JsonSchema = {"type": "object", "properties": {}}
    """JSON Schema (2020-12) of the arguments."""
    sources: dict[str, SourceSpec] = {}
    """Where single parameters come from."""
    retry: RetrySpec = RetrySpec()
    timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_DURATION_SECONDS)
    """For one attempt; for a client's tool until its result is there."""
    policy: Literal["allow", "require_approval", "block"] = "allow"
    """Whether a call is made, made after an approval, or refused."""
    approval: ApprovalSpec | None = None
    """Who approves, where ``policy`` requires it."""
    at_most_once: bool = False
    """A lost attempt becomes ``unknown`` and needs a decision; it is never made again silently."""
    heartbeat_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """An attempt that shows no progress for so long has failed."""
    reserve: ReserveSpec | None = None
    """What one call may cost at most."""


class ConcurrencySpec(Part):
    """How many runs with the same key may be under way."""

    key: Expression = "''"
    """CEL expression over ``input`` and ``run``; runs with the same value share the limit."""
    max: int = Field(default=1, ge=1, le=1000)
    """How many."""
    policy: Literal["queue", "reject", "cancel_oldest", "cancel_newest"] = "queue"
    """The policy for runs beyond the limit."""


class WorkflowSpec(Part):
    """A workflow: steps that need one another."""

    input: JsonSchema | None = None
    """JSON Schema (2020-12) of the input; checked before a run starts."""
    steps: Steps
    """The steps of the workflow."""
    output: JsonValue = None
    """Template of the run's output; where not given the output of the last step."""
    timeout_seconds: float | None = Field(default=None, gt=0, le=MAX_DURATION_SECONDS)
    """For the whole run: an hour where not given, 30 days where a step may wait for a person."""
    limits: LimitsSpec = LimitsSpec()
    """Limits of each run."""
    concurrency: ConcurrencySpec | None = None
    """How many runs may be under way at once."""
    correlation: JsonValue = None
    """Template of the key by which events find a run, over ``input``, ``session`` and ``run``."""
    on_error: Annotated[tuple[StepSpec, ...], Field(max_length=100)] = ()
    """Steps that run if the run has failed; ``error`` holds the reason."""
    finally_: Annotated[tuple[StepSpec, ...], Field(max_length=100)] = Field(
        default=(), alias="finally"
    )
    """Steps that run at last, whether the run has failed or not."""


class EquippedTool(Part):
    """A tool as one agent of a network has it."""

    name: Token
    """What the agent calls it."""
    tool: Token | None = None
    """The tool that it is; the one of the same name where not given."""
    description: str | None = Field(default=None, max_length=4000)
    """The description that the agent gets instead of the tool's description."""
    sources: dict[str, SourceSpec] = {}
    """Where single parameters come from here, instead of what the tool says of them."""


class MemberSpec(Part):
    """An agent of a network: one that has a document, or one that is written here."""

    name: Token
    """Name in the network, of an agent's document where neither ``agent`` nor ``spec`` is given."""
    agent: Token | None = None
    """Name of the agent's document, where it has another name in the network."""
    spec: AgentSpec | None = None
    """The agent itself, where it has no document."""
    description: str = Field(default="", max_length=4000)
    """The description for agents that may route to it."""
    tools: tuple[EquippedTool, ...] | None = None
    """Its tools in this network; the agent's tools where not given."""
    routes: tuple[Token, ...] = ()
    """Agents of the network that it may hand the conversation to."""
    responds_to: Literal["user", "caller", "nobody"] = "user"
    """``user``: its answer ends the run. ``caller``: it returns to the agent that routed to it.
    ``nobody``: it must route on."""


class NetworkPolicy(Part):
    """What a network's runs may do."""

    cycles: Literal["allow", "forbid"] = "forbid"
    """Whether routes may lead in a circle; then ``max_steps`` or ``max_turns`` bounds it."""
    max_steps: int | None = Field(default=None, ge=1)
    """Attempts at steps of one run."""
    max_turns: int | None = Field(default=None, ge=1, le=1000)
    """Turns of each agent in one run."""


class NetworkSpec(Part):
    """A network: agents that may hand the conversation to one another."""

    input: JsonSchema | None = None
    """JSON Schema (2020-12) of the input; checked before a run starts."""
    entry: Token
    """The agent that gets the input."""
    agents: tuple[MemberSpec, ...] = Field(min_length=1, max_length=200)
    """Who belongs to it."""
    policy: NetworkPolicy = NetworkPolicy()
    limits: LimitsSpec = LimitsSpec()
    """Limits of each run."""
    timeout_seconds: float = Field(default=3600.0, gt=0, le=MAX_DURATION_SECONDS)
    """For the whole run."""


HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]


class HmacSpec(Part):
    """A signature by HMAC in a header."""

    header: HeaderName
    """Name of the header of the signature."""
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = Field(default="", max_length=40)
    """Precedes the encoded signature, such as ``sha256=``."""
    signed: str = Field(
        default="{body}",
        pattern=r"^[^{}]{0,40}(\{(id|timestamp)\}[.:|,;/]){0,2}\{body\}$",
    )
    """The signed text, with ``{id}``, ``{timestamp}`` and, at its end, ``{body}``."""
    timestamp_header: HeaderName | None = None
    """Name of the header of the time, in seconds since 1970."""
    id_header: HeaderName | None = None
    """Name of the header that identifies the delivery."""


class WebhookSpec(Part):
    """A webhook: what a delivery to ``/hooks/{tenant}/{name}`` starts."""

    target: Token
    scheme: WebhookScheme = "standard"
    """How the sender signs."""
    secrets: tuple[SecretName, ...] = ()
    hmac: HmacSpec | None = None
    """The signature, where ``scheme`` is ``hmac``."""
    verify_token: SecretName | None = None
    """Secret that the sender shows when it verifies the address, where ``scheme`` is ``meta``."""
    input: JsonValue = "{{ payload }}"
    tolerance_seconds: float = Field(default=300.0, gt=0, le=86_400)


class _Head(Part):
    api_version: Literal["penstock/v1"] = Field(alias="apiVersion")
    metadata: Metadata


class AgentDocument(_Head):
    """Defines an agent."""

    kind: Literal["Agent"]
    spec: AgentSpec


class ToolDocument(_Head):
    """Defines a tool."""

    kind: Literal["Tool"]
    spec: ToolSpec


class WorkflowDocument(_Head):
    """Defines a workflow."""

    kind: Literal["Workflow"]
    spec: WorkflowSpec


class NetworkDocument(_Head):
    """Defines a network."""

    kind: Literal["Network"]
    spec: NetworkSpec


class WebhookDocument(_Head):
    """Defines a webhook."""

    kind: Literal["Webhook"]
    spec: WebhookSpec


class ScheduleDocument(_Head):
    """Defines a schedule."""

    kind: Literal["Schedule"]
    spec: ScheduleSpec


Document = (
    AgentDocument
    | ToolDocument
    | WorkflowDocument
    | NetworkDocument
    | WebhookDocument
    | ScheduleDocument
)
Runnable = AgentDocument | WorkflowDocument | NetworkDocument
"""Definitions that a name starts; these share their names."""

MODELS: Final[dict[DocumentKind, type[Document]]] = {
    DocumentKind.AGENT: AgentDocument,
    DocumentKind.TOOL: ToolDocument,
    DocumentKind.WORKFLOW: WorkflowDocument,
    DocumentKind.NETWORK: NetworkDocument,
    DocumentKind.WEBHOOK: WebhookDocument,
    DocumentKind.SCHEDULE: ScheduleDocument,
}
BY_WRITTEN: Final = {kind.value.capitalize(): kind for kind in DocumentKind}


def kind_of(document: Document) -> DocumentKind:
    """Return what a document defines."""
    return BY_WRITTEN[document.kind]


def show_endpoint(url: AnyHttpUrl) -> str:
    """Write a URL without the slash at its end, so that paths can be put behind it."""
    return str(url).rstrip("/")
