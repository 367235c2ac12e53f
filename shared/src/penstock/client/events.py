"""The event stream of one run across reconnects, without I/O: each event once, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import httpx
from pydantic import ValidationError

from penstock.client.calls import path_of
from penstock.client.errors import ClientError, ProblemError, ReplyError, UnreachableError
from penstock.runs.events import CLIENT_EVENT, ClientEvent, EventType
from penstock.sse import SseReader

SILENCE_SECONDS: Final = 45.0
"""Longer than the gateway's keep-alive interval: a longer silence is a dead connection."""
CONNECT_SECONDS: Final = 10.0
CONNECTS: Final = 5
"""Repetitions of the first connection: a gateway that starts needs some seconds."""
RECONNECTS: Final = 20
"""Repetitions in a row after that, without any event between them."""
_UNAVAILABLE: Final = frozenset({502, 503, 504})


class EventFeed:
    """Turns bytes into events and remembers where to resume.

    Only events with an id can be resumed after. After a reconnect the gateway repeats the events
    since then, and the text pieces of unfinished steps from their first; repeated ones are
    dropped here.
    """

    def __init__(self, url: str, run_id: str, after: int) -> None:
        """Start after the event with the id ``after``; 0: from the beginning."""
        self._url = url
        self.path = path_of("/v1/runs/{}/events", run_id)
        self.timeout = httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS)
        self._after = after
        self._reader = SseReader()
        self._connected = False
        self._failures = 0
        self._without_id: list[ClientEvent] = []
        self._pieces: dict[tuple[str | None, int | None], int] = {}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the next connection."""
        return {"Accept": "text/event-stream", "Last-Event-ID": str(self._after)}

    def check(self, response: httpx.Response) -> None:
        """Check that a reply is a stream of events, or empty (204): no event follows.

        Raises:
            ReplyError: It is another document.
        """
        if response.status_code == httpx.codes.NO_CONTENT:
            return
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise ReplyError(self._url)

    def read(self, chunk: bytes) -> Iterator[ClientEvent]:
        """Yield the events that ``chunk`` completes and that were not yielded before.

        Raises:
            ReplyError: One of them is not an event of a run.
        """
        self._connected = True
        for found in self._reader.feed(chunk):
            try:
                event = CLIENT_EVENT.validate_json(found.data)
            except ValidationError as error:
                raise ReplyError(self._url) from error
            self._failures = 0
            if self._is_new(event):
                yield event

    def backoff_seconds(self, error: ClientError) -> float:
        """Return the time to wait before the next connection.

        Raises:
            ClientError: ``error``, if another connection would not help.
        """
        lost = isinstance(error, UnreachableError) or (
            isinstance(error, ProblemError) and error.status in _UNAVAILABLE
        )
        self._failures += 1
        if not lost or self._failures > (RECONNECTS if self._connected else CONNECTS):
            raise error
        self._reader = SseReader()
        return float(min(0.1 * 2**self._failures, 2.0))

    def _is_new(self, event: ClientEvent) -> bool:
        if event.type is EventType.AGENT_STREAM_DELTA:
            step, index = (event.step_id, event.attempt), event.data["index"]
            if not isinstance(index, int) or index < self._pieces.get(step, 0):
                return False
            self._pieces[step] = index + 1
            return True
        if event.id is None:
            if event in self._without_id:
                return False
            self._without_id.append(event)
            return True
        self._after = event.id
        self._without_id.clear()
        self._pieces.pop((event.step_id, event.attempt), None)
        return True
