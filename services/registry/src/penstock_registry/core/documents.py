"""Documents: the form of what users write, and every fault of it at once, each with its place.

What is checked here can be seen in one document alone; what depends on other documents is the
compiler's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    UrlConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails

from penstock.contracts.errors import ErrorDetail, ErrorFamily, RejectedError
from penstock.contracts.ids import NodeId, Token
from penstock.contracts.plan import RetryPolicy
from penstock.contracts.rpc import DocumentKind

API_VERSION: Final = "penstock/v1"

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Endpoint = Annotated[AnyHttpUrl, UrlConstraints(max_length=2000)]
_ENDPOINT: Final[TypeAdapter[AnyHttpUrl]] = TypeAdapter(Endpoint)


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

_MODELS: Final[dict[DocumentKind, type[Document]]] = {
    DocumentKind.AGENT: AgentDocument,
    DocumentKind.TOOL: ToolDocument,
    DocumentKind.WORKFLOW: WorkflowDocument,
    DocumentKind.WEBHOOK: WebhookDocument,
}
_BY_WRITTEN: Final = {kind.value.capitalize(): kind for kind in DocumentKind}


def kind_of(document: Document) -> DocumentKind:
    """Return what a document defines."""
    return _BY_WRITTEN[document.kind]


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
        for kind, model in _MODELS.items()
    }


def invalid_document(details: Iterable[ErrorDetail]) -> RejectedError:
    """Return the error that says everything that is wrong with some documents."""
    found = tuple(details)
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return RejectedError("invalid_document", f"{first.path}: {first.message}{more}", details=found)


def at(prefix: str, path: str) -> str:
    """Return the place ``path`` inside the place ``prefix``."""
    if not prefix or not path:
        return prefix or path
    return f"{prefix}{path}" if path.startswith("[") else f"{prefix}.{path}"


def show_location(parts: Iterable[str | int]) -> str:
    """Write a place as ``spec.steps[0].id``."""
    text = ""
    for part in parts:
        text = at(text, f"[{part}]" if isinstance(part, int) else part)
    return text


def load_yaml(text: str, *, path: str = "") -> list[JsonValue]:
    """Return the documents of a YAML text as JSON values; empty ones are left out.

    Raises:
        RejectedError: ``invalid_document`` if it is not YAML, with line and column.
    """
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        detail = ErrorDetail(path=path, message=f"not YAML: {problem}{where}")
        raise invalid_document([detail]) from error


class _Loader(yaml.SafeLoader):
    """Reads YAML as JSON values: dates stay text, repeated keys are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is written twice", key.start_mark
                )
            seen.add(key.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_document(
    raw: JsonValue, *, path: str = "", expected: DocumentKind | None = None
) -> Document:
    """Read one document.

    Args:
        raw: The document as JSON.
        path: Where it stands among others, as a prefix of all places in errors.
        expected: The kind that it must be, where only one will do.

    Raises:
        RejectedError: ``invalid_document`` with every fault of its form.
    """
    if not isinstance(raw, dict):
        raise invalid_document([ErrorDetail(path=path, message="a document must be an object")])
    written = raw.get("kind")
    kind = _BY_WRITTEN.get(written) if isinstance(written, str) else None
    if kind is None or (expected is not None and kind is not expected):
        allowed = sorted(_BY_WRITTEN) if expected is None else [expected.value.capitalize()]
        message = f"got {written!r}" if "kind" in raw else "is missing"
        detail = ErrorDetail(path=at(path, "kind"), message=message, allowed=", ".join(allowed))
        raise invalid_document([detail])
    model = _MODELS[kind]
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        schema = model.model_json_schema(by_alias=True)
        raise invalid_document(_detail(found, schema, path) for found in _found(error)) from error


@dataclass(frozen=True, slots=True)
class Placed:
    """A document as it was given: its place among others, as written, and as read."""

    path: str
    raw: dict[str, JsonValue]
    document: Document


@dataclass(frozen=True, slots=True)
class Parsed:
    """What came of reading many documents: those that could be read, and what is wrong."""

    placed: list[Placed]
    faults: list[ErrorDetail]
    unreadable: frozenset[str]
    """Names of documents that could not be read, so that nobody calls them unknown."""


def parse_documents(raw: Iterable[JsonValue]) -> Parsed:
    """Read many documents; a text among them is YAML and may hold several."""
    placed: list[Placed] = []
    faults: list[ErrorDetail] = []
    unreadable: set[str] = set()
    for index, entry in enumerate(raw):
        path = f"documents[{index}]"
        try:
            parts = load_yaml(entry, path=path) if isinstance(entry, str) else [entry]
        except RejectedError as error:
            faults.extend(error.details)
            continue
        for number, part in enumerate(parts):
            inner = f"{path}[{number}]" if isinstance(entry, str) else path
            try:
                placed.append(place_document(part, path=inner))
            except RejectedError as error:
                faults.extend(error.details)
                unreadable.add(_name_in(part))
    seen: set[tuple[str, str]] = set()
    for one in placed:
        key = (one.document.kind, one.document.metadata.name)
        if key in seen:
            place = at(one.path, "metadata.name")
            faults.append(ErrorDetail(path=place, message=f"{key[1]!r} is defined twice"))
        seen.add(key)
    return Parsed(placed, faults, frozenset(unreadable))


def _name_in(raw: JsonValue) -> str:
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


def place_document(
    raw: JsonValue, *, path: str = "", expected: DocumentKind | None = None
) -> Placed:
    """Read one document and keep it as it was written; see `parse_document`.

    Raises:
        RejectedError: ``invalid_document``.
    """
    document = parse_document(raw, path=path, expected=expected)
    return Placed(path, raw if isinstance(raw, dict) else {}, document)


def parse_endpoint(url: str, *, path: str) -> str:
    """Return a URL of HTTP or HTTPS as documents carry it.

    Raises:
        RejectedError: ``invalid_document`` if it is none.
    """
    try:
        return show_endpoint(_ENDPOINT.validate_python(url))
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise invalid_document(
            [ErrorDetail(path=path, message=message, allowed="http:// or https:// URL")]
        ) from error


def show_endpoint(url: AnyHttpUrl) -> str:
    """Write a URL without the slash at its end, so that paths can be put behind it."""
    return str(url).rstrip("/")


def merge_patch(document: JsonValue, patch: JsonValue) -> JsonValue:
    """Return ``document`` changed by a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


_LIMITS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_LENGTHS: Final = {
    "min_length": "at least {} long",
    "max_length": "at most {} long",
}


def _found(error: ValidationError) -> list[ErrorDetails]:
    """Return the faults, without lists that are short only of items which are faults themselves."""
    found = error.errors(include_url=False)
    inner = {one["loc"][:depth] for one in found for depth in range(len(one["loc"]))}
    return [one for one in found if one["type"] != "too_short" or one["loc"] not in inner]


def _detail(found: ErrorDetails, schema: dict[str, Any], prefix: str) -> ErrorDetail:
    context: Mapping[str, Any] = found.get("ctx", {})
    location = found["loc"]
    allowed: str | None = None
    match found["type"]:
        case "extra_forbidden":
            message = f"there is no field {location[-1]!r} here"
            allowed = ", ".join(_fields(schema, location[:-1])) or None
        case "literal_error" | "enum":
            message = f"got {_shown(found['input'])}"
            allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        case "missing":
            message = "is missing"
        case "string_pattern_mismatch":
            message = f"got {_shown(found['input'])}"
            allowed = str(context["pattern"])
        case _:
            message = f"{found['msg']}, got {_shown(found['input'])}"
            limits = [f"{sign} {context[key]:g}" for key, sign in _LIMITS.items() if key in context]
            limits += [
                text.format(context[key]) for key, text in _LENGTHS.items() if key in context
            ]
            allowed = ", ".join(limits) or None
    # The last part of a key's own error is pydantic's marker, not a place.
    parts = [part for part in location if part != "[key]"]
    return ErrorDetail(path=at(prefix, show_location(parts)), message=message, allowed=allowed)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields(schema: dict[str, Any], location: Iterable[str | int]) -> list[str]:
    """Return the names of the fields that a place in a document can have, from its JSON Schema."""
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        for _ in range(10):
            if "$ref" in node:
                node = definitions[node["$ref"].rsplit("/", 1)[1]]
            elif "anyOf" in node:
                node = next((part for part in node["anyOf"] if part.get("type") != "null"), {})
            else:
                break
        return node

    node = resolve(schema)
    for part in location:
        if isinstance(part, int):
            node = resolve(node.get("items", {}))
        else:
            inner = node.get("properties", {}).get(part) or node.get("additionalProperties")
            node = resolve(inner) if isinstance(inner, dict) else {}
    return sorted(node.get("properties", {}))
