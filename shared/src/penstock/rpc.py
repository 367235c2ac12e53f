"""The caller's side of request/reply: one request, one typed reply or the error that was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, RejectedError, error_from
from penstock.contracts.rpc import Reply
from penstock.telemetry import tracing

if TYPE_CHECKING:
    from penstock.bus.connection import Bus

ReplyT = TypeVar("ReplyT", bound=BaseModel)

TIMEOUT_SECONDS: Final = 10.0
HEADROOM_BYTES: Final = 4096
"""Kept free for headers, which the server counts as well."""


async def call(
    bus: Bus,
    service: Literal["registry", "archive"],
    verb: str,
    request: BaseModel,
    reply: type[ReplyT],
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> ReplyT:
    """Ask a service and return its answer.

    Args:
        bus: The connection.
        service: Who is asked.
        verb: Name of the request, as in `penstock.contracts.rpc`.
        request: The request itself.
        reply: What the result is read as.
        timeout_seconds: How long to wait.

    Raises:
        PenstockError: What the service answered, in its own family.
        RejectedError: ``request_too_large`` for one message.
        TransientError: ``no_responders`` or ``request_timeout``.
        InvariantError: ``invalid_reply`` if the answer cannot be read.
    """
    body = request.model_dump_json().encode()
    if len(body) > (limit := bus.max_payload_bytes - HEADROOM_BYTES):
        raise RejectedError("request_too_large", f"{len(body)} bytes; at most {limit} can be sent")
    answer = await bus.request(
        subjects.rpc(service, verb),
        body,
        timeout_seconds=timeout_seconds,
        headers=tracing.inject({}) or None,
    )
    try:
        envelope = Reply.model_validate_json(answer.data)
        if envelope.error is None:
            return reply.model_validate(envelope.result)
    except ValidationError as error:
        raise InvariantError(
            "invalid_reply", f"{service}.{verb} sent a reply that is not a valid {reply.__name__}"
        ) from error
    raise error_from(envelope.error)
