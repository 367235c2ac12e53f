"""News for runs: events, by run or by correlation key, and messages from one run to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Path, Response

from penstock import clock
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.facts import SignalReceived
from penstock.runs.replies import SentSignal, SentSignals
from penstock_gateway.context import GatewayParts, IdempotencyKey, Operator, PathToken
from penstock_gateway.core.access import Caller
from penstock_gateway.core.requests import CorrelatedSignal, RunMessage, Signal
from penstock_gateway.openapi import DONE_BEFORE
from penstock_gateway.runs.read import NOT_FOUND
from penstock_gateway.runs.signals import Sent, signal_id_of

RunId = Annotated[str, Path(description="The run")]

signalling: Final = APIRouter(tags=["signals"])


def signal_view(sent: Sent) -> SentSignal:
    """Return a signal as clients see it."""
    return SentSignal(
        run_id=sent.run_id,
        signal_id=sent.signal_id,
        seq=sent.seq,
        name=sent.fact.name,
        at=sent.fact.occurred_at,
        repeated=sent.repeated,
    )


def _fact(caller: Caller, signal: Signal) -> SignalReceived:
    message = isinstance(signal, RunMessage)
    return SignalReceived(
        occurred_at=clock.now(),
        name=signal.name,
        payload=signal.payload,
        kind="message" if message else "event",
        sent_by=caller.key_id,
        from_run=signal.from_run if isinstance(signal, RunMessage) else None,
    )


def _status(response: Response, sent: Sequence[Sent]) -> None:
    if all(one.repeated for one in sent):
        response.status_code = 200
        response.headers["idempotent-replayed"] = "true"


@signalling.post("/v1/runs/{run_id}/signals", status_code=202, responses=DONE_BEFORE)
async def signal_run(
    gateway: GatewayParts,
    caller: Operator,
    run_id: RunId,
    body: Signal,
    response: Response,
    key: IdempotencyKey,
) -> SentSignal:
    """Send an event to a run. Answers 202 once it is in the log, 200 if it was there already."""
    sent = await gateway.signals.send(caller.tenant, run_id, signal_id_of(key), _fact(caller, body))
    _status(response, [sent])
    return signal_view(sent)


@signalling.post("/v1/signals", status_code=202, responses=DONE_BEFORE)
async def signal_waiting(
    gateway: GatewayParts,
    caller: Operator,
    body: CorrelatedSignal,
    response: Response,
    key: IdempotencyKey,
) -> SentSignals:
    """Send an event to every run that waits for its correlation key; 404 if none does."""
    sent = await gateway.signals.send_to_waiting(
        caller.tenant, body.correlation, signal_id_of(key), _fact(caller, body)
    )
    _status(response, sent)
    return SentSignals(items=tuple(signal_view(one) for one in sent))


@signalling.post("/v1/runs/{run_id}/messages", status_code=202, responses=DONE_BEFORE)
async def message_run(
    gateway: GatewayParts,
    caller: Operator,
    run_id: RunId,
    body: RunMessage,
    response: Response,
    key: IdempotencyKey,
) -> SentSignal:
    """Send a message to a run, from another one or from outside."""
    await _require_sender(gateway, caller, body)
    sent = await gateway.signals.send(caller.tenant, run_id, signal_id_of(key), _fact(caller, body))
    _status(response, [sent])
    return signal_view(sent)


@signalling.post("/v1/sessions/{session_id}/messages", status_code=202, responses=DONE_BEFORE)
async def message_session(
    gateway: GatewayParts,
    caller: Operator,
    session_id: PathToken,
    body: RunMessage,
    response: Response,
    key: IdempotencyKey,
) -> SentSignal:
    """Send a message to the latest run of a session; 409 if that has ended."""
    await _require_sender(gateway, caller, body)
    sent = await gateway.signals.send_to_session(
        caller.tenant, session_id, signal_id_of(key), _fact(caller, body)
    )
    _status(response, [sent])
    return signal_view(sent)


async def _require_sender(gateway: GatewayParts, caller: Caller, message: RunMessage) -> None:
    if message.from_run is None:
        return
    try:
        await gateway.runs.require(caller.tenant, message.from_run)
    except RejectedError as error:
        if error.code != NOT_FOUND:
            raise
        raise RejectedError(
            "invalid_request",
            "the message is from a run that does not exist",
            details=(
                finding("from_run", f"there is no run {message.from_run}", "a run of this tenant"),
            ),
        ) from error
