"""``Client`` and ``AsyncClient``: the calls of the HTTP API as methods, over httpx."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import httpx

from penstock.client import calls
from penstock.client.calls import REQUEST_SECONDS, Call, Items
from penstock.client.errors import ClientError, ReplyError, problem_of, reaching
from penstock.client.events import EventFeed
from penstock.runs.events import ClientEvent
from penstock.runs.views import RunView
from penstock.target import find_target

P = ParamSpec("P")
T = TypeVar("T")
_STEPS: Final = 1000
"""Steps of a page, the gateway's maximum."""
_WAIT_SECONDS: Final = 60
"""One request of ``wait``: shorter than the idle limit of usual proxies."""
_PAUSE_SECONDS: Final = 0.2
"""Between two requests of ``wait``, in case a proxy drops the header that makes them wait."""


def _blocking(call: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(call)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(call(*args, **kwargs))

    return method


def _awaiting(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @wraps(call)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(call(*args, **kwargs))

    return method


def _listing(
    call: Callable[P, Call[Items[T]]],
) -> Callable[Concatenate[Client, P], Generator[T]]:
    @wraps(call)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T]:
        return self.pages(call(*args, **kwargs))

    return method


def _async_listing(
    call: Callable[P, Call[Items[T]]],
) -> Callable[Concatenate[AsyncClient, P], AsyncGenerator[T]]:
    @wraps(call)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return self.pages(call(*args, **kwargs))

    return method


def _settled(run: RunView) -> bool:
    """Return whether waiting is over: the run has ended, or needs results from its client."""
    return run.status.final or any(one.kind == "client_tool" for one in run.waiting_for)


def _joined(run: RunView, page: RunView) -> RunView:
    """Return the run of the next page, which is later, with the steps of both."""
    # A retry between two requests moves a step to a later page: its earlier state is left out.
    steps = {step.step_id: step for step in run.steps} | {step.step_id: step for step in page.steps}
    children = {child.step_id: child for child in (*run.children, *page.children)}
    update = {"steps": tuple(steps.values()), "children": tuple(children.values())}
    return page.model_copy(update=update)


def _wait_seconds(left: float) -> int:
    return max(0, math.ceil(min(left, _WAIT_SECONDS)))


def _address(url: str | None, api_key: str | None) -> tuple[str, dict[str, str]]:
    """Return the URL of the gateway and the headers of each request."""
    target = find_target(url=url, api_key=api_key)
    headers = {"Accept": "application/json", "User-Agent": "penstock"}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    return target.url, headers


_DIRECT: Final = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
"""Addresses of this machine, which no proxy of the environment (``HTTP_PROXY``) can reach."""


def _read(call: Call[T], response: httpx.Response, url: str) -> T:
    if not response.is_success:
        raise problem_of(response)
    try:
        return call.read(response.content)
    except ValueError as error:
        raise ReplyError(url) from error


class Client:
    """A blocking client; also a context manager. Threads may share it.

    Every method raises ``ProblemError`` if the gateway refuses, and ``UnreachableError`` if it
    does not reply.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare the connection pool; nothing is sent yet.

        Args:
            url: The gateway; default: ``PENSTOCK_URL``, the stack of this folder, or port 8080.
            api_key: Default: ``PENSTOCK_API_KEY``.
            transport: Replaces the network.

        Raises:
            ValueError: ``url`` is not a URL.
        """
        self.url, headers = _address(url, api_key)
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=headers, transport=transport, mounts=dict(_DIRECT)
            )
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.url} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Send any request and return its reply."""
        with reaching(self.url):
            response = self._http.send(call.request(self._http))
        return _read(call, response, self.url)

    start = _blocking(calls.start)
    get = _blocking(calls.get)
    cancel = _blocking(calls.cancel)
    cancel_step = _blocking(calls.cancel_step)
    pause = _blocking(calls.pause)
    resume = _blocking(calls.resume)
    signal = _blocking(calls.signal)
    signal_waiting = _blocking(calls.signal_waiting)
    approval = _blocking(calls.approval)
    approve = _blocking(calls.approve)
    reject = _blocking(calls.reject)
    tool_calls = _blocking(calls.tool_calls)
    tool_result = _blocking(calls.tool_result)
    fork = _blocking(calls.fork)
    retry = _blocking(calls.retry)
    replay = _blocking(calls.replay)
    runs = _listing(calls.runs)
    approvals = _listing(calls.approvals)

    def wait(self, run_id: str, timeout_seconds: float = math.inf) -> RunView:
        """Return a run when it has ended or waits for client tools; else as it is at the end."""
        until = time.monotonic() + timeout_seconds
        while True:
            run = self.get(run_id, wait_seconds=_wait_seconds(until - time.monotonic()))
            if _settled(run) or time.monotonic() >= until:
                return run
            time.sleep(_PAUSE_SECONDS)

    def get_all(
        self, run_id: str, *, at_seq: int | None = None, node_records: bool = False
    ) -> RunView:
        """Return a run with all its steps; ``get`` returns the first 250 of a large run."""
        run = self.get(run_id, at_seq=at_seq, node_records=node_records)
        while run.next_steps_cursor is not None:
            cursor = run.next_steps_cursor
            page = self.get(run_id, at_seq=at_seq, steps_cursor=cursor, steps_limit=_STEPS)
            run = _joined(run, page)
        return run

    def follow(self, run_id: str, *, after: int = 0) -> Generator[ClientEvent]:
        """Yield the events of a run until its end, each once; reconnects where it was cut off.

        Args:
            run_id: The run.
            after: Id of the last event that is already known.
        """
        feed = EventFeed(self.url, run_id, after)
        while True:
            try:
                with (
                    reaching(self.url),
                    self._http.stream(
                        "GET", feed.path, headers=feed.headers, timeout=feed.timeout
                    ) as response,
                ):
                    if not response.is_success:
                        response.read()
                        raise problem_of(response)
                    feed.check(response)
                    for chunk in response.iter_bytes():
                        yield from feed.read(chunk)
                    return
            except ClientError as error:
                time.sleep(feed.backoff_seconds(error))

    def pages(self, call: Call[Items[T]]) -> Generator[T]:
        """Yield the items of all pages of a list, at most ``call.limit``."""
        seen, following = 0, call.following(None, 0)
        while following is not None:
            page = self.send(following)
            yield from page.items[: following.limit]
            seen += len(page.items)
            following = call.following(page.next_cursor, seen) if page.next_cursor else None

    def download(self, path: str, *, timeout_seconds: float = REQUEST_SECONDS) -> Generator[bytes]:
        """Yield the body of a reply that is not JSON, in pieces."""
        with (
            reaching(self.url),
            self._http.stream("GET", path, timeout=timeout_seconds) as response,
        ):
            if not response.is_success:
                response.read()
                raise problem_of(response)
            yield from response.iter_bytes()


class AsyncClient:
    """A client for asyncio; also an asynchronous context manager. Otherwise as ``Client``."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare the connection pool; arguments as of ``Client``.

        Raises:
            ValueError: ``url`` is not a URL.
        """
        self.url, headers = _address(url, api_key)
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url, headers=headers, transport=transport, mounts=dict(_DIRECT)
            )
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.url} is not a URL: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send any request and return its reply."""
        with reaching(self.url):
            response = await self._http.send(call.request(self._http))
        return _read(call, response, self.url)

    start = _awaiting(calls.start)
    get = _awaiting(calls.get)
    cancel = _awaiting(calls.cancel)
    cancel_step = _awaiting(calls.cancel_step)
    pause = _awaiting(calls.pause)
    resume = _awaiting(calls.resume)
    signal = _awaiting(calls.signal)
    signal_waiting = _awaiting(calls.signal_waiting)
    approval = _awaiting(calls.approval)
    approve = _awaiting(calls.approve)
    reject = _awaiting(calls.reject)
    tool_calls = _awaiting(calls.tool_calls)
    tool_result = _awaiting(calls.tool_result)
    fork = _awaiting(calls.fork)
    retry = _awaiting(calls.retry)
    replay = _awaiting(calls.replay)
    runs = _async_listing(calls.runs)
    approvals = _async_listing(calls.approvals)

    async def wait(self, run_id: str, timeout_seconds: float = math.inf) -> RunView:
        """Return a run when it has ended or waits for client tools; else as it is at the end."""
        until = time.monotonic() + timeout_seconds
        while True:
            run = await self.get(run_id, wait_seconds=_wait_seconds(until - time.monotonic()))
            if _settled(run) or time.monotonic() >= until:
                return run
            await asyncio.sleep(_PAUSE_SECONDS)

    async def get_all(
        self, run_id: str, *, at_seq: int | None = None, node_records: bool = False
    ) -> RunView:
        """Return a run with all its steps; ``get`` returns the first 250 of a large run."""
        run = await self.get(run_id, at_seq=at_seq, node_records=node_records)
        while run.next_steps_cursor is not None:
            cursor = run.next_steps_cursor
            page = await self.get(run_id, at_seq=at_seq, steps_cursor=cursor, steps_limit=_STEPS)
            run = _joined(run, page)
        return run

    async def follow(self, run_id: str, *, after: int = 0) -> AsyncGenerator[ClientEvent]:
        """Yield the events of a run until its end, each once; reconnects where it was cut off.

        Args:
            run_id: The run.
            after: Id of the last event that is already known.
        """
        feed = EventFeed(self.url, run_id, after)
        while True:
            try:
                with reaching(self.url):
                    async with self._http.stream(
                        "GET", feed.path, headers=feed.headers, timeout=feed.timeout
                    ) as response:
                        if not response.is_success:
                            await response.aread()
                            raise problem_of(response)
                        feed.check(response)
                        async for chunk in response.aiter_bytes():
                            for event in feed.read(chunk):
                                yield event
                        return
            except ClientError as error:
                await asyncio.sleep(feed.backoff_seconds(error))

    async def pages(self, call: Call[Items[T]]) -> AsyncGenerator[T]:
        """Yield the items of all pages of a list, at most ``call.limit``."""
        seen, following = 0, call.following(None, 0)
        while following is not None:
            page = await self.send(following)
            for item in page.items[: following.limit]:
                yield item
            seen += len(page.items)
            following = call.following(page.next_cursor, seen) if page.next_cursor else None
