"""Dead letters: messages that could not be processed, to inspect, requeue or discard.

The log keeps the fact in any case. To requeue a letter makes the engine reload the run, or makes
the next attempt at a step.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from penstock import clock
from penstock.bus.connection import JetStreamError
from penstock.contracts import subjects
from penstock.contracts.errors import (
    ConflictError,
    ErrorFamily,
    ErrorInfo,
    PenstockError,
    RejectedError,
    TransientError,
    finding,
)
from penstock.contracts.facts import StepResult, fact_bytes
from penstock.contracts.ids import Token
from penstock.contracts.messages import DeadLetter, TimerDue
from penstock.contracts.structs import decode, encode
from penstock.runs.replies import DeadLettersDone, RefusedLetter
from penstock.runs.state import StepState
from penstock.telemetry.logs import EventLog
from penstock_gateway.core.dead_letters import Address, address_of, remedy_of, step_of
from penstock_gateway.core.requests import Input
from penstock_gateway.gateway import Gateway
from penstock_gateway.runs.read import available

RELOAD: Final = "reload"
"""Id of a timer that makes the engine reload a run."""
REQUEUED: Final = "requeued"
_NOT_FOUND: Final = 404
_GONE: Final = frozenset({10037, 10043, 10057})
"""What the server says of a message that is not there any more."""
_KEPT: Final = {"Nats-TTL": "1h"}

Verb = Literal["requeue", "discard"]

log = EventLog(__name__)


class Letter(NamedTuple):
    """A dead letter and its sequence in the stream."""

    seq: int
    address: Address
    letter: DeadLetter


class Filter(Input):
    """Filters of dead letters; all given filters must match."""

    consumer: Token | None = None
    run_id: Token | None = None
    code: Annotated[str, Field(max_length=100)] | None = None
    """Of the error."""

    def fits(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        return (
            self.consumer in (None, letter.letter.consumer)
            and self.run_id in (None, letter.address.run_id)
            and self.code in (None, letter.letter.error.code)
        )


class DeadLetters:
    """The dead letters of any tenant."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the process's parts."""
        self._bus = gateway.bus
        self._reader = gateway.reader
        self._writer = gateway.writer
        self._runs = gateway.runs

    async def all(self, tenant: str, criteria: Filter, *, after: int = 0) -> AsyncIterator[Letter]:
        """Yield the letters of a tenant that fit, the oldest first.

        Raises:
            TransientError: The bus did not answer.
        """
        pattern = subjects.dead("*", criteria.consumer or "*")
        with available():
            async for page in self._reader.pages(subjects.DEAD, pattern, after_seq=after):
                for message in page:
                    letter = _read(message.seq, message.body)
                    if letter is None or letter.address.tenant != tenant:
                        continue
                    if criteria.fits(letter):
                        yield letter

    async def get(self, tenant: str, seq: int) -> Letter:
        """Return one letter.

        Raises:
            RejectedError: ``dead_letter_not_found``.
            TransientError: The bus did not answer.
        """
        try:
            answer = await self._bus.api(f"STREAM.MSG.GET.{subjects.DEAD}", {"seq": seq})
        except JetStreamError as error:
            if error.code != _NOT_FOUND:
                raise TransientError("dead_letters_unavailable", str(error)) from error
            raise _not_found(seq) from error
        letter = _read(seq, base64.b64decode(answer["message"].get("data", "")))
        if letter is None or letter.address.tenant != tenant:
            raise _not_found(seq)
        return letter

    async def apply(self, verb: Verb, letter: Letter) -> None:
        """Requeue a letter's work, or do nothing about it; then it is gone.

        May be repeated: the work is not done twice.

        Raises:
            RejectedError: ``run_ended``: nothing can be done for it any more.
                ``not_requeueable``: it cannot be repeated alone.
            ConflictError: ``already_settled``: the step has another outcome by now.
            TransientError: The bus did not answer.
        """
        if verb == "requeue":
            await self._requeue(letter)
        await self._remove(letter.seq)
        log.info(
            "dead.requeue" if verb == "requeue" else "dead.discard",
            seq=letter.seq,
            tenant=letter.address.tenant,
            run_id=letter.address.run_id,
            consumer=letter.letter.consumer,
        )

    async def _requeue(self, letter: Letter) -> None:
        remedy = remedy_of(letter.letter)
        if remedy == "none":
            raise _not_requeueable(letter)
        state = await self._runs.state(letter.address.tenant, letter.address.run_id)
        if state.ended is not None:
            raise RejectedError(
                "run_ended",
                f"run {state.run_id} has ended: discard the letter; "
                f"`retry` or `fork` the run to do its work again",
            )
        if remedy == "reload":
            await self._reload(letter.address)
            return
        step_id, attempt = step_of(letter.letter) or ("", 0)
        subject = subjects.result(state.prefix, step_id, attempt)
        earlier = await self._reader.read_fact(subject)
        if earlier is not None:
            # Requeued by a process that died before it removed the letter: only remove it.
            if not isinstance(earlier.fact, StepResult) or not _ours(earlier.fact):
                raise _has_outcome(step_id, attempt)
            return
        step = state.steps.get(step_id)
        if step is None or step.attempt != attempt or not step.open:
            raise _has_outcome(step_id, attempt)
        try:
            await self._writer.append(subject, fact_bytes(_given_up(step, letter)))
        except ConflictError as conflict:
            raise _has_outcome(step_id, attempt) from conflict

    async def _reload(self, address: Address) -> None:
        """Make the engine reload a run and decide."""
        subject = subjects.timer_due(address.tenant, address.shard, address.run_id, RELOAD)
        body = encode(TimerDue(due_at=clock.now()))
        await self._writer.append(subject, body, headers=_KEPT)

    async def _remove(self, seq: int) -> None:
        try:
            await self._bus.api(f"STREAM.MSG.DELETE.{subjects.DEAD}", {"seq": seq})
        except JetStreamError as error:
            if error.code != _NOT_FOUND and error.err_code not in _GONE:
                raise TransientError("dead_letters_unavailable", str(error)) from error

    async def apply_all(
        self, tenant: str, verb: Verb, criteria: Filter, *, limit: int, dry_run: bool
    ) -> DeadLettersDone:
        """Requeue or discard all letters that match; the result says which ones stay, and why."""
        done: list[int] = []
        refused: list[RefusedLetter] = []
        more = False
        async for letter in self.all(tenant, criteria):
            if len(done) + len(refused) >= limit:
                more = True
                break
            try:
                if not dry_run:
                    await self.apply(verb, letter)
            except (RejectedError, ConflictError) as error:
                refused.append(RefusedLetter(seq=letter.seq, error=error.info()))
            else:
                done.append(letter.seq)
        return DeadLettersDone(dry_run=dry_run, done=tuple(done), refused=tuple(refused), more=more)


def _read(seq: int, body: bytes) -> Letter | None:
    try:
        letter = decode(DeadLetter, body)
    except ValueError:
        log.exception("dead.unreadable", seq=seq)
        return None
    address = address_of(letter)
    return None if address is None else Letter(seq, address, letter)


def _ours(fact: StepResult) -> bool:
    return fact.error is not None and fact.error.code == REQUEUED


def _given_up(step: StepState, letter: Letter) -> StepResult:
    """Return the outcome that lets the engine's retry policy make the next attempt."""
    now = clock.now()
    why = letter.letter.error
    return StepResult(
        occurred_at=now,
        kind=step.kind,
        name=step.name,
        # An attempt that must not be repeated waits for a resolution.
        status="unknown" if step.at_most_once else "failed",
        error=ErrorInfo(
            code=REQUEUED,
            message=f"given up by {letter.letter.consumer} ({why.code}: {why.message})"[:1000],
            family=ErrorFamily.TRANSIENT,
        ),
        started_at=step.decided_at,
    )


def _not_found(seq: int) -> PenstockError:
    return RejectedError("dead_letter_not_found", f"there is no dead letter {seq}")


def _has_outcome(step_id: str, attempt: int) -> PenstockError:
    return ConflictError(
        "already_settled",
        f"attempt {attempt} at step {step_id} has its outcome by now: discard the letter",
    )


def _not_requeueable(letter: Letter) -> PenstockError:
    consumer = letter.letter.consumer
    advice = "discard it"
    if consumer == subjects.PROJECTOR:
        advice = "`penstock history rebuild` reads the whole log again; then discard it"
    return RejectedError(
        "not_requeueable",
        f"{consumer} cannot be given a single message again",
        details=(finding("path.seq", f"a letter of {consumer}", advice),),
    )
