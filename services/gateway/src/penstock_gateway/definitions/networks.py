"""Routes between the agents of a network, one by one: a view of the network's document."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import JsonValue

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.facts import Record
from penstock.contracts.ids import TOKEN_PATTERN, Token
from penstock.contracts.json import JsonObject
from penstock.contracts.rpc import (
    Definition,
    DefinitionPage,
    DocumentKind,
    GetDefinition,
    ListDefinitions,
    PutDefinition,
)
from penstock_gateway.context import Admin, GatewayParts, PathToken, Viewer
from penstock_gateway.core.access import Caller
from penstock_gateway.core.requests import Input
from penstock_gateway.gateway import Gateway

network_routes: Final = APIRouter(prefix="/config/routes", tags=["older paths"])


class AgentRoute(Record):
    """One agent of a network may hand the conversation to another."""

    network: str
    source: str
    target: str


class AgentRoutes(Record):
    """Routes between agents."""

    items: tuple[AgentRoute, ...]


class NewRoute(Input):
    """A route to add to a network."""

    network: Token
    source: Token
    target: Token


@network_routes.get("")
async def list_agent_routes(
    gateway: GatewayParts,
    caller: Viewer,
    network: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
) -> AgentRoutes:
    """List the routes of a network, or of the first thousand networks."""
    if network is not None:
        found = [await _network(gateway, caller, network)]
    else:
        request = ListDefinitions(tenant=caller.tenant, kind=DocumentKind.NETWORK, limit=1000)
        page = await gateway.registry.ask("list_definitions", request, DefinitionPage)
        found = list(page.items)
    return AgentRoutes(
        items=tuple(
            AgentRoute(network=one.name, source=str(member.get("name")), target=target)
            for one in found
            for member in _members(one)
            for target in _targets(member)
        )
    )


@network_routes.post("", status_code=201)
async def add_agent_route(gateway: GatewayParts, caller: Admin, body: NewRoute) -> AgentRoute:
    """Add a route to a network; one that is there already stays as it is."""
    definition = await _network(gateway, caller, body.network)
    member = _member(definition, body.source)
    if body.target not in (targets := _targets(member)):
        member["routes"] = [*targets, body.target]
        await _store(gateway, caller, definition)
    return AgentRoute(network=body.network, source=body.source, target=body.target)


@network_routes.delete("/{network}/{source}/{target}", status_code=204)
async def remove_agent_route(
    gateway: GatewayParts, caller: Admin, network: PathToken, source: PathToken, target: PathToken
) -> None:
    """Remove a route from a network."""
    definition = await _network(gateway, caller, network)
    member = _member(definition, source)
    if target not in (targets := _targets(member)):
        raise RejectedError("route_not_found", f"{source} has no route to {target}")
    member["routes"] = [one for one in targets if one != target]
    await _store(gateway, caller, definition)


async def _network(gateway: Gateway, caller: Caller, name: str) -> Definition:
    request = GetDefinition(tenant=caller.tenant, kind=DocumentKind.NETWORK, name=name)
    return await gateway.registry.ask("get_definition", request, Definition)


def _members(definition: Definition) -> list[JsonObject]:
    """Return the agents in a network's document, to be changed in place."""
    document: JsonValue = definition.document
    spec = document.get("spec") if isinstance(document, dict) else None
    agents = spec.get("agents") if isinstance(spec, dict) else None
    return [one for one in agents if isinstance(one, dict)] if isinstance(agents, list) else []


def _targets(member: JsonObject) -> list[str]:
    routes = member.get("routes")
    return [str(one) for one in routes] if isinstance(routes, list) else []


def _member(definition: Definition, name: str) -> JsonObject:
    members = _members(definition)
    for member in members:
        if member.get("name") == name:
            return member
    raise RejectedError(
        "invalid_request",
        f"{definition.name} has no agent {name!r}",
        details=(
            finding(
                "source",
                f"there is no agent {name!r}",
                ", ".join(str(member.get("name")) for member in members),
            ),
        ),
    )


async def _store(gateway: Gateway, caller: Caller, definition: Definition) -> None:
    """Store a changed network, and publish it again where it is in force."""
    request = PutDefinition(
        tenant=caller.tenant,
        kind=DocumentKind.NETWORK,
        name=definition.name,
        document=definition.document,
        publish=definition.status == "published",
        expected_revision=definition.revision,
    )
    await gateway.registry.ask("put_definition", request, Definition)
    await gateway.registry.refresh(caller.tenant, DocumentKind.NETWORK, definition.name)
