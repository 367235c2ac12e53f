"""A log without a bus, and a store whose database comes and goes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from penstock.bus.connection import JetStreamError
from penstock.bus.reader import Page, Stored
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError
from penstock.contracts.messages import DeadLetter
from penstock.contracts.structs import decode
from penstock_archive.feed import LogMessage
from penstock_archive.rows import Batch, Key
from penstock_archive.store import Loaded, Position, Store, StoredFact
from tests.support.histories import Message

CREATED = "2026-01-01T00:00:00Z"


class FakeLog:
    """What the projector asks of a bus and of a reader, over messages in a list."""

    def __init__(self, log: Sequence[Message], *, holes: Sequence[int] = ()) -> None:
        self.stored = {
            seq: Stored(seq, subject, body)
            for seq, (subject, body) in enumerate(log, 1)
            if seq not in holes
        }
        self.last_seq = len(log)
        self.delivered = 0
        self.letters: list[DeadLetter] = []
        self.on_reconnect: list[Callable[[], None]] = []

    async def api(self, verb: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        if verb == f"STREAM.INFO.{subjects.RUNS}":
            return {"created": CREATED, "state": {"last_seq": self.last_seq}}
        if verb.startswith("CONSUMER.INFO."):
            return {"delivered": {"stream_seq": self.delivered}}
        assert verb == f"STREAM.MSG.GET.{subjects.RUNS}"
        assert request is not None
        for seq in range(request["seq"], self.last_seq + 1):
            if seq in self.stored:
                return {"message": {"seq": seq, "time": CREATED}}
        raise JetStreamError(404, 10037, "no message found")

    async def request(self, subject: str, body: bytes, *, headers: dict[str, str]) -> None:
        assert subject == subjects.dead(subjects.RUNS, subjects.PROJECTOR)
        letter = decode(DeadLetter, body)
        assert headers == {"Nats-Msg-Id": f"RUNS.{letter.stream_seq}.projector"}
        self.letters.append(letter)

    async def get_many(
        self, _stream: str, request: dict[str, Any], *, timeout_seconds: float
    ) -> Page:
        assert timeout_seconds > 0
        found = [
            self.stored[seq]
            for seq in range(request["seq"], self.last_seq + 1)
            if seq in self.stored
        ]
        taken = found[: request["batch"]]
        return Page(taken, pending=len(found) - len(taken), up_to_seq=self.last_seq)


class FakeFeed:
    """Deliveries by chance: batches of any size, again, out of order, or with some missing."""

    def __init__(self, log: FakeLog, rng: random.Random) -> None:
        self._log = log
        self._rng = rng
        self._next = 1
        self._stopped = False
        self.acknowledged = 0

    async def start(self) -> None:
        self._stopped = False

    async def stop(self) -> None:
        self._stopped = True

    def nudge(self) -> None:
        """Nobody waits for long here."""

    async def take(self, _flush_seconds: float) -> list[LogMessage]:
        rng, log = self._rng, self._log
        if self._stopped or self._next > log.last_seq:
            return []
        until = min(self._next + rng.randint(0, 12), log.last_seq)
        seqs = [seq for seq in range(self._next, until + 1) if rng.random() > 0.15]
        seqs += [seq for seq in range(1, self._next) if rng.random() < 0.05]
        # The last message always comes: what never comes is never projected.
        seqs.append(until)
        log.delivered = max(log.delivered, until)
        self._next = until + 1
        taken = [
            LogMessage(seq, stored.subject, stored.body, f"$JS.ACK.RUNS.projector.1.{seq}.1.0.0")
            for seq in seqs
            if (stored := log.stored.get(seq)) is not None
        ]
        taken.sort()
        return taken or await self.take(0)

    def acknowledge(self, message: LogMessage) -> None:
        self.acknowledged = max(self.acknowledged, message.seq)

    @property
    def exhausted(self) -> bool:
        return self._next > self._log.last_seq


class FlakyStore:
    """A store that is sometimes away, before a commit or just after it (so that nobody knows)."""

    def __init__(self, store: Store, rng: random.Random, *, chance: float) -> None:
        self._store = store
        self._rng = rng
        self._chance = chance
        self.asked = 0
        self.commits = 0

    def instant(self, at: datetime) -> Any:
        return self._store.instant(at)

    async def revision(self) -> str | None:
        return await self._store.revision()

    async def position(self, stream: str) -> Position | None:
        return await self._store.position(stream)

    async def begin(self, stream: str, created: str) -> None:
        await self._store.begin(stream, created)

    async def facts_after(self, seq: int, until: int, limit: int) -> list[StoredFact]:
        self._fail()
        return await self._store.facts_after(seq, until, limit)

    async def subjects_of(self, run_ids: Sequence[str]) -> dict[str, int]:
        return await self._store.subjects_of(run_ids)

    async def unfinished_deletions(self) -> int:
        return await self._store.unfinished_deletions()

    async def load(self, keys: Sequence[Key], until: int) -> Loaded:
        self._fail()
        return await self._store.load(keys, until)

    async def commit(self, stream: str, batch: Batch, *, after: Position) -> None:
        self._fail()
        await self._store.commit(stream, batch, after=after)
        self.commits += 1
        self._fail()

    async def close(self) -> None:
        await self._store.close()

    def _fail(self) -> None:
        self.asked += 1
        if self._rng.random() < self._chance:
            raise TransientError("archive_unavailable", "the database is away")
