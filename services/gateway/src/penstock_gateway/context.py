"""What ordinary endpoints ask for: the gateway's parts, and a caller with a role."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Header, Path, Request
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.ids import TOKEN_PATTERN
from penstock_gateway.core.access import Caller, Role
from penstock_gateway.core.preferences import KEY_PATTERN, idempotency_key
from penstock_gateway.gateway import Gateway
from penstock_gateway.raw import is_json, media_type, require_envelope, require_type


async def _gateway(request: Request) -> Gateway:
    return cast("Gateway", request.app.state.gateway)


async def checked_request(request: Request) -> None:
    """Refuse U+0000 in path and query, and bodies of other media types or outside of the envelope.

    The framework has read the body by then.

    Raises:
        RejectedError: ``invalid_request``, ``unsupported_media_type``.
    """
    for name in ("path", "query_string"):
        raw: str | bytes = request.scope[name]
        if ("\0" in raw) if isinstance(raw, str) else (b"%00" in raw):
            place = finding(name.partition("_")[0], "contains U+0000", "text without it")
            raise RejectedError("invalid_request", "U+0000 has no place in a URL", details=(place,))
    content_type = request.headers.get("content-type", "application/json")
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.body_field is not None and await request.body():
        require_type(content_type.encode("latin-1"))
    if is_json(media_type(content_type)):
        require_envelope(await request.body(), at="body")


GatewayParts = Annotated[Gateway, Depends(_gateway)]


async def _caller(request: Request, gateway: GatewayParts) -> Caller:
    return gateway.authenticator.caller(dict(request.scope["headers"]))


AnyCaller = Annotated[Caller, Depends(_caller)]


def _with_role(role: Role) -> Dependency:
    async def check(caller: AnyCaller) -> Caller:
        caller.require(role)
        return caller

    dependency: Dependency = Depends(check)
    return dependency


Viewer = Annotated[Caller, _with_role("viewer")]
Operator = Annotated[Caller, _with_role("operator")]
Admin = Annotated[Caller, _with_role("admin")]
RunnerCaller = Annotated[Caller, _with_role("runner")]


async def _key(
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            json_schema_extra={"pattern": KEY_PATTERN},
            description="A repetition with the same key has no further effect; "
            "with another body 422.",
        ),
    ] = None,
) -> str | None:
    return idempotency_key(None if key is None else key.encode("latin-1", "replace"))


IdempotencyKey = Annotated[str | None, Depends(_key)]
PathToken = Annotated[str, Path(pattern=TOKEN_PATTERN)]
"""A name or an id in a path."""
