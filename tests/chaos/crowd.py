"""Clients under chaos: they start runs and follow them as a careful client would."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import httpx

GONE = (httpx.TransportError, httpx.HTTPStatusError)


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


async def start_run(client: httpx.AsyncClient, name: str, key: str, within: float) -> str:
    """Start a run until it is accepted; the key makes the repetitions harmless."""
    async with asyncio.timeout(within):
        while True:
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
                await asyncio.sleep(0.1)
            else:
                return str(answer.json()["run_id"])


async def follow(client: httpx.AsyncClient, run_id: str, within: float) -> Transcript:
    """Follow a run's events to the end, resuming after the last id whenever it breaks off."""
    transcript = Transcript(run_id)
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
                await asyncio.sleep(0.1)
    return transcript


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
