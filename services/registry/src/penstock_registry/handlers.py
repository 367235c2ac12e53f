"""Request/reply: each verb of the registry on its own subject, shared by all replicas.

FastStream carries it, on a connection of its own: low rate, no streams, nothing to declare.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from faststream import BaseMiddleware, ExceptionMiddleware
from faststream.message import StreamMessage
from faststream.nats import NatsBroker
from faststream.nats.security import NatsUserPassword
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from penstock.bus.connection import EXIT_CONNECTION_LOST
from penstock.contracts import rpc, subjects
from penstock.contracts.errors import ErrorDetail, InvariantError, PenstockError, RejectedError
from penstock.settings import CoreSettings
from penstock.telemetry import tracing
from penstock.telemetry.logs import EventLog, bind
from penstock_registry.agents import HttpAgents
from penstock_registry.board import Board
from penstock_registry.core.places import show_location
from penstock_registry.definitions import Definitions
from penstock_registry.keys import ApiKeys

log = EventLog("penstock.registry")

QUEUE: Final = "registry"
MAX_REPLY_BYTES: Final = 1_000_000
"""Below the server's default limit of 1 MiB, headers and envelope included."""
_READERS: Final = 8
"""Requests of one reading verb that are answered at a time."""


class Verb(NamedTuple):
    """What a verb takes, who does it, and whether it only reads."""

    request: type[BaseModel]
    perform: Callable[[Any], Awaitable[BaseModel]]
    reads: bool = False


class Parts(NamedTuple):
    """Who does the work."""

    definitions: Definitions
    agents: HttpAgents
    keys: ApiKeys
    board: Board


def verbs(parts: Parts) -> Mapping[str, Verb]:
    """Return all verbs by name."""
    definitions, agents, keys, board = parts

    async def list_runners(request: rpc.ListRunners) -> rpc.Runners:
        return await agents.runners(request, board)

    return {
        "apply": Verb(rpc.ApplyDocuments, definitions.apply),
        "get_definition": Verb(rpc.GetDefinition, definitions.get, reads=True),
        "list_definitions": Verb(rpc.ListDefinitions, definitions.page, reads=True),
        "put_definition": Verb(rpc.PutDefinition, definitions.put),
        "patch_definition": Verb(rpc.PatchDefinition, definitions.patch),
        "delete_definition": Verb(rpc.DeleteDefinition, definitions.delete),
        "publish_definition": Verb(rpc.PublishDefinition, definitions.publish),
        "list_versions": Verb(rpc.ListVersions, definitions.versions, reads=True),
        "list_runners": Verb(rpc.ListRunners, list_runners, reads=True),
        "register_agent": Verb(rpc.RegisterAgent, agents.register),
        "beat_agent": Verb(rpc.BeatAgent, agents.beat, reads=True),
        "deregister_agent": Verb(rpc.DeregisterAgent, agents.deregister),
        "create_key": Verb(rpc.CreateKey, keys.create),
        "list_keys": Verb(rpc.ListKeys, keys.list, reads=True),
        "revoke_key": Verb(rpc.RevokeKey, keys.revoke),
    }


class Endpoint:
    """Answers requests until it is stopped."""

    def __init__(self, settings: CoreSettings, table: Mapping[str, Verb]) -> None:
        """Prepare one subscription for each verb; nothing is connected yet."""
        self._stopping = False
        self.broker = _broker(settings, self._on_closed)
        for name, verb in table.items():
            self.broker.subscriber(
                subjects.rpc("registry", name),
                queue=QUEUE,
                decoder=_decoder(verb.request),
                max_workers=_READERS if verb.reads else 1,
                title=name,
            )(_handler(name, verb))

    async def start(self) -> None:
        """Connect and subscribe."""
        await self.broker.start()

    async def stop(self) -> None:
        """Answer what is in work, then disconnect."""
        self._stopping = True
        await self.broker.stop()

    async def _on_closed(self) -> None:
        if not self._stopping:
            log.error("rpc.closed_for_good")
            logging.shutdown()
            os._exit(EXIT_CONNECTION_LOST)


class _Traced(BaseMiddleware):
    """Goes on with the trace of whoever asks."""

    async def consume_scope(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
    ) -> Any:
        """Answer a request inside a span."""
        traceparent = msg.headers.get(tracing.TRACEPARENT)
        name = f"process {msg.raw_message.subject}"
        with (
            tracing.span(name, kind="server", traceparent=traceparent) as span,
            bind(trace_id=span.trace_id),
        ):
            return await call_next(msg)


def _broker(settings: CoreSettings, on_closed: Callable[[], Awaitable[None]]) -> NatsBroker:
    auth = settings.nats_auth()
    user = auth.get("user")
    security = NatsUserPassword(user, auth.get("password", "")) if user is not None else None
    return NatsBroker(
        settings.nats_servers,
        name=f"registry-rpc-{settings.instance_id}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        ping_interval=5,
        max_outstanding_pings=2,
        closed_cb=on_closed,
        security=security,
        token=auth.get("token"),
        user_credentials=auth.get("user_credentials"),
        apply_types=False,
        middlewares=[_Traced, ExceptionMiddleware(publish_handlers={Exception: _failure})],
        logger=_quiet_logger(),
        log_level=logging.DEBUG,
    )


def _quiet_logger() -> logging.Logger:
    """Return FastStream's logger, kept from a line per request and one per task at the end."""
    logger = logging.getLogger("faststream.registry")
    logger.setLevel(logging.WARNING)
    return logger


def _decoder(model: type[BaseModel]) -> Callable[[StreamMessage[Msg]], Awaitable[BaseModel]]:
    async def decode(message: StreamMessage[Msg]) -> BaseModel:
        return model.model_validate_json(message.body)

    return decode


def _handler(name: str, verb: Verb) -> Callable[[BaseModel], Awaitable[rpc.Reply]]:
    async def handle(request: BaseModel) -> rpc.Reply:
        answer = await verb.perform(request)
        result = answer.model_dump(mode="json")
        if (size := len(to_json(result))) > MAX_REPLY_BYTES:
            # The server would close the connection of whoever sends more than its limit.
            raise RejectedError("reply_too_large", f"the answer has {size} bytes")
        return rpc.Reply(ok=True, result=result)

    handle.__name__ = name
    handle.__annotations__ = {"request": verb.request, "return": rpc.Reply}
    return handle


async def _failure(error: Exception) -> rpc.Reply:
    """Answer with what went wrong; what nobody foresaw is logged in full and said as a bug."""
    if isinstance(error, PenstockError):
        known: PenstockError = error
    elif isinstance(error, ValidationError):
        details = tuple(
            ErrorDetail(path=show_location(found["loc"]), message=found["msg"])
            for found in error.errors(include_url=False)
        )
        known = RejectedError(
            "invalid_request", f"{details[0].path}: {details[0].message}", details=details
        )
    else:
        log.error("rpc.failed", error=error)
        known = InvariantError("internal_error", "the registry failed; its log says how")
    return rpc.Reply(ok=False, error=known.info())
