"""The event stream of one run, assembled from the log, its live copy and the deltas. No I/O.

Items may arrive in any order and repeatedly. The output is in the order of the log, each
fact once, each piece of text once and between the start and the end of its attempt. Where
something is missing, ``need`` says what; nothing passes the gap until it is filled or known to be
gone. The end of the run passes only after it was compared with the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from json import encoder
from typing import Final

from penstock.contracts.facts import (
    RunEnded,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
)
from penstock.contracts.messages import DeltaBatch
from penstock.runs.events import CLIENT_EVENT, ClientEvent, EventType, events_of
from penstock.runs.state import Entry

KEEP_ALIVE: Final = b": keep-alive\n"
OPENING: Final = b"retry: 1000\n"
"""Without an empty line, at which some clients make an event of nothing."""
CHUNK_BYTES: Final = 65_536

_ENGINE: Final = f"{StepKind.RUN}."

Attempt = tuple[str, int]
"""A step's id and the number of its attempt."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A batch of pieces of text with the attempt that it belongs to."""

    attempt: Attempt
    batch: DeltaBatch


@dataclass(frozen=True, slots=True)
class PiecesNeeded:
    """Pieces ``first`` to ``until`` (exclusive) of an attempt are missing: ``refill`` them."""

    attempt: Attempt
    first: int
    until: int


@dataclass(frozen=True, slots=True)
class LogNeeded:
    """Facts before this sequence may be missing: ``confirm`` with the run's log up to it."""

    seq: int


Need = PiecesNeeded | LogNeeded


class Transcript:
    """One client's view of one run."""

    def __init__(
        self, run_id: str, *, after: int = 0, types: frozenset[EventType] | None = None
    ) -> None:
        """Begin.

        Args:
            run_id: The run.
            after: Leave out facts up to this stream sequence.
            types: Types of events that are wanted; ``None`` for all.
        """
        self._run_id = run_id
        self._after = after
        self._types = types
        self.wants_deltas = types is None or EventType.AGENT_STREAM_DELTA in types
        self.finished = False
        self.need: Need | None = None
        self._queue: deque[Entry | Delta] = deque()
        self._seen: set[int] = set()
        self._next: dict[Attempt, int] = {}
        self._heads: dict[Attempt, str] = {}
        self._over: set[Attempt] = set()
        self._complete: set[Attempt] = set()
        self._early: dict[Attempt, list[DeltaBatch]] = {}
        self._pools: dict[Attempt, str] = {}
        self._checked = 0
        """No fact up to this sequence is missing."""
        self._decision = 0
        """The latest decision of which a fact was taken."""
        self._out: list[bytes] = []
        self._out_bytes = 0

    @property
    def open_pools(self) -> frozenset[str]:
        """The pools of runners for the attempts that have no result yet."""
        return frozenset(one for one in self._pools.values() if not one.startswith(_ENGINE))

    # -- input ---------------------------------------------------------------------------------

    def history(self, entries: Sequence[Entry], deltas: Iterable[Delta] = ()) -> None:
        """Take the facts of the log from its beginning, and of the deltas after that.

        It goes before everything that is waiting. It may be called again at any time, after a
        reconnection for example; earlier output is not repeated.
        """
        for entry in entries:
            if isinstance(entry.fact, StepResult):
                # Its pieces were read after it: missing ones will not arrive.
                self._complete.add(_attempt(entry))
                if entry.seq <= self._after:
                    self._over.add(_attempt(entry))
            elif isinstance(entry.fact, RunEnded) and entry.seq <= self._after:
                self.finished = True
                return
        for delta in deltas:
            if delta.attempt not in self._over:
                self._early.setdefault(delta.attempt, []).append(delta.batch)
        for entry in entries:
            if entry.seq <= self._after:
                self._note(entry)
        for attempt in list(self._next):
            self._release(attempt)
        fresh = [e for e in entries if e.seq > self._after and e.seq not in self._seen]
        self._queue.extendleft(reversed(fresh))
        if entries:
            self._checked = max(self._checked, entries[-1].seq)
        self.need = None

    def fact(self, entry: Entry) -> None:
        """Take a fact as it happened."""
        self._queue.append(entry)

    def delta(self, attempt: Attempt, batch: DeltaBatch) -> None:
        """Take a batch of pieces as it was emitted."""
        if self.wants_deltas:
            self._queue.append(Delta(attempt, batch))

    def refill(self, deltas: Iterable[Delta]) -> None:
        """Take all pieces of the attempt that ``need`` names; missing ones are lost."""
        need = self.need
        if not isinstance(need, PiecesNeeded):
            return
        batches = [delta.batch for delta in deltas if delta.attempt == need.attempt]
        for batch in sorted(batches, key=lambda batch: batch.first):
            self._pieces(need.attempt, batch)
        self._next[need.attempt] = max(self._next.get(need.attempt, 0), need.until)
        self.need = None

    def confirm(self, entries: Sequence[Entry]) -> None:
        """Take the run's log; facts that never arrived go before the one that ``need`` names."""
        end = self.need.seq if isinstance(self.need, LogNeeded) else 0
        missing = [
            entry
            for entry in entries
            if self._after < entry.seq < end and entry.seq not in self._seen
        ]
        self._queue.extendleft(reversed(missing))
        self._checked = max(self._checked, end)
        self.need = None

    def live(self, event: ClientEvent) -> None:
        """Take an event that no fact is behind."""
        if self._types is None or event.type in self._types:
            self._put(frame(event))

    # -- what goes out -------------------------------------------------------------------------

    def take(self, limit_bytes: int = CHUNK_BYTES) -> bytes:
        """Return what can be sent now, about ``limit_bytes`` at most; empty if nothing can."""
        while self._queue and self.need is None and not self.finished:
            if self._out_bytes >= limit_bytes:
                break
            item = self._queue[0]
            passed = self._entry(item) if isinstance(item, Entry) else self._delta(item)
            if passed:
                # A refusal leaves the item in its place; `need` says why.
                self._queue.popleft()
        if not self._out:
            return b""
        chunk = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return chunk

    # -- inside --------------------------------------------------------------------------------

    def _entry(self, entry: Entry) -> bool:
        if entry.seq in self._seen or entry.seq <= self._after:
            return True
        fact = entry.fact
        if entry.seq > self._checked and self._may_follow_others(entry):
            self.need = LogNeeded(entry.seq)
            return False
        if (
            isinstance(fact, StepResult)
            and fact.kind is StepKind.AGENT
            and self._lacks_pieces(entry, fact)
        ):
            return False
        self._seen.add(entry.seq)
        for event in events_of(entry):
            if self._types is None or event.type in self._types:
                self._put(frame(event))
        self._note(entry)
        return True

    def _may_follow_others(self, entry: Entry) -> bool:
        """Return whether a live fact may follow facts whose live copies were lost.

        A route between servers loses copies without a reconnection. The end is always checked; a
        decision names the input that led to it, and a result has a scheduled step.
        """
        fact = entry.fact
        if isinstance(fact, RunEnded):
            return True
        if isinstance(fact, StepResult):
            return _attempt(entry) not in self._pools
        if isinstance(fact, StepScheduled | StateChanged):
            if fact.decision is None:  # it stands in the first fact of its decision
                return entry.subject.decision > self._decision
            cause = fact.decision.cause_seq
            return cause > max(self._after, self._checked) and cause not in self._seen
        return False

    def _note(self, entry: Entry) -> None:
        """Keep what a fact means for the pieces of its attempt, and for the stream."""
        self._decision = max(self._decision, entry.subject.decision)
        fact = entry.fact
        if isinstance(fact, StepScheduled):
            attempt = _attempt(entry)
            self._pools[attempt] = f"{entry.subject.kind}.{entry.subject.queue}"
            if entry.subject.kind == StepKind.AGENT and attempt not in self._over:
                self._next.setdefault(attempt, 0)
                self._release(attempt)
        elif isinstance(fact, StepResult):
            attempt = _attempt(entry)
            self._over.add(attempt)
            for known in (self._next, self._heads, self._early, self._pools):
                known.pop(attempt, None)
        elif isinstance(fact, RunEnded):
            self.finished = True

    def _lacks_pieces(self, entry: Entry, result: StepResult) -> bool:
        if not self.wants_deltas or not result.deltas:
            return False
        attempt = _attempt(entry)
        if attempt in self._over or attempt in self._complete:
            return False
        have = self._next.get(attempt, 0)
        if have >= result.deltas:
            return False
        self.need = PiecesNeeded(attempt, have, result.deltas)
        return True

    def _delta(self, delta: Delta) -> bool:
        attempt, batch = delta.attempt, delta.batch
        if attempt in self._over:
            return True
        have = self._next.get(attempt)
        if have is None:
            self._early.setdefault(attempt, []).append(batch)
        elif batch.first > have:
            self.need = PiecesNeeded(attempt, have, batch.first)
            return False
        else:
            self._pieces(attempt, batch)
        return True

    def _release(self, attempt: Attempt) -> None:
        """Pass on the pieces that came before the start of their attempt did."""
        batches = self._early.pop(attempt, None)
        if batches:
            for batch in sorted(batches, key=lambda batch: batch.first):
                self._pieces(attempt, batch)

    def _pieces(self, attempt: Attempt, batch: DeltaBatch) -> None:
        have = self._next.get(attempt, 0)
        first, texts = batch.first, batch.texts
        if first < have:
            texts = texts[have - first :]
            first = have
        if not texts or not self.wants_deltas:
            return
        head = self._heads.get(attempt)
        if head is None:
            head = self._heads[attempt] = _delta_head(self._run_id, attempt)
        quote = encoder.encode_basestring
        if len(texts) == 1:
            frames = f'{head}{first},"text":{quote(texts[0])}}}}}\n\n'
        else:
            frames = "".join(
                [
                    f'{head}{index},"text":{quote(text)}}}}}\n\n'
                    for index, text in enumerate(texts, first)
                ]
            )
        self._next[attempt] = first + len(texts)
        self._put(frames.encode("utf-8", "replace"))

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)


def _attempt(entry: Entry) -> Attempt:
    return entry.subject.step_id, entry.subject.attempt


def _delta_head(run_id: str, attempt: Attempt) -> str:
    """Return the frame of a piece up to its index; the rest of it is written by hand for speed."""
    step_id, number = attempt
    return (
        f"event: {EventType.AGENT_STREAM_DELTA}\n"
        f'data: {{"type":"{EventType.AGENT_STREAM_DELTA}","run_id":"{run_id}",'
        f'"step_id":"{step_id}","attempt":{number},"data":{{"index":'
    )


def frame(event: ClientEvent) -> bytes:
    """Return an event in the form of the event stream format; only log events have an id."""
    data = CLIENT_EVENT.dump_json(event, exclude_none=True)
    if event.id is None:
        return b"event: %b\ndata: %b\n\n" % (event.type.encode(), data)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.id, event.type.encode(), data)
