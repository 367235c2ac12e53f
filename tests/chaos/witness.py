"""Somebody who reads the log along while it is written: what is open, and since when it moves."""

from __future__ import annotations

import asyncio
import bisect
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple, Self

from penstock.bus.claims import Claims
from penstock.bus.connection import connect
from penstock.bus.reader import LogReader, Stored
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError
from penstock.settings import CoreSettings

EVERY_SECONDS = 0.1
_RUNNER = re.compile(rb'"runner_id":"[^"]*-(\d+)"')
_CHILD = b'"parent":{'
_FRACTION = re.compile(r"(\.\d{6})\d+")


class Seen(NamedTuple):
    """One fact of the log, as far as recovery is told by it."""

    seq: int
    at: float
    """Unix time when the server stored it."""
    run_id: str
    shard: int
    event: str
    """``invoke``, ``result``, ``out`` (any decision) or another input."""
    step_id: str = ""
    kind: str = ""
    pid: int = 0
    """Of the runner, for a result."""


def stored_at(message: Stored) -> float:
    """Return the Unix time when the server stored a message."""
    text = _FRACTION.sub(r"\1", message.headers["Nats-Time-Stamp"].replace("Z", "+00:00"))
    return datetime.fromisoformat(text).timestamp()


class Witness:
    """Reads the log along; also a context manager that begins and ends it."""

    def __init__(self, settings: CoreSettings) -> None:
        """Prepare to watch the bus that ``settings`` name."""
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self.facts: list[Seen] = []
        self._times: list[float] = []
        self.ended: dict[str, float] = {}
        self.invoked: dict[str, float] = {}
        self.children: set[str] = set()
        """Runs that another run has started; the crowd did not, and they are not in the others."""

    async def __aenter__(self) -> Self:
        self._bus = await connect(self._settings, name="witness")
        self._reader = LogReader(self._bus, Claims(self._bus, 131_072))
        self._task = asyncio.create_task(self._read_along(), name="witness")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._bus.close()

    @property
    def last_seq(self) -> int:
        """The last fact that was read."""
        return self.facts[-1].seq if self.facts else 0

    @property
    def open_runs(self) -> int:
        """How many runs were asked for and have not ended."""
        return len(self.invoked) - len(self.ended)

    def since(self, moment: float) -> Iterator[Seen]:
        """Yield what was stored after ``moment`` (Unix time), as far as it was read."""
        # A new leader's clock is this machine's too, so times rise with the sequence.
        for index in range(bisect.bisect_right(self._times, moment), len(self.facts)):
            yield self.facts[index]

    def first(self, moment: float, matches: Callable[[Seen], bool]) -> float | None:
        """Return when the first fact that matches was stored after ``moment``."""
        return next((seen.at for seen in self.since(moment) if matches(seen)), None)

    async def _read_along(self) -> None:
        while True:
            try:
                async for page in self._reader.pages(
                    subjects.RUNS, subjects.RUN_SPACE, after_seq=self.last_seq
                ):
                    for message in page:
                        self._take(message)
            except PenstockError:
                pass  # the bus is away: that is what we are here to see
            await asyncio.sleep(EVERY_SECONDS)

    def _take(self, message: Stored) -> None:
        parts = message.subject.split(".")
        seq, at, run_id, shard = message.seq, stored_at(message), parts[3], int(parts[2])
        if parts[4] == "out":
            seen = Seen(seq, at, run_id, shard, "out")
            if parts[6] == "end" and run_id not in self.children:
                self.ended[run_id] = at
        elif parts[5] == "result":
            found = _RUNNER.search(message.body)
            pid = int(found[1]) if found else 0
            kind = "agent" if b'"kind":"agent"' in message.body else "tool"
            seen = Seen(seq, at, run_id, shard, "result", parts[6], kind, pid)
        else:
            seen = Seen(seq, at, run_id, shard, parts[5])
            if parts[5] == "invoke" and _CHILD in message.body:
                self.children.add(run_id)
            elif parts[5] == "invoke":
                self.invoked[run_id] = at
        self.facts.append(seen)
        self._times.append(at)
