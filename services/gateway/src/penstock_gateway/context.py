"""What ordinary endpoints ask for: the gateway's parts, and a caller with a role."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from penstock_gateway.core.access import Caller
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
