"""Agents that register by HTTP: a definition with an endpoint, kept live by a heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from pydantic import JsonValue

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError, TransientError
from penstock.contracts.rpc import (
    AgentRegistration,
    BeatAgent,
    Deleted,
    DeleteDefinition,
    DeregisterAgent,
    DocumentKind,
    ListRunners,
    PutDefinition,
    RegisterAgent,
    Runners,
    RunnerState,
    RunnerView,
)
from penstock.contracts.runners import Capability, RunnerRecord
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.core.documents import API_VERSION
from penstock_registry.core.liveness import HTTP_AGENT
from penstock_registry.core.reading import merge_patch, parse_endpoint
from penstock_registry.definitions import Definitions
from penstock_registry.runner_registry import RunnerRegistry
from penstock_registry.store import Store
from penstock_registry.tables import AgentRow

log = EventLog(__name__)

Change = Literal["created", "updated", "unchanged"]


class HttpAgents:
    """The registry's verbs on agents that register themselves."""

    def __init__(
        self,
        bus: Bus,
        database: Store,
        definitions: Definitions,
        now: Callable[[], datetime],
        *,
        ttl_seconds: float,
    ) -> None:
        """Use what the other verbs use.

        Args:
            bus: The connection.
            database: Where registrations are kept.
            definitions: Makes the agents' definitions.
            now: The clock.
            ttl_seconds: Life of a registration that names no TTL.
        """
        self._runners = Bucket(bus, subjects.RUNNERS)
        self._store = database
        self._definitions = definitions
        self._now = now
        self._ttl_seconds = ttl_seconds

    async def register(self, request: RegisterAgent) -> AgentRegistration:
        """Register an agent, or renew its registration: doing so twice changes nothing.

        Raises:
            ConflictError: ``name_taken`` by an agent that has a document.
            RejectedError: ``invalid_document``.
            TransientError: Database or bus did not answer.
        """
        endpoint = parse_endpoint(request.endpoint, path="endpoint")
        # The definition first: should this be cut short, the agent registers again.
        await self._definitions.put(
            PutDefinition(
                tenant=request.tenant,
                kind=DocumentKind.AGENT,
                document=merge_patch(
                    await self._present(request.tenant, request.agent_id),
                    _document(request, endpoint),
                ),
                publish=True,
            ),
            origin="registration",
        )
        row, change = await self._save(request, endpoint)
        await self._beat(row, in_flight=0, draining=False)
        log.info(
            "agent.registered",
            tenant=row.tenant_id,
            agent_id=row.agent_id,
            endpoint=row.endpoint,
            change=change,
        )
        return self._registration(row, change)

    async def beat(self, request: BeatAgent) -> AgentRegistration:
        """Record a heartbeat.

        Raises:
            RejectedError: ``unknown_agent``; it has to register again.
            TransientError: Database or bus did not answer.
        """
        async with self._store.reading() as session:
            row = await store.find_agent(session, request.tenant, request.agent_id)
        if row is None or row.deleted_at is not None:
            raise _unknown(request.agent_id)
        await self._beat(row, in_flight=request.in_flight, draining=request.draining)
        return self._registration(row, "unchanged")

    async def deregister(self, request: DeregisterAgent) -> Deleted:
        """Remove an agent; a definition that others name stays.

        Raises:
            RejectedError: ``unknown_agent``.
            TransientError: Database or bus did not answer.
        """
        async with self._store.changing(request.tenant) as session:
            row = await store.find_agent(session, request.tenant, request.agent_id)
            if row is None or row.deleted_at is not None:
                raise _unknown(request.agent_id)
            row.deleted_at = row.updated_at = self._now()
        await self._runners.delete(_key(row))
        gone = Deleted(kind=DocumentKind.AGENT, name=row.agent_id)
        try:
            await self._definitions.delete(
                DeleteDefinition(tenant=row.tenant_id, kind=gone.kind, name=gone.name),
                origin="registration",
            )
        except (ConflictError, RejectedError) as error:
            # It is in use, was deleted, or had become a document.
            log.info("agent.definition_kept", agent_id=row.agent_id, code=error.code)
        log.info("agent.deregistered", tenant=row.tenant_id, agent_id=row.agent_id)
        return gone

    async def runners(self, request: ListRunners, runner_registry: RunnerRegistry) -> Runners:
        """Return the live runners, and registered agents that were never seen as lost.

        Without the database the runner registry alone answers.
        """
        try:
            async with self._store.reading() as session:
                rows = await store.list_agents(session, request.tenant)
        except TransientError as error:
            log.warning("runners.listed_without_database", code=error.code)
            return Runners(items=tuple(runner_registry.list(request)))
        registered = {row.agent_id for row in rows}
        views = [
            view
            for view in runner_registry.list(request)
            if view.state is not RunnerState.LOST
            or view.runner.kind != HTTP_AGENT
            or view.runner.runner_id in registered
        ]
        if (
            request.kind in (None, HTTP_AGENT)
            and request.queue in (None, request.tenant)
            and request.state in (None, RunnerState.LOST)
        ):
            own = runner_registry.list(ListRunners(tenant=request.tenant, kind=HTTP_AGENT))
            there = {view.runner.runner_id for view in own}
            views += [_lost(row, self._now()) for row in rows if row.agent_id not in there]
        return Runners(items=tuple(views))

    async def _present(self, tenant: str, agent_id: str) -> JsonValue:
        """Return the agent's document with what users have changed in it, if there is one."""
        async with self._store.reading() as session:
            found = await store.find_definition(session, tenant, DocumentKind.AGENT, agent_id)
        return found[0].document if found is not None else None

    async def _save(self, request: RegisterAgent, endpoint: str) -> tuple[AgentRow, Change]:
        now = self._now()
        tenant, agent_id = request.tenant, request.agent_id
        async with self._store.changing(tenant) as session:
            row = await store.find_agent(session, tenant, agent_id)
            change: Change = "unchanged"
            if row is None or row.deleted_at is not None:
                change = "created"
            if row is None:
                row = AgentRow(tenant_id=tenant, agent_id=agent_id, created_at=now)
                session.add(row)
            row.name = request.name or agent_id
            row.endpoint, row.version = endpoint, request.version
            row.ttl_seconds = request.ttl_seconds or self._ttl_seconds
            row.deleted_at = None
            if change == "unchanged" and session.is_modified(row):
                change = "updated"
            if change != "unchanged":
                row.updated_at = now
            return row, change

    async def _beat(self, row: AgentRow, *, in_flight: int, draining: bool) -> None:
        record = _record(row, self._now(), in_flight=in_flight, draining=draining)
        await self._runners.put(
            _key(row), record.model_dump_json().encode(), ttl_seconds=row.ttl_seconds
        )

    def _registration(self, row: AgentRow, change: Change) -> AgentRegistration:
        return AgentRegistration(
            agent_id=row.agent_id,
            name=row.name,
            endpoint=row.endpoint,
            ttl_seconds=row.ttl_seconds,
            heartbeat_seconds=row.ttl_seconds / 3,
            expires_at=self._now() + timedelta(seconds=row.ttl_seconds),
            change=change,
        )


def _document(request: RegisterAgent, endpoint: str) -> JsonValue:
    return {
        "apiVersion": API_VERSION,
        "kind": "Agent",
        "metadata": {
            "name": request.agent_id,
            "description": request.description or request.name,
            "labels": dict(request.labels),
        },
        "spec": {"endpoint": endpoint},
    }


def _key(row: AgentRow) -> str:
    return subjects.runner_key(HTTP_AGENT, row.tenant_id, row.agent_id)


def _record(row: AgentRow, beat_at: datetime, *, in_flight: int, draining: bool) -> RunnerRecord:
    return RunnerRecord(
        runner_id=row.agent_id,
        kind=HTTP_AGENT,
        queue=row.tenant_id,
        version=row.version,
        endpoint=row.endpoint,
        capabilities=(Capability(name=row.agent_id, description=row.name),),
        in_flight=in_flight,
        draining=draining,
        started_at=row.created_at,
        beat_at=beat_at,
        ttl_seconds=row.ttl_seconds,
    )


def _lost(row: AgentRow, now: datetime) -> RunnerView:
    return RunnerView(
        runner=_record(row, row.updated_at, in_flight=0, draining=False),
        state=RunnerState.LOST,
        silent_seconds=round((now - row.updated_at).total_seconds(), 3),
    )


def _unknown(agent_id: str) -> RejectedError:
    return RejectedError("unknown_agent", f"agent {agent_id!r} is not registered; register again")
