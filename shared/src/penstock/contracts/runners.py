"""Live runners, stop requests to them, and API keys."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime

from penstock.contracts.facts import Record
from penstock.contracts.ids import Token
from penstock.contracts.json import Json


class Capability(Record):
    """One thing that a runner can do: an agent or a tool by name, with its arguments' schema."""

    name: Token
    description: str = ""
    parameters: dict[str, Json] = {"type": "object"}


class StepInWork(Record):
    """A step that a runner works on."""

    tenant: Token
    run_id: Token
    step_id: Token
    attempt: int
    started_at: AwareDatetime
    progress: str = ""
    """The details of its handler's last heartbeat, as text of at most 200 characters."""


class RunnerRecord(Record):
    """A live runner, as its heartbeat describes it. The entry expires with the heartbeat's TTL."""

    runner_id: Token
    kind: Token
    queue: Token
    version: str = ""
    host: str = ""
    endpoint: str | None = None
    capabilities: tuple[Capability, ...] = ()
    concurrency: int = 1
    in_flight: int = 0
    draining: bool = False
    steps: tuple[StepInWork, ...] = ()
    """Steps in work for a second or longer, the oldest first; at most 100."""
    started_at: AwareDatetime
    beat_at: AwareDatetime
    ttl_seconds: float

    @property
    def pool(self) -> str:
        """The pool of the runner: ``{kind}.{queue}``."""
        return f"{self.kind}.{self.queue}"


class StopRequest(Record):
    """Message on a run's stop subject; an empty body stops the whole run."""

    steps: tuple[Token, ...] = ()
    """The steps to be stopped; none: everything that works for the run."""
    attempt: int = 0
    """The last attempt that is to be stopped; 0: all attempts."""


class LimitRecord(Record):
    """The state of a rate limit that all runners share; instants in seconds since the epoch."""

    name: str
    """A queue such as ``tool.http``, a provider or a model."""
    calls_at: float = 0.0
    """When all calls so far would have been made at the allowed rate."""
    tokens_at: float = 0.0
    """The same for the tokens that they took."""
    free_at: float = 0.0
    """When the last one that was turned away is to come back."""
    held: dict[str, float] = {}
    """Who holds a place, and until when without renewing it."""


class BlockRecord(Record):
    """A provider that has asked to be left alone for a while."""

    name: str
    until: AwareDatetime


class KeyRecord(Record):
    """Value of bucket ``keys``, whose keys are SHA-256 digests of API keys."""

    key_id: str
    tenant: Token
    roles: tuple[Literal["admin", "operator", "viewer", "runner"], ...] = ("operator",)
    expires_at: AwareDatetime | None = None


WebhookScheme = Literal[
    "standard",
    "github",
    "stripe",
    "slack",
    "shopify",
    "svix",
    "gitlab",
    "linear",
    "sentry",
    "bitbucket",
    "meta",
    "hmac",
]
"""How the sender of a webhook signs; ``hmac``: as the webhook's document describes it."""


class HmacForm(Record):
    """A signature by HMAC in a header."""

    header: str
    """Name of the header of the signature."""
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    """Precedes the encoded signature in the header."""
    signed: str = "{body}"
    """The signed text, with ``{id}``, ``{timestamp}`` (seconds) and, at its end, ``{body}``."""
    timestamp_header: str | None = None
    id_header: str | None = None
    """Name of the header that identifies the delivery."""


class WebhookRecord(Record):
    """Value of bucket ``webhooks``: what a delivery to ``/hooks/{tenant}/{name}`` starts."""

    name: Token
    target: Token
    """Name of the workflow or agent to start."""
    secrets: tuple[str, ...] = ()
    """Names of secrets, of which any may have signed (the gateway resolves ``NAME`` from
    ``PENSTOCK_SECRET_NAME``); none: signatures are not checked."""
    input: Json = "{{ payload }}"
    """Template of the run's input over ``payload`` and ``headers``."""
    tolerance_seconds: float = 300.0
    scheme: WebhookScheme = "standard"
    hmac: HmacForm | None = None
    """The signature, where the scheme is ``hmac``."""
    verify_token: str | None = None
    """Name of the secret that the sender shows when it verifies the address (``meta``)."""
