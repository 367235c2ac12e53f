"""Settings shared by all services, as frozen blocks read from ``PENSTOCK_*`` variables.

A service subclasses a block and adds its own fields; ``__main__`` builds the object once and
passes it down. There is no module-level instance. Each description says why the default is so.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import quote_from_bytes

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]

_PREFIX: Final = "PENSTOCK_"


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Several texts, separated by commas; the one form of all settings that take a list."""


def _instance_id() -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())
    return f"{name[:53]}-{os.getpid()}"


class CoreSettings(BaseSettings):
    """What every Penstock process needs."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        populate_by_name=True,
    )

    nats_url: str = Field(
        default="nats://127.0.0.1:4222",
        description="Servers of the bus, several separated by commas. Loopback, because the "
        "server that `penstock dev` starts listens nowhere else.",
    )
    nats_user: str | None = Field(
        default=None, description="User name on the bus. None: the local server asks for none."
    )
    nats_password: SecretStr | None = Field(
        default=None, description="Password on the bus. None: the local server asks for none."
    )
    nats_token: SecretStr | None = Field(
        default=None, description="Token instead of user and password. None: not needed locally."
    )
    nats_credentials_file: Path | None = Field(
        default=None,
        description="A `.creds` file (JWT and key). None: only decentralised auth needs it.",
    )
    shards: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Parts into which runs are divided. 8: bounds the engine's replicas while "
        "each part costs only one consumer. Fixed for the life of the stream.",
    )
    streams_replicas: int = Field(
        default=1,
        ge=1,
        le=5,
        description="Copies of each stream. 1: a single server; 3 for a cluster.",
    )
    log_max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Size of the log (stream `RUNS`) above which the engine deletes the oldest "
        "ended runs from it, and above which no new run starts. None: only their age limits it.",
    )
    nats_monitor_url: str | None = Field(
        default=None,
        description="Monitoring HTTP of nats-server. With it a run is refused at once while the "
        "server's disk is full; without it, after the 30 s of an append without an answer.",
    )
    object_keep_days: float = Field(
        default=400.0,
        gt=0,
        description="Days that the object store keeps payloads above `claim_threshold_bytes`. 400: "
        "longer than any run may wait. Deletion of a run removes its own ones earlier.",
    )
    data_dir: Path = Field(
        default=Path(".penstock"),
        description="Folder of local files (SQLite, the embedded server's store). In the working "
        "directory, so that several stacks live side by side.",
    )
    log_level: LogLevel = Field(
        default="info", description="Least level logged. `info`: one line per event of note."
    )
    log_format: LogFormat = Field(
        default="json",
        description="`json` for machines, since services run in containers; `console` for people.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of /metrics, /healthz, /readyz. Loopback: they have no login. A "
        "container sets 0.0.0.0.",
    )
    metrics_port: int = Field(
        default=0,
        ge=-1,
        le=65535,
        description="Port of the same; 0 takes a free one (logged), so that many processes share "
        "a machine; -1 turns them off.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="Base URL of an OTLP/HTTP collector. None: spans are not recorded and trace "
        "headers are only passed on, which costs next to nothing.",
    )
    instance_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = Field(
        default_factory=_instance_id,
        description="Name of this process among its replicas. Host name and process id: unique, "
        "and stable for a restarted container.",
    )
    runner_ttl_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Time after the last heartbeat when a runner counts as lost. 60: longer than "
        "a restart of a bus server, short enough for an operator to notice.",
    )
    runner_heartbeat_seconds: float = Field(
        default_factory=lambda data: data["runner_ttl_seconds"] / 3,
        gt=0,
        description="Time between heartbeats. A third of `runner_ttl_seconds`, so that two may "
        "be lost.",
    )
    claim_threshold_bytes: int = Field(
        default=131_072,
        ge=1024,
        le=900_000,
        description="Payloads above this go to the object store. 128 KiB: small enough for fast "
        "reads of a run, far below the server's limit of 1 MiB.",
    )
    ack_wait_seconds: float = Field(
        default=10.0,
        ge=1,
        description="Silence after which the bus gives a message to another consumer. 10: work in "
        "progress reports every third of it, a dead process is replaced soon.",
    )
    lease_ttl_seconds: float = Field(
        default=10.0,
        ge=1,
        description="Life of a shard's lease. 10: as long as `ack_wait_seconds`, so that lease "
        "and messages of a dead engine move on together.",
    )

    @property
    def nats_servers(self) -> list[str]:
        """The servers of ``nats_url``, one by one."""
        return [url.strip() for url in self.nats_url.split(",") if url.strip()]

    def nats_auth(self) -> dict[str, str]:
        """Return what to log in with, as keyword arguments of nats-py's ``connect``."""
        options = {
            "user": self.nats_user,
            "password": _plain(self.nats_password),
            "token": _plain(self.nats_token),
            "user_credentials": _plain(self.nats_credentials_file),
        }
        return {name: value for name, value in options.items() if value is not None}


class DatabaseSettings(CoreSettings):
    """For a service that owns a database; subclasses name their SQLite file."""

    database_file: ClassVar[str] = "penstock.db"

    database_url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices(f"{_PREFIX}DATABASE_URL", "DATABASE_URL"),
        description="PostgreSQL or SQLite URL (secret: it may hold a password). None: a SQLite "
        "file of this service under `data_dir`, which needs no set-up.",
    )
    database_pool_size: int = Field(
        default=5,
        ge=1,
        description="Connections kept open. 5: writes are batched and nothing of the data path "
        "waits for the database.",
    )
    database_pool_recycle_seconds: int = Field(
        default=1800,
        ge=1,
        description="Age at which a connection is replaced. 1800: below the idle limits of "
        "common proxies and firewalls.",
    )

    @property
    def resolved_database_url(self) -> str:
        """The URL in force: the configured one, else the SQLite file of the service."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        file = os.fsencode((self.data_dir / self.database_file).absolute())
        return f"sqlite:///{quote_from_bytes(file)}"


def settings_markdown(blocks: Iterable[type[BaseSettings]]) -> str:
    """Render settings as Markdown: a table per block, each field only where it is first defined.

    Args:
        blocks: Settings classes, shared ones before the services' that inherit from them.
    """
    shown: set[str] = set()
    parts: list[str] = []
    for block in blocks:
        rows = [
            f"| {_variables(block, name)} | {_default(field)} | {_cell(field.description or '')} |"
            for name, field in block.model_fields.items()
            if name not in shown
        ]
        if not rows:
            continue
        shown.update(block.model_fields)
        summary = (block.__doc__ or "").strip().splitlines()[0]
        parts.append(
            f"## {block.__name__}\n\n{summary}\n\n"
            "| variable | default | meaning, and why this default |\n|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "\n".join(parts)


def _plain(value: SecretStr | Path | None) -> str | None:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return None if value is None else str(value)


def _variables(block: type[BaseSettings], name: str) -> str:
    alias = block.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        names = [choice for choice in alias.choices if isinstance(choice, str) and choice.isupper()]
    else:
        names = [f"{block.model_config.get('env_prefix', '')}{name}".upper()]
    return ", ".join(f"`{variable}`" for variable in names)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "derived"
    if field.is_required():
        return "required"
    value: Any = field.default
    return "none" if value is None else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
