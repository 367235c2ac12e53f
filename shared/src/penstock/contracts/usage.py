"""Usage: what model calls and steps cost, what a run may use, and what it has reserved."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta
from pydantic import Field

from penstock.contracts.structs import Amount, Count, PositiveCount, PositiveSeconds, WireStruct

MAX_USED: Final = 10**12
"""Most tokens, calls, steps or US dollars of one run; the sums of reports stay exact."""


class Usage(WireStruct):
    """What model calls cost.

    ``cost_usd`` is the sum of the known prices; ``unknown_price`` says that at least one call
    had no known price, so that the sum is a lower bound.
    """

    input_tokens: Count = 0
    output_tokens: Count = 0
    cost_usd: Amount = 0.0
    unknown_price: bool = False
    model_calls: Count = 0
    steps: Count = 0
    """Attempts at steps, those of child runs included."""

    @property
    def tokens(self) -> int:
        """Tokens in and out."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: Usage) -> Usage:
        """Return the sum of both, at most ``MAX_USED`` each."""
        return Usage(
            input_tokens=min(self.input_tokens + other.input_tokens, MAX_USED),
            output_tokens=min(self.output_tokens + other.output_tokens, MAX_USED),
            cost_usd=min(self.cost_usd + other.cost_usd, MAX_USED),
            unknown_price=self.unknown_price or other.unknown_price,
            model_calls=min(self.model_calls + other.model_calls, MAX_USED),
            steps=min(self.steps + other.steps, MAX_USED),
        )


class RunLimits(WireStruct):
    """Limits of one run (its RunConfig); limits that are not given come from the plan.

    Tokens, cost and steps are shared with child runs: a child gets the remaining amount, or less.
    """

    timeout_seconds: PositiveSeconds | None = None
    max_turns: PositiveCount | None = None
    """Turns of each agent."""
    max_steps: PositiveCount | None = None
    """Attempts at steps, those of child runs included."""
    max_tokens: PositiveCount | None = None
    max_cost_usd: Amount | None = None
    max_depth: Annotated[int, Meta(ge=0, le=32), Field(ge=0, le=32)] | None = None
    """How deep child runs may nest below this run."""
    max_fan_out: Annotated[int, Meta(ge=1, le=10_000), Field(ge=1, le=10_000)] | None = None
    """Items of one map, branches of one parallel step."""


class Reservation(WireStruct):
    """What a step may cost at most; set aside when it is scheduled, settled by its outcome."""

    tokens: Count = 0
    cost_usd: Amount = 0.0
    steps: Count = 0
