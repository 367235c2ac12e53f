"""Gateways on free ports, and an engine that the test plays itself."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from penstock.bus import topology
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    NodeRecord,
    PendingRequest,
    RunEnded,
    RunFact,
    RunStatus,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    fact_bytes,
)
from penstock.contracts.ids import shard_of
from penstock.contracts.json import JsonObject
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.pending import (
    CorrelationRecord,
    PendingRecord,
    call_digest,
    correlation_hash,
)
from penstock.contracts.plan import (
    CompiledTool,
    Plan,
    PublishedVersion,
    ToolNode,
)
from penstock.contracts.runners import WebhookRecord
from penstock.contracts.structs import encode
from penstock.contracts.usage import Usage
from penstock.embedded import NatsServer
from penstock.runs.state import Entry
from penstock.settings import CoreSettings
from penstock_gateway.app import create_app
from penstock_gateway.gateway import Gateway
from penstock_gateway.main import create_server
from penstock_gateway.settings import GatewaySettings

SHARDS = 8


@dataclass
class Running:
    """A gateway that listens, and a client that talks to it."""

    url: str
    gateway: Gateway
    client: httpx.AsyncClient


class Engine:
    """States facts as the engine and its runners would."""

    def __init__(self, bus: Bus, tenant: str) -> None:
        self.bus = bus
        self.tenant = tenant
        settings = CoreSettings()
        claims = Claims(bus, settings.claim_threshold_bytes)
        self.reader = LogReader(bus, claims)
        self.writer = LogWriter(bus, settings, claims)
        self._subscriptions: list[Any] = []

    async def start(self) -> None:
        await topology.ensure(self.bus, CoreSettings())
        await self.writer.start()

    async def publish(
        self,
        name: str,
        kind: DefinitionKind = DefinitionKind.AGENT,
        version: int = 1,
        input_schema: JsonObject | None = None,
    ) -> None:
        value = PublishedVersion(
            name=name,
            kind=kind,
            version=version,
            plan_digest="d" * 64,
            input_schema=input_schema,
        )
        await Bucket(self.bus, subjects.PUBLISHED).put(
            subjects.published_key(self.tenant, name), value.model_dump_json().encode()
        )

    async def publish_plan(self, plan: Plan) -> None:
        """Publish a plan as the registry does."""
        await Bucket(self.bus, subjects.PLANS).put(plan.digest(), plan.to_bytes())
        value = PublishedVersion(
            name=plan.name, kind=plan.kind, version=1, plan_digest=plan.digest()
        )
        await Bucket(self.bus, subjects.PUBLISHED).put(
            subjects.published_key(self.tenant, plan.name), value.model_dump_json().encode()
        )

    async def node_record(self, run_id: str, decision: int, *node_records: NodeRecord) -> int:
        """Decide nothing but node records; index those that are open, as the engine does."""
        fact = StateChanged(
            occurred_at=datetime.now(UTC), decision=Decision(cause_seq=0, node_records=node_records)
        )
        seq = await self.state(subjects.out(self.prefix(run_id), decision, "state"), fact)
        for one in node_records:
            await self.park(run_id, one)
        return seq

    async def park(self, run_id: str, node_record: NodeRecord) -> None:
        bucket = Bucket(self.bus, subjects.PENDING)
        key = subjects.pending_key(self.tenant, run_id, node_record.record_id)
        if node_record.status != "open":
            await bucket.delete(key)
            return
        record = PendingRecord(
            tenant=self.tenant,
            run_id=run_id,
            shard=shard_of(run_id, SHARDS),
            name="echo",
            node_record=node_record,
            asked_at=datetime.now(UTC),
        )
        await bucket.put(key, record.model_dump_json().encode())

    async def correlate(self, run_id: str, correlation: str) -> None:
        record = CorrelationRecord(run_id=run_id, shard=shard_of(run_id, SHARDS))
        key = subjects.correlation_key(self.tenant, correlation_hash(correlation), run_id)
        await Bucket(self.bus, subjects.PENDING).put(key, record.model_dump_json().encode())

    async def define_webhook(self, record: WebhookRecord) -> None:
        await Bucket(self.bus, subjects.WEBHOOKS).put(
            subjects.webhook_key(self.tenant, record.name), record.model_dump_json().encode()
        )

    def prefix(self, run_id: str) -> str:
        return subjects.run_prefix(self.tenant, shard_of(run_id, SHARDS), run_id)

    async def state(self, subject: str, fact: RunFact) -> int:
        return await self.writer.append(subject, fact_bytes(fact))

    async def log(self, run_id: str) -> list[Entry]:
        return await self.reader.read_run(self.tenant, shard_of(run_id, SHARDS), run_id)

    async def schedule(
        self, run_id: str, decision: int, step_id: str, kind: StepKind = StepKind.AGENT
    ) -> int:
        suffix = subjects.step_suffix(kind.value, "default", step_id, 1)
        fact = StepScheduled(
            occurred_at=datetime.now(UTC),
            decision=Decision(cause_seq=0),
            node_id=step_id,
            name="echo",
            input={},
            expires_at=datetime.now(UTC) + timedelta(minutes=5),
        )
        return await self.state(subjects.out(self.prefix(run_id), decision, suffix), fact)

    async def delta(self, run_id: str, step_id: str, first: int, *texts: str) -> None:
        subject = subjects.delta(self.tenant, shard_of(run_id, SHARDS), run_id, step_id, 1)
        batch = DeltaBatch(first=first, texts=texts)
        await self.bus.publish(subject, encode(batch))

    async def result(
        self,
        run_id: str,
        step_id: str,
        output: Any = None,
        deltas: int = 0,
        kind: StepKind = StepKind.AGENT,
    ) -> int:
        fact = StepResult(
            occurred_at=datetime.now(UTC),
            started_at=datetime.now(UTC),
            kind=kind,
            name="echo",
            status="succeeded",
            output=output,
            usage=Usage(input_tokens=1, output_tokens=deltas, model_calls=1),
            deltas=deltas,
        )
        return await self.state(subjects.result(self.prefix(run_id), step_id, 1), fact)

    async def end(
        self,
        run_id: str,
        decision: int,
        output: Any = None,
        status: Any = RunStatus.DONE,
        error: ErrorInfo | None = None,
        stops: tuple[str, ...] = (),
    ) -> int:
        fact = RunEnded(
            occurred_at=datetime.now(UTC),
            decision=Decision(cause_seq=0, stops=stops),
            status=status,
            output=output,
            error=error,
        )
        subject = subjects.out(self.prefix(run_id), decision, subjects.END_SUFFIX)
        return await self.state(subject, fact)

    async def on_invoke(self, play: Callable[[str], Awaitable[None]]) -> None:
        """Call `play` with the id of every run that is asked for from now on."""
        tasks: set[asyncio.Task[None]] = set()

        async def begin(run_id: str) -> None:
            await play(run_id)

        def receive(subject: str, _reply: str, _body: bytes, _headers: bytes | None) -> None:
            task = asyncio.create_task(begin(subject.split(".")[4]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        await self.bus.nc.subscribe_direct(f"live.run.{self.tenant}.*.*.in.invoke", receive)
        await self.bus.nc.flush()

    async def play_turn(self, run_id: str, pieces: int = 5, answer: str = "hello") -> None:
        """Play a run of one agent step with `pieces` deltas."""
        await self.schedule(run_id, 1, "a-1")
        for index in range(pieces):
            await self.delta(run_id, "a-1", index, f"p{index} ")
        await self.result(run_id, "a-1", {"action": "respond", "text": answer}, deltas=pieces)
        await self.end(run_id, 2, answer)


def asked(
    record_id: str,
    kind: Any,
    *,
    name: str = "pay",
    arguments: Any = None,
    due_in: timedelta | None = timedelta(minutes=5),
    **request: Any,
) -> NodeRecord:
    """Return an open node record that asks for something."""
    return NodeRecord(
        record_id=record_id,
        kind=kind,
        status="open",
        due_at=datetime.now(UTC) + due_in if due_in is not None else None,
        request=PendingRequest(
            name=name, arguments=arguments, digest=call_digest(name, arguments), **request
        ),
    )


def client_plan(name: str = "clerk") -> Plan:
    """Return a plan of one step, which the caller executes."""
    return Plan(
        name=name,
        kind=DefinitionKind.WORKFLOW,
        nodes=(ToolNode(id="ask", ref="screen"),),
        tools={"screen": CompiledTool(name="screen", queue="client", client=True)},
    )


@asynccontextmanager
async def running(settings: GatewaySettings, token: str | None = None) -> AsyncIterator[Running]:
    app = create_app(settings)
    server = create_server(app, settings)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), "the gateway did not start"
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=90) as client:
        try:
            yield Running(url, app.state.gateway, client)
        finally:
            await client.aclose()
            app.state.gateway.drain()
            server.should_exit = True
            await task


@pytest.fixture
def tenant() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def engine(nats_server: NatsServer, tenant: str) -> AsyncIterator[Engine]:
    settings = CoreSettings(nats_url=nats_server.url)
    bus = await connect(settings, name="test engine")
    engine = Engine(bus, tenant)
    await engine.start()
    yield engine
    await engine.writer.close()
    await bus.close()


CreateGateway = Callable[..., Awaitable[Running]]


@pytest.fixture
async def create_gateway(nats_server: NatsServer, tenant: str) -> AsyncIterator[CreateGateway]:
    async with AsyncExitStack() as stack:

        async def create(token: str | None = None, **options: Any) -> Running:
            given = {
                "nats_url": nats_server.url,
                "port": 0,
                "auth_required": False,
                "dev_tenant": tenant,
                "metrics_port": -1,
                **options,
            }
            return await stack.enter_async_context(running(GatewaySettings(**given), token))

        yield create


async def begin(gateway: Running, name: str = "echo", **body: Any) -> str:
    """Start a run and return its id."""
    response = await gateway.client.post("/v1/runs", json={"name": name, **body})
    assert response.status_code == 202, response.text
    run_id: str = response.json()["run_id"]
    return run_id


@pytest.fixture
async def gateway(create_gateway: CreateGateway, engine: Engine) -> Running:
    await engine.publish("echo")
    return await create_gateway()
