"""Reading event streams in tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx

from penstock.runs.events import CLIENT_EVENT, events_of
from penstock.runs.state import Entry

DELTA = "agent_stream_delta"


class Sse(NamedTuple):
    id: int | None
    type: str
    data: dict[str, Any]


async def read_sse(response: httpx.Response) -> AsyncIterator[Sse]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
        else:
            if "data" in fields:
                event_id = fields.get("id")
                yield Sse(
                    int(event_id) if event_id else None, fields["event"], json.loads(fields["data"])
                )
            fields = {}


async def all_events(response: httpx.Response) -> list[Sse]:
    return [event async for event in read_sse(response)]


def of_log(entries: list[Entry]) -> list[tuple[int | None, str, dict[str, Any]]]:
    """What a stream must show of the log, as plain data."""
    return [
        (
            event.id,
            event.type.value,
            json.loads(CLIENT_EVENT.dump_json(event, exclude_none=True)),
        )
        for entry in entries
        for event in events_of(entry)
    ]


def without_deltas(events: list[Sse]) -> list[tuple[int | None, str, dict[str, Any]]]:
    return [(event.id, event.type, event.data) for event in events if event.type != DELTA]


def texts(events: list[Sse]) -> list[str]:
    return [event.data["data"]["text"] for event in events if event.type == DELTA]
