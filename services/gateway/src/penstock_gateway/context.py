"""What ordinary endpoints ask for: the gateway's parts, and a caller with a role."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Header, Path, Request

from penstock.contracts.ids import TOKEN_PATTERN
from penstock_gateway.core.access import Caller
from penstock_gateway.core.preferences import idempotency_key
from penstock_gateway.gateway import Gateway


async def _gateway(request: Request) -> Gateway:
    return cast("Gateway", request.app.state.gateway)


GatewayParts = Annotated[Gateway, Depends(_gateway)]


async def _caller(request: Request, gateway: GatewayParts) -> Caller:
    return gateway.authenticator.caller(dict(request.scope["headers"]))


AnyCaller = Annotated[Caller, Depends(_caller)]


async def _viewer(caller: AnyCaller) -> Caller:
    caller.require("viewer")
    return caller


async def _operator(caller: AnyCaller) -> Caller:
    caller.require("operator")
    return caller


async def _admin(caller: AnyCaller) -> Caller:
    caller.require("admin")
    return caller


async def _runner(caller: AnyCaller) -> Caller:
    caller.require("runner")
    return caller


Viewer = Annotated[Caller, Depends(_viewer)]
Operator = Annotated[Caller, Depends(_operator)]
Admin = Annotated[Caller, Depends(_admin)]
RunnerCaller = Annotated[Caller, Depends(_runner)]


async def _key(
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="A repetition with the same key has no further effect; "
            "with another body 422.",
        ),
    ] = None,
) -> str | None:
    return idempotency_key(None if key is None else key.encode("latin-1", "replace"))


IdempotencyKey = Annotated[str | None, Depends(_key)]
PathToken = Annotated[str, Path(pattern=TOKEN_PATTERN)]
"""A name or an id in a path."""
