"""Waiting for what happens elsewhere, without a fixed sleep."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    probe: Callable[[], Awaitable[T]], within: float = 30, every: float = 0.02
) -> T: ...
@overload
async def eventually(probe: Callable[[], T], within: float = 30, every: float = 0.02) -> T: ...
async def eventually(
    probe: Callable[[], object], within: float = 30, every: float = 0.02
) -> object:
    """Call `probe` until it gives something truthy, and return that.

    An `AssertionError` of the probe counts as "not yet"; any other error passes through.

    Args:
        probe: A plain or an async function without arguments.
        within: Seconds after which the wait fails.
        every: Seconds between two calls.

    Raises:
        AssertionError: It did not happen in time; carries the last value or assertion.
    """
    deadline = time.monotonic() + within
    while True:
        failure: AssertionError | None = None
        value: object = None
        try:
            result = probe()
            answer = await result if inspect.isawaitable(result) else result
            if answer:
                return answer
            value = answer
        except AssertionError as error:
            failure = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within} s; last value: {value!r}") from failure
        await asyncio.sleep(every)
