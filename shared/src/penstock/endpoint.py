"""The answering side of request/reply: each verb of a service on its own subject.

FastStream carries it, on a separate connection: low rate, no streams, nothing to declare.
Replicas of a service share its verbs. Imported only by services that answer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from faststream import BaseMiddleware, ExceptionMiddleware
from faststream.message import StreamMessage
from faststream.nats import NatsBroker
from faststream.nats.security import NatsUserPassword
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionReconnectingError
from pydantic import BaseModel, ValidationError

from penstock.bus.connection import EXIT_CONNECTION_LOST
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorDetail, InvariantError, PenstockError, RejectedError
from penstock.contracts.rpc import Reply
from penstock.settings import CoreSettings
from penstock.telemetry import tracing
from penstock.telemetry.logs import EventLog, bind

log = EventLog(__name__)

_READERS: Final = 8
"""Requests of one reading verb that are answered at a time."""
_MAX_REPLY_BYTES: Final = 1_000_000
"""More than the bus carries in one message would close the connection for good."""


class Verb(NamedTuple):
    """What a verb takes, who does it, and whether it only reads."""

    request: type[BaseModel]
    perform: Callable[[Any], Awaitable[BaseModel]]
    reads: bool = False


class Endpoint:
    """Answers requests until it is stopped."""

    def __init__(
        self,
        settings: CoreSettings,
        service: Literal["registry", "archive"],
        table: Mapping[str, Verb],
    ) -> None:
        """Prepare one subscription for each verb; nothing is connected yet.

        Args:
            settings: Where the bus is.
            service: In whose name; also the queue group of its replicas.
            table: The verbs by name.
        """
        self._stopping = False
        self._connection: Client | None = None
        self.broker = _broker(settings, service, self._on_closed)
        for name, verb in table.items():
            self.broker.subscriber(
                subjects.rpc(service, name),
                queue=service,
                decoder=_decoder(verb.request),
                max_workers=_READERS if verb.reads else 1,
                title=name,
            )(_handler(name, verb))

    async def start(self) -> None:
        """Connect and subscribe."""
        self._connection = await self.broker.connect()
        await self.broker.start()

    async def stop(self) -> None:
        """Finish requests in work, then disconnect."""
        self._stopping = True
        try:
            await self.broker.stop()
        except ConnectionReconnectingError:
            # No requests arrive any more; FastStream can only drain an open connection.
            if self._connection is not None:
                await self._connection.close()

    async def _on_closed(self) -> None:
        if not self._stopping:
            log.error("rpc.closed_for_good")
            logging.shutdown()
            os._exit(EXIT_CONNECTION_LOST)


class _Traced(BaseMiddleware[Any, Any]):
    """Continues the trace of the request."""

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


def _broker(
    settings: CoreSettings, service: str, on_closed: Callable[[], Awaitable[None]]
) -> NatsBroker:
    # Its internal log lines are of no use to an operator.
    logger = logging.getLogger("penstock.endpoint.faststream")
    logger.setLevel(logging.WARNING)
    auth = settings.nats_auth()
    user = auth.get("user")
    security = NatsUserPassword(user, auth.get("password", "")) if user is not None else None
    return NatsBroker(
        settings.nats_servers,
        name=f"{service}-rpc-{settings.instance_id}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        ping_interval=2,
        max_outstanding_pings=2,
        closed_cb=on_closed,
        security=security,
        token=auth.get("token"),
        user_credentials=auth.get("user_credentials"),
        apply_types=False,
        middlewares=[_Traced, ExceptionMiddleware(publish_handlers={Exception: _failure})],
        logger=logger,
        log_level=logging.DEBUG,
    )


def _decoder(model: type[BaseModel]) -> Callable[[StreamMessage[Msg]], Awaitable[BaseModel]]:
    async def decode(message: StreamMessage[Msg]) -> BaseModel:
        return model.model_validate_json(message.body)

    return decode


def _handler(name: str, verb: Verb) -> Callable[[BaseModel], Awaitable[Reply]]:
    async def handle(request: BaseModel) -> Reply:
        answer = await verb.perform(request)
        reply = Reply(ok=True, result=answer.model_dump(mode="json"))
        if len(reply.model_dump_json().encode()) > _MAX_REPLY_BYTES:
            raise RejectedError("reply_too_large", "the answer does not fit into one message")
        return reply

    handle.__name__ = name
    handle.__annotations__ = {"request": verb.request, "return": Reply}
    return handle


async def _failure(error: Exception) -> Reply:
    """Reply with the error; an unexpected one is logged in full and reported as a bug."""
    if isinstance(error, PenstockError):
        known: PenstockError = error
    elif isinstance(error, ValidationError):
        details = tuple(
            ErrorDetail(path=".".join(map(str, found["loc"])), message=found["msg"])
            for found in error.errors(include_url=False)
        )
        known = RejectedError(
            "invalid_request", f"{details[0].path}: {details[0].message}", details=details
        )
    else:
        log.error("rpc.failed", error=error)
        known = InvariantError("internal_error", "the service failed; its log has the details")
    return Reply(ok=False, error=known.info())
