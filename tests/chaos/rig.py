"""What chaos is brought upon: a stack, its ledger, its workflow, and how large all that is."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from penstock.child import Service, free_ports
from penstock.settings import CoreSettings
from penstock.stack import SERVICES, Stack, StackOptions

ACK_WAIT_SECONDS = 4.0
LEASE_SECONDS = 4.0
RECOVERY_GOAL_SECONDS = 15.0
SHARDS = 8
EFFECTS = {"chaos": 3, "winding": 3, "errand": 1}
"""By workflow: steps of a run that have an effect in the ledger."""
CROWD = ("chaos", "chaos", "chaos", "chaos", "winding")
"""What the crowd starts, in turns: five steps in a row; and a run that waits for all sorts of
things: a map, a timer, a person's approval, a child run (an errand)."""
PARENT = "winding"
CHILD = "errand"

DEFINITIONS = """
apiVersion: penstock/v1
kind: Tool
metadata: {name: effect}
spec:
  runner: {queue: ledger}
  parameters: {type: object, properties: {seconds: {type: number}}}
  timeout_seconds: 600
  retry: {max_attempts: 5, initial_seconds: 0.2}
---
apiVersion: penstock/v1
kind: Tool
metadata: {name: multiply}
spec:
  builtin: {}
  parameters: {type: object, properties: {a: {type: number}, b: {type: number}}}
  timeout_seconds: 600
  retry: {max_attempts: 5, initial_seconds: 0.2}
---
apiVersion: penstock/v1
kind: Agent
metadata: {name: thinker}
spec:
  model: scripted/thinker
  timeout_seconds: 600
  retry: {max_attempts: 5, initial_seconds: 0.2}
  script:
    turns:
      - text: "thought about it"
        deltas: ["thought ", "about ", "it"]
        delay_seconds: 0.2
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: chaos}
spec:
  timeout_seconds: 1800
  steps:
    - {id: first, tool: effect, input: {seconds: 0.5}}
    - {id: think, agent: thinker, input: "{{ input.key }}"}
    - {id: sum, tool: multiply, input: {a: 6, b: 7}}
    - {id: second, tool: effect, input: {seconds: 0.5}}
    - {id: third, tool: effect, input: {seconds: 0.5}}
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: errand}
spec:
  timeout_seconds: 1800
  steps:
    - {id: run, tool: effect, input: {seconds: 0.2}}
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: winding}
spec:
  timeout_seconds: 1800
  steps:
    - id: each
      map:
        over: "[1, 2, 3]"
        concurrency: 2
        steps:
          - {id: part, tool: effect, input: {seconds: 0.2}}
    - {id: rest, wait: {for: 1s}}
    - {id: agreed, approval: {message: "Go on?", expires: 20m}}
    - {id: child, workflow: {name: errand}}
    - {id: last, agent: thinker, input: "{{ input.key }}"}
"""


@dataclass(frozen=True)
class Size:
    """How much chaos there is."""

    runs: int
    """In flight at a time, on one server."""
    blows: int
    cluster_runs: int
    cluster_rounds: int
    """Rounds of blows to the three servers of a cluster."""
    postgres_down_seconds: float
    replica_seconds: float
    followed: int
    ledger_concurrency: int
    kills_at_a_failpoint: int
    matrix_seconds: float


FULL = Size(
    runs=2000,
    blows=50,
    cluster_runs=500,
    cluster_rounds=3,
    postgres_down_seconds=60,
    replica_seconds=60,
    followed=60,
    ledger_concurrency=32,
    kills_at_a_failpoint=20,
    matrix_seconds=2400,
)
SMALL = Size(
    runs=150,
    blows=12,
    cluster_runs=60,
    cluster_rounds=1,
    postgres_down_seconds=8,
    replica_seconds=8,
    followed=20,
    ledger_concurrency=24,
    kills_at_a_failpoint=1,
    matrix_seconds=240,
)


def chosen_size() -> Size:
    """Return the size that ``CHAOS_SIZE`` names: ``full``, or the small one."""
    return FULL if os.environ.get("CHAOS_SIZE") == "full" else SMALL


def chosen_seed() -> int:
    """Return the seed that ``CHAOS_SEED`` names, else a new one; it is printed."""
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1_000_000))
    print(f"\nseed {seed}: replay with CHAOS_SEED={seed}")  # noqa: T201 - to replay it
    return seed


def replicas_of(services: tuple[Service, ...], names: tuple[str, ...]) -> tuple[Service, ...]:
    """Return the services with a second one, ``NAME-2``, of each that is named."""
    extra: list[Service] = []
    for service in services:
        if service.name in names:
            env = dict(service.env)
            if service.name == "gateway":
                env["PENSTOCK_PORT"] = str(free_ports(1)[0])
            extra.append(Service(f"{service.name}-2", service.module, env))
    return (*services, *extra)


@dataclass
class Rig:
    """A stack to be hit, and where its traces are."""

    directory: Path
    ledger_concurrency: int
    replicated: tuple[str, ...] = ("engine",)
    """Services of which there are two; runners of the ledger always are."""
    database_urls: Mapping[str, str] = field(default_factory=dict)
    """By service; SQLite where there is none."""
    nats_url: str = ""
    """The bus, if not the stack's own server."""
    streams_replicas: int = 1

    def __post_init__(self) -> None:
        self.ledger = self.directory / "ledger.jsonl"
        self.ledger.touch()
        env = {
            "PENSTOCK_ACK_WAIT_SECONDS": str(ACK_WAIT_SECONDS),
            "PENSTOCK_LEASE_TTL_SECONDS": str(LEASE_SECONDS),
            "PENSTOCK_RECONCILE_SECONDS": "5",
            "PENSTOCK_SHARDS": str(SHARDS),
            "PENSTOCK_STREAMS_REPLICAS": str(self.streams_replicas),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])))
            ),
            # Whatever the tests' own environment says of databases is not for these.
            "DATABASE_URL": "",
        }
        options = StackOptions(
            data_dir=str(self.directory / "stack"), port=0, nats_port=0, services=self._services()
        )
        self.stack = Stack(options, env=env)

    def _services(self) -> tuple[Service, ...]:
        ledger = {"LEDGER": str(self.ledger), "LEDGER_CONCURRENCY": str(self.ledger_concurrency)}
        ledgers = tuple(Service(f"ledger-{n}", "tests.chaos.ledger_runner", ledger) for n in (1, 2))
        services = replicas_of((*SERVICES, *ledgers), self.replicated)
        return tuple(
            Service(service.name, service.module, {**service.env, **self._overrides(service.name)})
            for service in services
        )

    def _overrides(self, name: str) -> dict[str, str]:
        overrides = {}
        if url := self.database_urls.get(name.removesuffix("-2")):
            overrides["PENSTOCK_DATABASE_URL"] = url
        if self.nats_url:
            # The stack's own server idles beside the cluster.
            overrides["PENSTOCK_NATS_URL"] = self.nats_url
        return overrides

    @property
    def settings(self) -> CoreSettings:
        """Settings of somebody who looks at the bus."""
        return CoreSettings(
            nats_url=self.nats_url or self.stack.nats_url,
            shards=SHARDS,
            streams_replicas=self.streams_replicas,
        )

    @property
    def names(self) -> list[str]:
        """Names of all processes, the stack's own server of the bus included."""
        return list(self.stack.state.processes)

    def metrics_port(self, name: str) -> int:
        """Return where a service tells its metrics."""
        port = self.stack.state.processes[name].metrics_port
        assert port is not None
        return port

    def alive_as_another(self, name: str, before: int) -> bool:
        """Tell whether the successor of a killed process is ready."""
        process = self.stack.state.processes[name]
        return process.pid not in (None, before) and process.ready is not False


async def define(client: httpx.AsyncClient) -> None:
    """Store and publish what the crowd runs."""
    applied = await client.post(
        "/v1/apply", content=DEFINITIONS, headers={"Content-Type": "application/yaml"}
    )
    assert applied.status_code == 200, applied.text
