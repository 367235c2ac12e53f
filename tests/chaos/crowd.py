"""Clients under chaos: they start runs and follow them as a careful client would."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx

from tests.chaos.witness import Witness
from tests.support.waiting import eventually

GONE = (httpx.TransportError, httpx.HTTPStatusError)
RETRY_SECONDS = 0.1
APPROVE_SECONDS = 0.5
STARTERS = 12


@dataclass
class Transcript:
    """What one follower was told, over all its reconnections."""

    run_id: str
    ids: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    connections: int = 0

    @property
    def ended(self) -> bool:
        return bool(self.types) and self.types[-1] in ("run_done", "run_failed", "run_cancelled")


@dataclass
class Accepted:
    """One run that was accepted, and when its client asked (last) and was answered."""

    run_id: str
    asked_at: float
    answered_at: float


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client with room for a crowd."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    timeout = httpx.Timeout(10, read=60, pool=60)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout) as client:
        yield client


class Crowd:
    """Keeps a number of runs in flight: as one ends, the next is started."""

    def __init__(self, client: httpx.AsyncClient, witness: Witness, names: Sequence[str]) -> None:
        """Prepare to start runs of ``names`` in turns; ``witness`` tells how many are open."""
        self._client = client
        self._witness = witness
        self._names = names
        self._wanted = 0
        self._begun = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.accepted: list[Accepted] = []

    async def fill(self, wanted: int, within: float) -> None:
        """Start the first runs, and keep so many in flight from now on.

        Raises:
            TimeoutError: They were not in flight in time.
        """
        self._wanted = wanted
        self._tasks = [asyncio.create_task(self._start()) for _ in range(STARTERS)]
        self._approver = asyncio.create_task(approve_all(self._client))
        async with asyncio.timeout(within):
            while self._witness.open_runs < 0.95 * wanted:  # some are always on their way
                await self.check()
                await asyncio.sleep(RETRY_SECONDS)

    async def check(self) -> None:
        """Raise what a starter, or who approves, failed with, if one has."""
        for task in (*self._tasks, self._approver):
            if task.done():
                await task

    async def close(self, within: float) -> None:
        """Start no more, and wait until all that were started have ended.

        Raises:
            TimeoutError: They have not in time.
        """
        self._wanted = 0
        await asyncio.gather(*self._tasks)
        async with asyncio.timeout(within):
            while self._witness.open_runs:
                await self.check()
                await asyncio.sleep(RETRY_SECONDS)
        self._approver.cancel()
        await asyncio.gather(self._approver, return_exceptions=True)

    def answered_since(self, moment: float) -> float | None:
        """Return when the first run was accepted that was asked for after ``moment``."""
        answers = (run.answered_at for run in self.accepted if run.asked_at > moment)
        return min(answers, default=None)

    async def _start(self) -> None:
        while self._wanted:
            if self._begun - len(self._witness.ended) >= self._wanted:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._begun += 1
            key, name = f"key-{self._begun}", self._names[self._begun % len(self._names)]
            self.accepted.append(await start_run(self._client, name, key, within=180))


async def start_run(client: httpx.AsyncClient, name: str, key: str, within: float) -> Accepted:
    """Start a run until it is accepted; the key makes the repetitions harmless."""
    async with asyncio.timeout(within):
        while True:
            asked_at = time.time()
            try:
                answer = await client.post(
                    "/v1/runs",
                    json={"name": name, "input": {"key": key}},
                    headers={"Idempotency-Key": key},
                )
                answer.raise_for_status()
            except GONE as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return Accepted(str(answer.json()["run_id"]), asked_at, time.time())


async def approve_all(client: httpx.AsyncClient) -> None:
    """Say yes to all that is asked, again and again; a lost answer makes it be said twice."""
    while True:
        try:
            page = await client.get("/v1/approvals", params={"limit": 200})
            page.raise_for_status()
            for asked in page.json()["items"]:
                place = f"/v1/approvals/{asked['run_id']}/{asked['record_id']}/approve"
                answer = await client.post(place, json={"digest": asked["digest"]})
                answer.raise_for_status()
        except GONE as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
        await asyncio.sleep(APPROVE_SECONDS)


class Followers:
    """Clients that follow runs to their end, each with its transcript."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        """Prepare; nobody follows yet."""
        self._client = client
        self._tasks: list[asyncio.Task[None]] = []
        self.transcripts: list[Transcript] = []

    async def begin(self, accepted: Sequence[Accepted], within: float = 30) -> None:
        """Follow further runs; return when the first of them has been told something.

        Raises:
            AssertionError: None was told anything in time.
        """
        begun = [Transcript(run.run_id) for run in accepted]
        self.transcripts += begun
        self._tasks += [
            asyncio.create_task(follow(self._client, transcript, within=1200))
            for transcript in begun
        ]
        await eventually(lambda: any(t.connections for t in begun), within=within)

    async def begin_open(self, accepted: Sequence[Accepted], within: float = 60) -> None:
        """Follow the newest run, until that is one that has not ended.

        Args:
            accepted: All runs so far; a crowd adds to it.
            within: Time limit in seconds.

        Raises:
            AssertionError: All of them had ended.
        """
        deadline = time.monotonic() + within
        while True:
            await self.begin(accepted[-1:])
            await asyncio.sleep(RETRY_SECONDS)
            if not self.transcripts[-1].ended:
                return
            assert time.monotonic() < deadline, "each run had ended before it was followed"

    async def end(self) -> list[Transcript]:
        """Wait until all have seen the end of their runs."""
        await asyncio.gather(*self._tasks)
        return self.transcripts


async def follow(client: httpx.AsyncClient, transcript: Transcript, within: float) -> None:
    """Follow a run's events to the end, resuming after the last id whenever it breaks off."""
    run_id = transcript.run_id
    async with asyncio.timeout(within):
        while not transcript.ended:
            headers = {"Accept": "text/event-stream"}
            if transcript.ids:
                headers["Last-Event-ID"] = str(transcript.ids[-1])
            try:
                url = f"/v1/runs/{run_id}/events"
                async with client.stream("GET", url, headers=headers) as answer:
                    answer.raise_for_status()
                    transcript.connections += 1
                    await _read(answer, transcript)
            except GONE:
                await asyncio.sleep(RETRY_SECONDS)


async def _read(answer: httpx.Response, transcript: Transcript) -> None:
    event, event_id = "", None
    async for line in answer.aiter_lines():
        if line.startswith("event:"):
            event = line[6:].strip()
        elif line.startswith("id:"):
            event_id = int(line[3:])
        elif not line and event:
            if event_id is not None:
                transcript.ids.append(event_id)
                transcript.types.append(event)
            event, event_id = "", None
