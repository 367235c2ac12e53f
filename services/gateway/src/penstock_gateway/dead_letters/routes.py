"""Dead letters over HTTP."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from pydantic import Field, StrictBool

from penstock.contracts.envelope import MAX_INT64, StreamSequence
from penstock.contracts.ids import TOKEN_PATTERN
from penstock.runs.replies import (
    DeadLetterPage,
    DeadLettersDone,
    DeadLetterView,
)
from penstock_gateway.context import GatewayParts, Operator, Viewer
from penstock_gateway.core.dead_letters import remedy_of
from penstock_gateway.core.requests import Input
from penstock_gateway.dead_letters.store import DeadLetters, Filter, Letter, Verb
from penstock_gateway.gateway import Gateway

Seq = Annotated[StreamSequence, Path(description="Sequence of the letter")]

dead_letters: Final = APIRouter(tags=["dead letters"])


class ManyDeadLetters(Input):
    """Which letters to requeue or discard."""

    filter: Filter = Filter()
    limit: int = Field(default=1000, ge=1, le=10_000)
    dry_run: StrictBool = False
    """Say only which ones it would be."""


def _view(found: Letter, *, body: bool = False) -> DeadLetterView:
    letter = found.letter
    return DeadLetterView(
        seq=found.seq,
        consumer=letter.consumer,
        stream=letter.stream,
        stream_seq=letter.stream_seq,
        subject=letter.subject,
        run_id=found.address.run_id,
        deliveries=letter.deliveries,
        error=letter.error,
        occurred_at=letter.occurred_at,
        remedy=remedy_of(letter),
        body=letter.body if body else None,
    )


@dead_letters.get("/v1/dead-letters")
async def list_dead_letters(
    gateway: GatewayParts,
    caller: Viewer,
    consumer: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
    run_id: Annotated[str | None, Query(pattern=TOKEN_PATTERN)] = None,
    code: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int, Query(ge=0, le=MAX_INT64)] = 0,
) -> DeadLetterPage:
    """List dead letters, the oldest first."""
    items: list[DeadLetterView] = []
    found = DeadLetters(gateway).all(
        caller.tenant, Filter(consumer=consumer, run_id=run_id, code=code), after=cursor
    )
    async for letter in found:
        if len(items) == limit:
            return DeadLetterPage(items=tuple(items), next_cursor=str(items[-1].seq))
        items.append(_view(letter))
    return DeadLetterPage(items=tuple(items))


@dead_letters.get("/v1/dead-letters/{seq:int}")
async def get_dead_letter(gateway: GatewayParts, caller: Viewer, seq: Seq) -> DeadLetterView:
    """Return one letter with the body of its message."""
    return _view(await DeadLetters(gateway).get(caller.tenant, seq), body=True)


@dead_letters.post("/v1/dead-letters/{seq:int}/requeue")
async def requeue_dead_letter(gateway: GatewayParts, caller: Operator, seq: Seq) -> DeadLetterView:
    """Process the message of a dead letter again, and remove the letter."""
    return await _one(gateway, caller.tenant, "requeue", seq)


@dead_letters.post("/v1/dead-letters/{seq:int}/discard")
async def discard_dead_letter(gateway: GatewayParts, caller: Operator, seq: Seq) -> DeadLetterView:
    """Remove a letter."""
    return await _one(gateway, caller.tenant, "discard", seq)


@dead_letters.post("/v1/dead-letters/requeue")
async def requeue_dead_letters(
    gateway: GatewayParts, caller: Operator, body: ManyDeadLetters
) -> DeadLettersDone:
    """Requeue all letters that fit; what cannot be stays, and the answer says why."""
    return await _many(gateway, caller.tenant, "requeue", body)


@dead_letters.post("/v1/dead-letters/discard")
async def discard_dead_letters(
    gateway: GatewayParts, caller: Operator, body: ManyDeadLetters
) -> DeadLettersDone:
    """Remove all letters that fit."""
    return await _many(gateway, caller.tenant, "discard", body)


async def _one(gateway: Gateway, tenant: str, verb: Verb, seq: int) -> DeadLetterView:
    letters = DeadLetters(gateway)
    letter = await letters.get(tenant, seq)
    await letters.apply(verb, letter)
    return _view(letter)


async def _many(
    gateway: Gateway, tenant: str, verb: Verb, body: ManyDeadLetters
) -> DeadLettersDone:
    return await DeadLetters(gateway).apply_all(
        tenant, verb, body.filter, limit=body.limit, dry_run=body.dry_run
    )
