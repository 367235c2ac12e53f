"""Who takes part: runners, agents that register by HTTP, API keys."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import Field

from penstock.contracts.envelope import MAX_INT32, BoundedTime, StorableText
from penstock.contracts.ids import TOKEN_PATTERN, Token
from penstock.contracts.rpc import (
    AgentRegistration,
    BeatAgent,
    CreatedKey,
    CreateKey,
    DocumentKind,
    KeyInfo,
    Keys,
    ListKeys,
    ListRunners,
    RegisterAgent,
    RevokeKey,
    Role,
    Runners,
    RunnerState,
)
from penstock_gateway.context import Admin, GatewayParts, PathToken, RunnerCaller, Viewer
from penstock_gateway.core.access import key_digest
from penstock_gateway.core.requests import Input

participants: Final = APIRouter()


class AgentIntroduction(Input):
    """An agent that is asked by HTTP introduces itself, or renews its registration."""

    agent_id: Token
    name: Annotated[str, Field(max_length=200)] = ""
    endpoint: str
    description: str = ""
    version: str = ""
    labels: dict[str, str] = {}
    ttl_seconds: float | None = Field(default=None, ge=1, le=86_400)


class Beat(Input):
    """A heartbeat."""

    in_flight: int = Field(default=0, ge=0, le=MAX_INT32)
    draining: bool = False


class NewKey(Input):
    """An API key to make."""

    name: Annotated[StorableText, Field(max_length=200)] = ""
    roles: tuple[Role, ...] = Field(default=("operator",), min_length=1)
    expires_at: BoundedTime | None = None


@participants.get("/v1/runners", tags=["runners"])
async def list_runners(
    gateway: GatewayParts,
    caller: Viewer,
    kind: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
    queue: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
    state: RunnerState | None = None,
) -> Runners:
    """List runners with their state; lost ones for a while."""
    request = ListRunners(tenant=caller.tenant, kind=kind, queue=queue, state=state)
    return await gateway.registry.ask("list_runners", request, Runners)


@participants.post("/v1/agents/register", tags=["agents"])
@participants.post("/agents/register", tags=["older paths"])
async def register_agent(
    gateway: GatewayParts, caller: RunnerCaller, body: AgentIntroduction
) -> AgentRegistration:
    """Register an agent that is asked by HTTP, or renew its registration."""
    request = RegisterAgent(tenant=caller.tenant, **body.model_dump())
    created = await gateway.registry.ask("register_agent", request, AgentRegistration)
    await gateway.registry.refresh(caller.tenant, DocumentKind.AGENT, created.agent_id)
    return created


@participants.post("/v1/agents/{agent_id}/heartbeat", tags=["agents"])
@participants.post("/agents/{agent_id}/heartbeat", tags=["older paths"])
async def beat_agent(
    gateway: GatewayParts, caller: RunnerCaller, agent_id: PathToken, body: Beat | None = None
) -> AgentRegistration:
    """Say that a registered agent lives; 404 means that it has to register again."""
    beat = body or Beat()
    request = BeatAgent(
        tenant=caller.tenant,
        agent_id=agent_id,
        in_flight=beat.in_flight,
        draining=beat.draining,
    )
    return await gateway.registry.ask("beat_agent", request, AgentRegistration)


@participants.get("/v1/keys", tags=["keys"])
async def list_keys(
    gateway: GatewayParts, caller: Admin, revoked: Annotated[bool, Query()] = False
) -> Keys:
    """List API keys, without their secrets."""
    request = ListKeys(tenant=caller.tenant, revoked=revoked)
    return await gateway.registry.ask("list_keys", request, Keys)


@participants.post("/v1/keys", status_code=201, tags=["keys"])
async def create_key(gateway: GatewayParts, caller: Admin, body: NewKey) -> CreatedKey:
    """Make an API key. Its secret can be read in this answer only."""
    request = CreateKey(
        tenant=caller.tenant, name=body.name, roles=body.roles, expires_at=body.expires_at
    )
    created = await gateway.registry.ask("create_key", request, CreatedKey)
    await gateway.registry.refresh_key(key_digest(created.secret.encode()))
    return created


@participants.delete("/v1/keys/{key_id}", tags=["keys"])
async def revoke_key(gateway: GatewayParts, caller: Admin, key_id: str) -> KeyInfo:
    """Make an API key worthless at once."""
    request = RevokeKey(tenant=caller.tenant, key_id=key_id)
    return await gateway.registry.ask("revoke_key", request, KeyInfo)
