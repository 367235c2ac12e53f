"""Turns: which runs with the same concurrency key are under way, and which wait for a place.

One record for each key, changed as a whole by compare-and-set. Pure: what a change gives depends
on the record and the change alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

from pydantic import AwareDatetime, TypeAdapter

from penstock.contracts.facts import Record
from penstock.contracts.plan import ConcurrencySpec

MAX_WAITING: Final = 1000
"""Runs that may wait for one key."""

Answer = Literal["admitted", "queued", "rejected", "cancelled", "queue_full"]


class Turn(Record):
    """One run at a key."""

    run_id: str
    shard: int
    since: AwareDatetime
    """When it asked; of a run under way, when it was admitted."""
    priority: int = 0
    cancelled: bool = False
    """It has been requested to make room."""


class TurnRecord(Record):
    """Value of bucket ``turns``: one concurrency key of a tenant."""

    key: str = ""
    """The key as it was written, for people."""
    max: int = 1
    """How many may be under way, by the latest run's plan."""
    holders: tuple[Turn, ...] = ()
    """Runs that are under way, the oldest first."""
    queue: tuple[Turn, ...] = ()
    """Runs that wait, the next one first."""

    @property
    def empty(self) -> bool:
        """Whether it has neither holders nor a queue."""
        return not self.holders and not self.queue

    def position(self, run_id: str) -> int | None:
        """Return how many wait before a run; ``None`` if it does not wait."""
        return next((n for n, turn in enumerate(self.queue) if turn.run_id == run_id), None)

    def holds(self, run_id: str) -> bool:
        """Return whether a run is under way."""
        return any(turn.run_id == run_id for turn in self.holders)


TURN_RECORD: Final[TypeAdapter[TurnRecord]] = TypeAdapter(TurnRecord)


def asked(record: TurnRecord, turn: Turn, spec: ConcurrencySpec) -> tuple[TurnRecord, Answer]:
    """Return the record after a run has asked for a place, and its answer. Asking twice is once.

    Args:
        record: The key's record.
        turn: The run that asks.
        spec: What its plan says of the key.
    """
    if record.max != spec.max:
        record = record.model_copy(update={"max": spec.max})
    record = settled(record, turn.since)
    if record.holds(turn.run_id):
        return record, "admitted"
    if record.position(turn.run_id) is not None:
        return record, "queued"
    waiting = any(not one.cancelled for one in record.queue)
    if len(record.holders) < record.max and not waiting:
        return record.model_copy(update={"holders": (*record.holders, turn)}), "admitted"
    if spec.policy == "reject":
        return record, "rejected"
    if spec.policy == "cancel_newest":
        return record, "cancelled"
    if len(record.queue) >= MAX_WAITING:
        return record, "queue_full"
    before = sum(one.priority >= turn.priority for one in record.queue)
    queue = (*record.queue[:before], turn, *record.queue[before:])
    record = record.model_copy(update={"queue": queue})
    if spec.policy == "cancel_oldest":
        record = _oldest_cancelled(record, turn.run_id)
    return record, "queued"


def left(record: TurnRecord, run_ids: Collection[str], now: AwareDatetime) -> TurnRecord:
    """Return the record without runs that have ended; others take their places."""
    holders = tuple(one for one in record.holders if one.run_id not in run_ids)
    queue = tuple(one for one in record.queue if one.run_id not in run_ids)
    if (len(holders), len(queue)) == (len(record.holders), len(record.queue)):
        return settled(record, now)
    return settled(record.model_copy(update={"holders": holders, "queue": queue}), now)


def settled(record: TurnRecord, now: AwareDatetime) -> TurnRecord:
    """Return the record with free places taken by those that wait."""
    free = record.max - len(record.holders)
    if free <= 0 or not record.queue:
        return record
    next_ones = [turn for turn in record.queue if not turn.cancelled][:free]
    if not next_ones:
        return record
    chosen = {turn.run_id for turn in next_ones}
    admitted = tuple(turn.model_copy(update={"since": now}) for turn in next_ones)
    return record.model_copy(
        update={
            "holders": (*record.holders, *admitted),
            "queue": tuple(turn for turn in record.queue if turn.run_id not in chosen),
        }
    )


def _oldest_cancelled(record: TurnRecord, newest: str) -> TurnRecord:
    """Node record the oldest runs as to be cancelled until no more than ``max`` are left."""
    staying = [turn for turn in (*record.holders, *record.queue) if not turn.cancelled]
    too_many = len(staying) - record.max
    # Those under way are older than those that never began.
    begun = {turn.run_id for turn in record.holders}
    others = sorted(
        (one for one in staying if one.run_id != newest),
        key=lambda one: (one.run_id not in begun, one.since),
    )
    doomed = {turn.run_id for turn in others[: max(0, too_many)]}

    def marked(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return tuple(
            turn.model_copy(update={"cancelled": True}) if turn.run_id in doomed else turn
            for turn in turns
        )

    return record.model_copy(
        update={"holders": marked(record.holders), "queue": marked(record.queue)}
    )
