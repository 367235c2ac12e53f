"""Documents: the form of what users write.

What can be said of one field by itself is said here, in types; the rest is in ``checks``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    UrlConstraints,
)

from penstock.contracts.errors import ErrorFamily
from penstock.contracts.ids import NodeId, Token
from penstock.contracts.plan import RetryPolicy
from penstock.contracts.rpc import DocumentKind

API_VERSION: Final = "penstock/v1"

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Endpoint = Annotated[AnyHttpUrl, UrlConstraints(max_length=2000)]
ENDPOINT: Final[TypeAdapter[AnyHttpUrl]] = TypeAdapter(Endpoint)


class Part(BaseModel):
    """Base of every part of a document: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False)


class RetrySpec(RetryPolicy):
    """When and how often a failed step is tried again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def policy(self) -> RetryPolicy:
        """Return it as plans carry it."""
        return RetryPolicy(**self.model_dump())


class Metadata(Part):
    """What a definition is called."""

    name: Token
    description: str = Field(default="", max_length=4000)
    labels: dict[str, str] = {}


class ScriptedCall(Part):
    """A tool call that a scripted turn makes."""

    name: Token
    arguments: dict[str, JsonValue] = {}
    id: str | None = None


class ScriptedError(Part):
    """The error that a scripted turn fails with."""

    code: Token = "scripted_error"
    family: ErrorFamily = ErrorFamily.TRANSIENT
    message: str = "the script says so"
    retry_after_seconds: float | None = Field(default=None, ge=0)
    attempts: int | None = Field(default=None, ge=1)
    """Fail only the first so many attempts; all of them if not given."""


class ScriptedTurn(Part):
    """What a scripted model answers in one turn."""

    text: str = ""
    deltas: tuple[str, ...] | None = None
    """Pieces in which the text is streamed; by words where not given."""
    tool_calls: tuple[ScriptedCall, ...] = ()
    delay_seconds: float = Field(default=0.0, ge=0, le=3600)
    error: ScriptedError | None = None


class Script(Part):
    """The turns of a scripted model, which needs no provider and always answers the same."""

    turns: tuple[ScriptedTurn, ...] = Field(min_length=1)


class AgentSpec(Part):
    """An agent: a model with instructions and tools, or an endpoint that is one."""

    model: str | None = Field(default=None, min_length=1, max_length=200)
    """``provider/name``, such as ``openai/gpt-5-mini``; ``scripted/...`` plays ``script``, or says
    what it was told where there is none."""
    instructions: str = ""
    tools: tuple[Token, ...] = ()
    max_turns: int = Field(default=10, ge=1, le=1000)
    parameters: dict[str, JsonValue] = {}
    """Passed to the model: temperature, max_tokens, api_base, ..."""
    script: Script | None = None
    endpoint: Endpoint | None = None
    """Base URL of an agent that is asked by HTTP and answers by SSE, instead of a model."""
    queue: Token = "default"
    stream: bool = True
    timeout_seconds: float = Field(default=300.0, gt=0, le=86_400)
    retry: RetrySpec = RetrySpec()


class BuiltinSpec(Part):
    """A tool that comes with the tool-runner, by the document's name."""

    queue: Token = "builtin"


class SecretHeader(Part):
    """A header's value by reference; only the tool-runner ever sees the secret itself."""

    secret: SecretName
    """``NAME`` of the variable ``PENSTOCK_SECRET_NAME`` in the tool-runner's environment."""
    prefix: str = ""
    """Put before it, such as ``Bearer`` with a space."""


class HttpSpec(Part):
    """A tool that is an HTTP request. Its strings are templates over ``arguments``."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str = Field(min_length=1, max_length=4000)
    headers: dict[str, str | SecretHeader] = {}
    query: dict[str, JsonValue] = {}
    json_body: JsonValue = Field(default=None, alias="json")
    body: str | None = None
    """A body of text, instead of ``json``."""
    response: JsonValue = "{{ body }}"
    """Template of the output over ``status``, ``headers``, ``body`` and ``arguments``."""
    timeout_seconds: float = Field(default=30.0, gt=0, le=3600)
    max_response_bytes: int = Field(default=1024 * 1024, ge=1, le=64 * 1024 * 1024)
    queue: Token = "http"


class RunnerSpec(Part):
    """A tool that a runner of your own serves, by the document's name."""

    queue: Token


class SourceSpec(Part):
    """Where a parameter comes from; see `penstock.contracts.plan.ToolParameter`."""

    source: Literal["agent", "system", "default"] = "agent"
    value: JsonValue = None


class ToolSpec(Part):
    """A tool: exactly one of ``builtin``, ``http`` and ``runner``."""

    builtin: BuiltinSpec | None = None
    http: HttpSpec | None = None
    runner: RunnerSpec | None = None
    parameters: dict[str, JsonValue] = {"type": "object", "properties": {}}
    sources: dict[str, SourceSpec] = {}
    retry: RetrySpec = RetrySpec()
    timeout_seconds: float = Field(default=60.0, gt=0, le=86_400)


class StepSpec(Part):
    """One step of a workflow: exactly one of ``agent`` and ``tool``."""

    id: NodeId
    agent: Token | None = None
    tool: Token | None = None
    input: JsonValue = None
    """Template; where not given, an agent gets the run's input, a tool no arguments."""
    depends_on: tuple[NodeId, ...] | None = None
    """Steps that must be done before; where not given the one above, ``[]`` for none."""
    retry: RetrySpec | None = None
    timeout_seconds: float | None = Field(default=None, gt=0, le=86_400)


class WorkflowSpec(Part):
    """A workflow: steps that need one another."""

    steps: tuple[StepSpec, ...] = Field(min_length=1, max_length=1000)
    output: JsonValue = None
    """Template of the run's output; ``None``: the output of the last step."""
    timeout_seconds: float = Field(default=3600.0, gt=0, le=30 * 86_400)


class WebhookSpec(Part):
    """A webhook: what a delivery to ``/hooks/{tenant}/{name}`` starts."""

    target: Token
    secrets: tuple[SecretName, ...] = ()
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


class WebhookDocument(_Head):
    """Defines a webhook."""

    kind: Literal["Webhook"]
    spec: WebhookSpec


Document = AgentDocument | ToolDocument | WorkflowDocument | WebhookDocument

MODELS: Final[dict[DocumentKind, type[Document]]] = {
    DocumentKind.AGENT: AgentDocument,
    DocumentKind.TOOL: ToolDocument,
    DocumentKind.WORKFLOW: WorkflowDocument,
    DocumentKind.WEBHOOK: WebhookDocument,
}
BY_WRITTEN: Final = {kind.value.capitalize(): kind for kind in DocumentKind}


def kind_of(document: Document) -> DocumentKind:
    """Return what a document defines."""
    return BY_WRITTEN[document.kind]


def json_schemas() -> dict[DocumentKind, dict[str, Any]]:
    """Return the JSON Schema (2020-12) of each kind of document, for editors and for docs."""
    return {
        kind: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"Penstock {kind.value}",
            **{
                key: value
                for key, value in model.model_json_schema(by_alias=True).items()
                if key != "title"
            },
        }
        for kind, model in MODELS.items()
    }


def show_endpoint(url: AnyHttpUrl) -> str:
    """Write a URL without the slash at its end, so that paths can be put behind it."""
    return str(url).rstrip("/")
