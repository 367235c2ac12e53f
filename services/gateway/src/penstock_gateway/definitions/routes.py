"""Agents, tools, workflows, networks, webhooks: their documents, versions and publishing."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Final

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from pydantic import Field

from penstock.contracts.envelope import Revision, VersionNumber
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.ids import Token
from penstock.contracts.json import JsonObject
from penstock.contracts.rpc import (
    Alias,
    Aliases,
    AppliedDefinition,
    ArchiveDefinition,
    Canary,
    Definition,
    DefinitionPage,
    DeleteAlias,
    Deleted,
    DeleteDefinition,
    DeregisterAgent,
    DocumentKind,
    GetDefinition,
    ListAliases,
    ListDefinitions,
    ListVersions,
    PatchDefinition,
    PublishDefinition,
    PutDefinition,
    SetAlias,
    VersionPage,
)
from penstock.runs.definition_views import DefinitionItems, VersionItems
from penstock.texts import TextError, read_json
from penstock_gateway.context import Admin, AnyCaller, GatewayParts, PathToken, Viewer
from penstock_gateway.core.requests import Input
from penstock_gateway.raw import ConditionalRoute

RUNNABLE: Final = (DocumentKind.AGENT, DocumentKind.WORKFLOW, DocumentKind.NETWORK)
"""Kinds that are started by name, and may have aliases."""

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[Token | None, Query(description="The `next_cursor` of the page before.")]
Document = Annotated[JsonObject, Body(description="A document, as `apply` takes it.")]
Publish = Annotated[bool, Query(description="Bring it into force as well.")]
ExpectedRevision = Annotated[Revision | None, Query(description="Change only this revision.")]


async def _strict_json(request: Request) -> None:
    """Refuse what the framework's reader of JSON accepts, such as a key that is written twice.

    Raises:
        RejectedError: ``malformed_json``.
    """
    if body := await request.body():
        try:
            read_json(body)
        except TextError as error:
            raise RejectedError(
                "malformed_json", "the body is not JSON", details=(finding("body", str(error)),)
            ) from error


class PublishVersion(Input):
    """What to publish: the stored document, or an older version."""

    version: VersionNumber | None = None


class CanaryBody(Input):
    """A second version, which a share of the runs uses."""

    version: VersionNumber
    weight: int = Field(ge=1, le=100)
    """Of a hundred runs so many."""


class AliasBody(Input):
    """What an alias stands for."""

    version: VersionNumber
    canary: CanaryBody | None = None


@cache
def definition_routes(kind: DocumentKind, prefix: str | None = None) -> APIRouter:
    """Return the routes of one kind of definition.

    They are built once per process, since that takes most of the time in which an application
    is composed (0.25 s for all kinds); the requests bring the gateway along.

    Args:
        kind: The kind.
        prefix: An older path of them; else they stand under the kind's plural.
    """
    plural = f"{kind.value}s"
    tag = plural if prefix is None else "older paths"
    router = APIRouter(
        prefix=prefix or f"/v1/{plural}",
        tags=[tag],
        dependencies=[Depends(_strict_json)],
        route_class=ConditionalRoute,
    )

    @router.get("", name=f"list_{plural}")
    async def list_all(
        gateway: GatewayParts, caller: Viewer, limit: Limit = 100, cursor: Cursor = None
    ) -> DefinitionItems:
        """List definitions, ordered by name."""
        request = ListDefinitions(tenant=caller.tenant, kind=kind, limit=limit, after=cursor)
        page = await gateway.registry.ask("list_definitions", request, DefinitionPage)
        return DefinitionItems(items=page.items, next_cursor=page.next_after)

    @router.post("", status_code=201, name=f"create_{kind.value}")
    async def create(
        gateway: GatewayParts,
        caller: Admin,
        response: Response,
        document: Document,
        publish: Publish = False,
    ) -> Definition:
        """Store a new definition."""
        request = PutDefinition(
            tenant=caller.tenant, kind=kind, document=document, publish=publish, mode="create"
        )
        stored = await gateway.registry.ask("put_definition", request, Definition)
        await gateway.registry.refresh(caller.tenant, kind, stored.name)
        response.headers["Location"] = f"/v1/{plural}/{stored.name}"
        return stored

    @router.get("/{name}", name=f"get_{kind.value}")
    async def get(gateway: GatewayParts, caller: Viewer, name: PathToken) -> Definition:
        """Return a definition as it is stored."""
        request = GetDefinition(tenant=caller.tenant, kind=kind, name=name)
        return await gateway.registry.ask("get_definition", request, Definition)

    @router.put("/{name}", name=f"replace_{kind.value}")
    async def replace(
        gateway: GatewayParts,
        caller: Admin,
        name: PathToken,
        document: Document,
        publish: Publish = False,
        expected_revision: ExpectedRevision = None,
    ) -> Definition:
        """Store a definition, whether it exists or not."""
        request = PutDefinition(
            tenant=caller.tenant,
            kind=kind,
            name=name,
            document=document,
            publish=publish,
            expected_revision=expected_revision,
        )
        stored = await gateway.registry.ask("put_definition", request, Definition)
        await gateway.registry.refresh(caller.tenant, kind, name)
        return stored

    @router.patch("/{name}", name=f"patch_{kind.value}")
    async def patch(
        gateway: GatewayParts,
        caller: Admin,
        name: PathToken,
        changes: Document,
        publish: Publish = False,
        expected_revision: ExpectedRevision = None,
    ) -> Definition:
        """Change a definition by a JSON merge patch (RFC 7396) over its document."""
        request = PatchDefinition(
            tenant=caller.tenant,
            kind=kind,
            name=name,
            patch=changes,
            publish=publish,
            expected_revision=expected_revision,
        )
        stored = await gateway.registry.ask("patch_definition", request, Definition)
        await gateway.registry.refresh(caller.tenant, kind, name)
        return stored

    if kind is not DocumentKind.AGENT:

        @router.delete("/{name}", status_code=204, name=f"delete_{kind.value}")
        async def delete(gateway: GatewayParts, caller: Admin, name: PathToken) -> None:
            """Delete a definition; runs cannot start it any more."""
            request = DeleteDefinition(tenant=caller.tenant, kind=kind, name=name)
            await gateway.registry.ask("delete_definition", request, Deleted)
            await gateway.registry.refresh(caller.tenant, kind, name)

    @router.post("/{name}/publish", name=f"publish_{kind.value}")
    async def publish_version(
        gateway: GatewayParts, caller: Admin, name: PathToken, body: PublishVersion | None = None
    ) -> AppliedDefinition:
        """Bring a definition into force as it is stored, or an older version again."""
        version = body.version if body is not None else None
        request = PublishDefinition(tenant=caller.tenant, kind=kind, name=name, version=version)
        done = await gateway.registry.ask("publish_definition", request, AppliedDefinition)
        await gateway.registry.refresh(caller.tenant, kind, name)
        return done

    @router.get("/{name}/versions", name=f"list_{kind.value}_versions")
    async def versions(
        gateway: GatewayParts,
        caller: Viewer,
        name: PathToken,
        limit: Limit = 100,
        cursor: Annotated[Revision | None, Query()] = None,
    ) -> VersionItems:
        """List the versions that were published, newest first."""
        request = ListVersions(
            tenant=caller.tenant, kind=kind, name=name, limit=limit, before=cursor
        )
        page = await gateway.registry.ask("list_versions", request, VersionPage)
        following = None if page.next_before is None else str(page.next_before)
        return VersionItems(items=page.items, next_cursor=following)

    @router.post("/{name}/archive", name=f"archive_{kind.value}")
    async def archive(gateway: GatewayParts, caller: Admin, name: PathToken) -> Definition:
        """Archive a definition with its versions; publishing brings it back."""
        request = ArchiveDefinition(tenant=caller.tenant, kind=kind, name=name)
        archived = await gateway.registry.ask("archive_definition", request, Definition)
        await gateway.registry.refresh(caller.tenant, kind, name)
        return archived

    if kind in RUNNABLE and prefix is None:
        _add_aliases(router, kind)
    return router


def _add_aliases(router: APIRouter, kind: DocumentKind) -> None:
    """Add the routes of aliases of definitions that are started by name."""

    @router.get("/{name}/aliases", name=f"list_{kind.value}_aliases")
    async def aliases(gateway: GatewayParts, caller: Viewer, name: PathToken) -> Aliases:
        """List the aliases of a definition."""
        request = ListAliases(tenant=caller.tenant, kind=kind, name=name)
        return await gateway.registry.ask("list_aliases", request, Aliases)

    @router.put("/{name}/aliases/{alias}", name=f"set_{kind.value}_alias")
    async def set_alias(
        gateway: GatewayParts, caller: Admin, name: PathToken, alias: PathToken, body: AliasBody
    ) -> Alias:
        """Point an alias at a version; runs are started by `name@alias`."""
        canary = Canary(**body.canary.model_dump()) if body.canary is not None else None
        request = SetAlias(
            tenant=caller.tenant,
            kind=kind,
            name=name,
            alias=alias,
            version=body.version,
            canary=canary,
        )
        stored = await gateway.registry.ask("set_alias", request, Alias)
        await gateway.registry.refresh_selector(caller.tenant, name, alias)
        return stored

    @router.delete("/{name}/aliases/{alias}", status_code=204, name=f"delete_{kind.value}_alias")
    async def delete_alias(
        gateway: GatewayParts, caller: Admin, name: PathToken, alias: PathToken
    ) -> None:
        """Remove an alias."""
        request = DeleteAlias(tenant=caller.tenant, kind=kind, name=name, alias=alias)
        await gateway.registry.ask("delete_alias", request, Deleted)
        await gateway.registry.refresh_selector(caller.tenant, name, alias)


agent_deletion: Final = APIRouter(tags=["agents"])


@agent_deletion.delete("/v1/agents/{name}", status_code=204)
@agent_deletion.delete("/agents/{name}", status_code=204, tags=["older paths"])
@agent_deletion.delete("/config/agents/{name}", status_code=204, tags=["older paths"])
async def delete_agent(gateway: GatewayParts, caller: AnyCaller, name: PathToken) -> None:
    """Delete an agent; one that registered itself may also do so with the role `runner`."""
    registry, tenant = gateway.registry, caller.tenant
    registered = True
    if "admin" in caller.may:
        request = GetDefinition(tenant=tenant, kind=DocumentKind.AGENT, name=name)
        found = await registry.ask("get_definition", request, Definition)
        registered = found.origin == "registration"
    else:
        caller.require("runner")
    if registered:
        await registry.ask(
            "deregister_agent", DeregisterAgent(tenant=tenant, agent_id=name), Deleted
        )
    else:
        deletion = DeleteDefinition(tenant=tenant, kind=DocumentKind.AGENT, name=name)
        await registry.ask("delete_definition", deletion, Deleted)
    await registry.refresh(tenant, DocumentKind.AGENT, name)
