"""Requests to the registry and its replies, and the envelope that all replies travel in.

Every reply is ``{"ok": true, "result": ...}`` or ``{"ok": false, "error": ...}``. Requests name
their tenant: the caller has checked its access to that tenant.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, JsonValue

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import Record
from penstock.contracts.ids import Token
from penstock.contracts.runners import RunnerRecord

PageSize = Annotated[int, Field(ge=1, le=1000)]
Role = Literal["admin", "operator", "viewer", "runner"]


class Reply(Record):
    """The envelope: exactly one of ``result`` (may be null) and ``error`` counts, by ``ok``."""

    ok: bool
    result: JsonValue = None
    error: ErrorInfo | None = None


class DocumentKind(StrEnum):
    """What a document defines; also the singular of its path in the API."""

    AGENT = "agent"
    TOOL = "tool"
    WORKFLOW = "workflow"
    NETWORK = "network"
    WEBHOOK = "webhook"
    SCHEDULE = "schedule"


# Definitions


class ApplyDocuments(Record):
    """Store documents, all or none; with ``publish`` they come into force as well."""

    tenant: Token
    documents: tuple[JsonValue, ...]
    """Each a document as JSON, or a text of one or more YAML documents."""
    publish: bool = True


class AppliedDefinition(Record):
    """What ``apply`` did to one definition."""

    kind: DocumentKind
    name: Token
    version: int | None = None
    """The version in force afterwards; ``None`` where none ever was published."""
    plan_digest: str | None = None
    """Digest of the version in force; of the plan, for agents and workflows."""
    change: Literal["created", "updated", "unchanged"]
    dependant: bool = False
    """It was not among the documents: it was published anew because it uses one of them."""


class Applied(Record):
    """What ``apply`` did, in the order of publishing."""

    results: tuple[AppliedDefinition, ...]


class GetDefinition(Record):
    """Read one definition."""

    tenant: Token
    kind: DocumentKind
    name: Token


class Definition(Record):
    """A definition as stored; the version in force may be an older one."""

    tenant: Token
    kind: DocumentKind
    name: Token
    description: str = ""
    labels: dict[str, str] = {}
    document: JsonValue
    revision: int
    """Counts the changes; as ``expected_revision`` it limits a change to the revision read."""
    origin: Literal["document", "registration"] = "document"
    """``registration``: an agent that registered itself by HTTP."""
    published_version: int | None = None
    plan_digest: str | None = None
    status: Literal["draft", "published", "archived"] = "draft"
    """``archived``: it was taken out of force; nothing of it can be started."""
    created_at: AwareDatetime
    updated_at: AwareDatetime


class ListDefinitions(Record):
    """Read the definitions of one kind, ordered by name."""

    tenant: Token
    kind: DocumentKind
    limit: PageSize = 100
    after: str | None = None
    """The ``next_after`` of the page before."""


class DefinitionPage(Record):
    """Some definitions; there are more if ``next_after`` is given."""

    items: tuple[Definition, ...]
    next_after: str | None = None


class PutDefinition(Record):
    """Store one document under its own name."""

    tenant: Token
    kind: DocumentKind
    document: JsonValue
    publish: bool = False
    mode: Literal["upsert", "create", "replace"] = "upsert"
    """``create`` refuses a name that exists, ``replace`` one that does not."""
    name: Token | None = None
    """Where given, the document's own name must be the same."""
    expected_revision: int | None = None


class PatchDefinition(Record):
    """Change a stored document by a JSON merge patch (RFC 7396) over all of it."""

    tenant: Token
    kind: DocumentKind
    name: Token
    patch: dict[str, JsonValue]
    publish: bool = False
    expected_revision: int | None = None


class DeleteDefinition(Record):
    """Take a definition out of force and delete it; its versions stay."""

    tenant: Token
    kind: DocumentKind
    name: Token


class Deleted(Record):
    """A definition is gone."""

    kind: DocumentKind
    name: Token


class PublishDefinition(Record):
    """Bring a definition into force as it is stored now, or an older ``version`` of it again."""

    tenant: Token
    kind: DocumentKind
    name: Token
    version: int | None = Field(default=None, ge=1)


class ArchiveDefinition(Record):
    """Take a definition and all of its versions out of force; publishing brings it back."""

    tenant: Token
    kind: DocumentKind
    name: Token


class Canary(Record):
    """Another version, to which some of the runs go."""

    version: int = Field(ge=1)
    weight: int = Field(ge=1, le=100)
    """Of a hundred runs so many; which ones, their ids decide."""


class SetAlias(Record):
    """Let an alias stand for a version, and for some runs for another one."""

    tenant: Token
    kind: DocumentKind
    name: Token
    alias: Token
    version: int = Field(ge=1)
    canary: Canary | None = None


class DeleteAlias(Record):
    """Remove an alias."""

    tenant: Token
    kind: DocumentKind
    name: Token
    alias: Token


class ListAliases(Record):
    """Read the aliases of a definition, by name."""

    tenant: Token
    kind: DocumentKind
    name: Token


class Alias(Record):
    """A name for a version; runs are started by ``name@alias``."""

    name: Token
    alias: Token
    version: int
    canary: Canary | None = None
    updated_at: AwareDatetime


class Aliases(Record):
    """All aliases of a definition."""

    items: tuple[Alias, ...]


class ListVersions(Record):
    """Read the versions of a definition, newest first."""

    tenant: Token
    kind: DocumentKind
    name: Token
    limit: PageSize = 100
    before: int | None = None
    """The ``next_before`` of the page before."""


class Version(Record):
    """One published version; it never changes."""

    version: int
    plan_digest: str
    in_force: bool
    document: JsonValue
    published_at: AwareDatetime


class VersionPage(Record):
    """Some versions; there are more if ``next_before`` is given."""

    items: tuple[Version, ...]
    next_before: int | None = None


# Runners and agents that register by HTTP


class RunnerState(StrEnum):
    """What the registry thinks of a runner."""

    LIVE = "live"
    SUSPECT = "suspect"
    """Half its TTL has passed without a heartbeat."""
    DRAINING = "draining"
    LOST = "lost"
    """Its TTL has passed. It is listed for a while."""


class ListRunners(Record):
    """Read the runners that a tenant's work may reach, ordered by kind, queue and id."""

    tenant: Token
    kind: Token | None = None
    queue: Token | None = None
    state: RunnerState | None = None


class RunnerView(Record):
    """A runner with its state."""

    runner: RunnerRecord
    state: RunnerState
    silent_seconds: float
    """Time since its last heartbeat."""


class Runners(Record):
    """All runners asked for."""

    items: tuple[RunnerView, ...]


class RegisterAgent(Record):
    """Register an agent that is asked by HTTP, or renew its registration."""

    tenant: Token
    agent_id: Token
    """Also the name under which it is invoked."""
    name: str = Field(default="", max_length=200)
    """For people."""
    endpoint: str
    """Base URL; it is asked at ``{endpoint}/invoke``."""
    description: str = ""
    version: str = ""
    labels: dict[str, str] = {}
    ttl_seconds: float | None = Field(default=None, ge=1, le=86_400)
    """Life of the registration after each heartbeat; the registry's default where not given."""


class BeatAgent(Record):
    """The heartbeat of an agent that registered by HTTP."""

    tenant: Token
    agent_id: Token
    in_flight: int = Field(default=0, ge=0)
    draining: bool = False


class DeregisterAgent(Record):
    """An agent that registered by HTTP goes away for good."""

    tenant: Token
    agent_id: Token


class AgentRegistration(Record):
    """How long an agent's registration holds, and how often it should beat."""

    agent_id: Token
    name: str
    endpoint: str
    ttl_seconds: float
    heartbeat_seconds: float
    expires_at: AwareDatetime
    change: Literal["created", "updated", "unchanged"]


# API keys


class CreateKey(Record):
    """Make an API key."""

    tenant: Token
    name: str = Field(default="", max_length=200)
    roles: tuple[Role, ...] = Field(default=("operator",), min_length=1)
    expires_at: AwareDatetime | None = None


class KeyInfo(Record):
    """An API key without its secret."""

    key_id: str
    tenant: Token
    name: str = ""
    roles: tuple[Role, ...]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None


class CreatedKey(Record):
    """A new API key; the only time that its secret can be read."""

    key: KeyInfo
    secret: str


class ListKeys(Record):
    """Read a tenant's API keys, newest first."""

    tenant: Token
    revoked: bool = False
    """Include keys that were revoked."""


class Keys(Record):
    """A tenant's API keys."""

    items: tuple[KeyInfo, ...]


class RevokeKey(Record):
    """Make an API key worthless at once."""

    tenant: Token
    key_id: str
