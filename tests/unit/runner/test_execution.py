"""The outcome of a handler, whatever it returns: always one result that every reader takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.contracts.facts import Usage
from penstock.runner import Runner, StepContext
from penstock.testing import LocalRunner


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (nested(101), "nested more than 100"),
        (nested(900), "depth"),
        pytest.param(10**5000, "digits", id="huge"),
        (float("nan"), "finite"),
        ({"a": [float("inf")]}, "output.a[0]"),
        ("\ud800", "surrogate"),
        (object(), "serialize"),
    ],
)
async def test_output_that_cannot_be_recorded_is_a_failed_result(value: Any, reason: str) -> None:
    runner = Runner(queue="q")

    @runner.tool("give")
    async def give() -> Any:
        return value

    outcome = await LocalRunner(runner).call("give")

    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.code == "invalid_output"
    assert reason in outcome.error.message


async def test_deepest_output_is_recorded() -> None:
    runner = Runner(queue="q")

    @runner.tool("give")
    async def give() -> Any:
        return nested(100)

    assert (await LocalRunner(runner).call("give")).output == nested(100)


@pytest.mark.parametrize(
    "usage",
    [
        Usage(cost_usd=float("nan")),
        Usage(cost_usd=-1.0),
        Usage(input_tokens=-1),
        {"input_tokens": -1},
    ],
)
@pytest.mark.parametrize("fails", [False, True])
async def test_usage_that_no_call_can_have_is_a_failed_result(usage: Any, fails: bool) -> None:
    runner = Runner(queue="q")

    @runner.tool("spend")
    async def spend(ctx: StepContext) -> str:
        ctx.usage, ctx.model = usage, "a/b"
        if fails:
            raise RuntimeError("spent")
        return "done"

    outcome = await LocalRunner(runner).call("spend")

    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.code == ("handler_error" if fails else "invalid_output")
