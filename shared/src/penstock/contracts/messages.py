"""Messages beside facts: claims, timers, deltas, dead letters and entries of the log."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import RunFact
from penstock.contracts.structs import Count, Instant, WireStruct

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
"""A SHA-256 in hexadecimal digits."""


class Claim(WireStruct, tag="claim"):
    """Stands in a message whose body was too large; the body is an object named by its digest."""

    sha256: Digest
    size_bytes: Count
    media_type: str = "application/json"


class TimerDue(WireStruct, tag="timer.due"):
    """A timer has come due. It only wakes the run up: the decision depends on the log."""

    due_at: Instant


class DeltaBatch(WireStruct, tag="delta"):
    """Pieces of text that a step emitted, in order, sent together.

    ``first`` is the index of the first piece among all of the attempt (from 0).
    """

    first: int
    texts: tuple[str, ...]


class DeadLetter(WireStruct, tag="dead"):
    """A message that was given up on, with the reason."""

    stream: str
    stream_seq: int
    subject: str
    consumer: str
    deliveries: int
    error: ErrorInfo
    body: str
    """The first 64 KiB of the message's body as text (undecodable bytes replaced)."""
    occurred_at: Instant


class LogEntry(WireStruct):
    """A fact with its place in the log, as exports, pages and the archive carry it."""

    seq: int
    subject: str
    fact: RunFact
