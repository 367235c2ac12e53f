"""The gateway as the commands ask it: HTTP in, plain JSON or one clear error out."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, Self

import httpx

from penstock.cli.failure import FAILED, MISUSED, CommandError, Finding
from penstock.target import Target

REQUEST_SECONDS: Final = 30.0
SILENCE_SECONDS: Final = 45.0
"""Longer than the gateway's keep-alive on event streams: silence beyond it is a dead line."""
RECONNECTS: Final = 20


class Event(NamedTuple):
    """One event of a stream; ``id`` is empty where it has none."""

    id: str
    type: str
    data: dict[str, Any]


class Api:
    """A connection to the gateway; also a context manager."""

    def __init__(self, target: Target, *, transport: httpx.BaseTransport | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            target: Where to.
            transport: Stands in for the network in tests.

        Raises:
            CommandError: The target's URL is none.
        """
        headers = {"Accept": "application/json", "User-Agent": "penstock-cli"}
        if target.api_key:
            headers["Authorization"] = f"Bearer {target.api_key}"
        self._target = target
        try:
            self._client = httpx.Client(
                base_url=target.url, headers=headers, timeout=REQUEST_SECONDS, transport=transport
            )
        except httpx.InvalidURL as error:
            message = f"{target.url} is not a URL: {error}"
            raise CommandError(message, exit_code=MISUSED) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = REQUEST_SECONDS,
    ) -> Any:
        """Send one request and return its JSON answer (``None`` if it has no body).

        Raises:
            CommandError: The gateway cannot be reached, or refused.
        """
        try:
            response = self._client.request(
                method, path, params=params, json=body, headers=headers, timeout=timeout_seconds
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise refusal(response)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise CommandError(f"what answers at {self._target.url} is no gateway") from error

    def download(self, path: str, *, timeout_seconds: float) -> Iterator[bytes]:
        """Yield the parts of an answer as they come.

        Raises:
            CommandError: The gateway cannot be reached, or refused, or broke off.
        """
        try:
            with self._client.stream("GET", path, timeout=timeout_seconds) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield from response.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def upload(
        self, path: str, file: IO[bytes], *, headers: Mapping[str, str], timeout_seconds: float
    ) -> Any:
        """Send a file and return the JSON answer; errors as for ``call``."""
        try:
            response = self._client.post(
                path, content=file, headers=dict(headers), timeout=timeout_seconds
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise refusal(response)
        return response.json()

    def pages(self, path: str, params: Mapping[str, Any], limit: int) -> Iterator[Any]:
        """Yield up to ``limit`` items of a list that comes in pages."""
        cursor, left = None, limit
        while left > 0:
            asked: dict[str, Any] = {**params, "limit": min(left, 100)}
            if cursor is not None:
                asked["cursor"] = cursor
            answer = self.call("GET", path, params=asked)
            items = answer["items"]
            yield from items[:left]
            left -= len(items)
            cursor = answer.get("next_cursor")
            if not items or cursor is None:
                return

    def events(self, path: str, *, after: str = "0") -> Generator[Event]:
        """Yield the events of a stream until the server ends it; resumes broken connections.

        Args:
            path: Such as ``/v1/runs/{id}/events``.
            after: Id of the last event already seen.

        Raises:
            CommandError: Refused, or unreachable for good.
        """
        failures = 0
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": after}
            timeout = httpx.Timeout(REQUEST_SECONDS, read=SILENCE_SECONDS)
            try:
                with self._client.stream("GET", path, headers=headers, timeout=timeout) as response:
                    if not response.is_success:
                        response.read()
                        raise refusal(response)
                    for event in parse_events(response.iter_lines()):
                        failures, after = 0, event.id or after
                        yield event
                    return
            except httpx.TransportError as error:
                failures += 1
                if failures > RECONNECTS:
                    raise self._unreachable(error) from error
                time.sleep(min(0.1 * 2**failures, 2.0))

    def _unreachable(self, error: httpx.TransportError) -> CommandError:
        if isinstance(error, httpx.TimeoutException):
            return CommandError(f"the gateway at {self._target.url} did not answer in time")
        return CommandError(
            f"no gateway at {self._target.url} ({error}): is `penstock dev` running? "
            "PENSTOCK_URL or --url names another"
        )


def refusal(response: httpx.Response) -> CommandError:
    """Turn a refused request into an error, from its problem document where it has one."""
    status = response.status_code
    exit_code = MISUSED if status in (400, 404, 409, 413, 415, 422) else FAILED
    try:
        problem = response.json()
        findings = tuple(
            Finding(str(found.get("path", "")), str(found.get("message", "")), found.get("allowed"))
            for found in problem.get("errors") or ()
        )
        detail = str(problem.get("detail") or problem.get("title") or response.reason_phrase)
        code = str(problem.get("code") or status)
    except (ValueError, AttributeError):
        return CommandError(f"{status} {response.reason_phrase}", exit_code=exit_code)
    if status == 401:
        detail += " (give a key by PENSTOCK_API_KEY or --api-key)"
    return CommandError(f"{detail} [{code}]", findings=findings, exit_code=exit_code, code=code)


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Read Server-Sent Events (WHATWG HTML section 9.2) whose data is a JSON object."""
    event_id, kind = "", ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield Event(event_id, kind, json.loads("\n".join(data)))
            event_id, kind, data = "", "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            event_id = value
        elif field == "event":
            kind = value
        elif field == "data":
            data.append(value)
