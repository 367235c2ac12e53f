"""The tools of queue ``builtin``: the calculator, and two that return what they are given."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from penstock.contracts.json import Json
from penstock.runner import Runner
from penstock_tool_runner.core import calculator

Number = Annotated[
    Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True, allow_inf_nan=False)],
    WithJsonSchema({"type": "number"}),
]
"""A JSON number: never text that looks like one."""

QUEUE = "builtin"


def builtin_runner(concurrency: int) -> Runner:
    """Return the runner of the built-in tools."""
    runner = Runner(kind="tool", queue=QUEUE, concurrency=concurrency)

    @runner.tool("add")
    async def add(a: Number, b: Number) -> calculator.Number:
        """Add two numbers."""
        return calculator.add(a, b)

    @runner.tool("subtract")
    async def subtract(a: Number, b: Number) -> calculator.Number:
        """Subtract the second number from the first."""
        return calculator.subtract(a, b)

    @runner.tool("multiply")
    async def multiply(a: Number, b: Number) -> calculator.Number:
        """Multiply two numbers."""
        return calculator.multiply(a, b)

    @runner.tool("divide")
    async def divide(a: Number, b: Number) -> calculator.Number:
        """Divide the first number by the second."""
        return calculator.divide(a, b)

    @runner.tool("power")
    async def power(a: Number, b: Number) -> calculator.Number:
        """Raise the first number to the power of the second."""
        return calculator.power(a, b)

    @runner.tool("echo")
    async def echo(**arguments: Json) -> Json:
        """Return the arguments."""
        return arguments

    @runner.tool("noop")
    async def noop(**arguments: Json) -> Json:
        """Do nothing, and return the arguments."""
        return arguments

    return runner
