"""The built-in tools as a runner sees them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue

from penstock.contracts.errors import RejectedError
from penstock_tool_runner.builtin import builtin_runner

RUNNER = builtin_runner(8)


async def call(name: str, arguments: JsonValue) -> Any:
    handler = RUNNER._handlers[name]
    context: Any = object()
    positional, named = handler.arguments(context, "tool", arguments)
    return await handler.function(*positional, **named)


def test_calculator_and_its_neighbours_are_advertised() -> None:
    found = {item.name: item for item in RUNNER.capabilities}
    assert set(found) == {"add", "subtract", "multiply", "divide", "power", "echo", "noop"}
    assert found["add"].parameters["properties"] == {
        "a": {"type": "number"},
        "b": {"type": "number"},
    }
    assert found["add"].description == "Add two numbers."


async def test_numbers_keep_their_kind() -> None:
    assert await call("add", {"a": 2, "b": 3}) == 5
    assert isinstance(await call("add", {"a": 2, "b": 3}), int)
    assert await call("add", {"a": 2.5, "b": 3}) == 5.5


@pytest.mark.parametrize("value", ["3", True, None, [1], float("nan"), float("inf")])
async def test_what_is_no_number_is_rejected(value: Any) -> None:
    with pytest.raises(RejectedError) as caught:
        await call("add", {"a": value, "b": 1})
    assert caught.value.code == "invalid_arguments"


async def test_echo_returns_its_arguments() -> None:
    assert await call("echo", {"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}
    assert await call("noop", None) == {}
