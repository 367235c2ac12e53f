"""Settings of the gateway."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from penstock.settings import CommaList, CoreSettings


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class GatewaySettings(CoreSettings):
    """Settings of the gateway."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Loopback: nothing is public by accident; a container "
        "sets 0.0.0.0.",
    )
    port: int = Field(
        default=8080, ge=0, le=65535, description="Port to listen on. 8080: needs no privileges."
    )
    auth_required: bool = Field(
        default=True,
        description="Whether every request needs an API key. True: a gateway that forgot its "
        "settings is closed. `penstock dev` sets False, which only a loopback address may.",
    )
    dev_tenant: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Tenant of requests without a key where none is required. `default`: the one "
        "that the command line uses as well.",
    )
    max_body_bytes: int = Field(
        default=4 * 2**20,
        ge=1024,
        description="Largest request body; above it 413. 4 MiB: room for documents and "
        "webhooks, little enough for many at once.",
    )
    max_bundle_bytes: int = Field(
        default=256 * 2**20,
        ge=1024,
        description="Largest bundle that `POST /v1/runs/import` takes. 256 MiB: it is held in "
        "memory until its last hash is checked.",
    )
    bundle_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Signs the bundles of exported runs, and checks imported ones. None: bundles "
        "are not signed. With a key, only admins may import bundles that it has not signed.",
    )
    max_wait_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Longest wait that `Prefer: wait=N` is granted. 300: as long as one agent "
        "turn may take; beyond it clients poll or stream.",
    )
    generic_webhook_scheme: Literal["standard", "github"] = Field(
        default="standard",
        description="How deliveries to `POST /webhooks/generic` are signed. `standard`: it signs "
        "the id and the time of a delivery; `github` signs the body alone.",
    )
    history_messages: int = Field(
        default=50,
        ge=0,
        description="Messages of a session that a new run in it is given. 50: enough context for "
        "a chat, bounded prompts and facts.",
    )
    sse_keepalive_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Silence after which a comment is sent on an event stream. 15: below the idle "
        "limits of common proxies.",
    )
    sse_buffer_bytes: int = Field(
        default=1_048_576,
        ge=4096,
        description="Buffer for a slow reader of an event stream. 1 MiB: above it the log "
        "is read again when the reader is back, so that memory stays bounded and nothing is lost.",
    )
    sse_streams_per_key: int = Field(
        default=1000,
        ge=1,
        description="Event streams that one API key may have open at this process; above it 429. "
        "1000: room for a page of many readers behind one key; one key cannot take all sockets.",
    )
    cors_origins: CommaList = Field(
        default=(),
        description="Origins whose pages may call the API, such as `https://app.example`, "
        "separated by commas; also where no keys are needed. Empty: browsers keep other sites "
        "out.",
    )
    shutdown_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Time for requests in flight to finish when the process is stopped. 10: "
        "event streams end at once, since any replica resumes them.",
    )

    @model_validator(mode="after")
    def _closed_to_the_public(self) -> Self:
        if not self.auth_required and not is_loopback(self.host):
            raise ValueError(
                f"refusing to listen on {self.host} without authentication: set "
                "PENSTOCK_AUTH_REQUIRED=true or bind to a loopback address"
            )
        return self
