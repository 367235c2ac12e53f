"""The limits of a run: its deadline, its budget, and reservations for work under way.

Before a step that costs is scheduled, its maximum cost is reserved; its outcome replaces the
reservation. A child run gets a share of the rest and reserves it in its parent, so that a
tree of runs never spends more than its root may.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from msgspec import structs

from penstock.contracts.errors import ErrorDetail, ErrorInfo
from penstock.contracts.facts import RunInvoked
from penstock.contracts.plan import CalledNode, CompiledAgent, Plan
from penstock.contracts.usage import Reservation, RunLimits, Usage
from penstock.runs.state import RunState

DEFAULT_OUTPUT_TOKENS: Final = 4096
"""Tokens of an answer where no limit is set: the highest default of common models."""
BYTES_PER_TOKEN: Final = 2.5
"""A cautious guess of how many bytes of a prompt make a token; most texts have three to four."""
MAX_DEPTH: Final = 8
"""How deep child runs nest where no limit is set."""
WORTH_ASKING: Final = 16
"""With fewer tokens left for the answer a model is not asked."""

NOTHING: Final = Reservation()
_NO_LIMITS: Final = RunLimits()

Verdict = Literal["granted", "later", "exhausted"]


def run_deadline(plan: Plan, invoked: RunInvoked) -> datetime:
    """Return when a run ends at the latest."""
    limit = invoked.limits.timeout_seconds or plan.timeout_seconds
    return invoked.occurred_at + timedelta(seconds=min(limit, plan.timeout_seconds))


def step_deadline(node: CalledNode, plan: Plan, state: RunState, now: datetime) -> datetime:
    """Return when a step that the engine does itself ends at the latest."""
    deadline = run_deadline(plan, state.request)
    if node.timeout_seconds is None:
        return deadline
    return min(deadline, now + timedelta(seconds=node.timeout_seconds))


def limits_of(plan: Plan, state: RunState) -> RunLimits:
    """Return what a run may take: the stricter of what its plan and its caller say."""
    asked, planned = state.request.limits, plan.limits
    if planned == _NO_LIMITS:
        return asked
    merged = {}
    for name in RunLimits.__struct_fields__:
        values = [
            value for value in (getattr(asked, name), getattr(planned, name)) if value is not None
        ]
        if values:
            merged[name] = min(values)
    return RunLimits(**merged)


@dataclass(slots=True)
class Budget:
    """Remaining amounts for one decision, which reserves from them."""

    limits: RunLimits
    state: RunState
    tokens: int = 0
    cost_usd: float = 0.0
    steps: int = 0
    """Reserved in this decision."""
    by_agent: dict[str, Reservation] = field(default_factory=dict)

    @property
    def bounded(self) -> bool:
        """Whether anything is limited at all."""
        limits = self.limits
        return (
            limits.max_steps is not None
            or limits.max_tokens is not None
            or limits.max_cost_usd is not None
        )

    @property
    def pending(self) -> bool:
        """Whether work under way may give back part of its reservation."""
        reserved = self.state.reserved
        return bool(
            reserved.tokens or reserved.cost_usd or reserved.steps or self.tokens or self.cost_usd
        )

    def left_tokens(self) -> int | None:
        """Tokens that are neither spent nor reserved; ``None``: no limit."""
        most = self.limits.max_tokens
        if most is None:
            return None
        return most - self.state.usage.tokens - self.state.reserved.tokens - self.tokens

    def left_cost_usd(self) -> float | None:
        """USD that are neither spent nor reserved; ``None``: no limit."""
        most = self.limits.max_cost_usd
        if most is None:
            return None
        return most - self.state.usage.cost_usd - self.state.reserved.cost_usd - self.cost_usd

    def left_steps(self) -> int | None:
        """Attempts at steps that are neither made nor reserved; ``None``: no limit."""
        most = self.limits.max_steps
        if most is None:
            return None
        state = self.state
        return most - state.attempts - state.usage.steps - state.reserved.steps - self.steps

    def take(self, wanted: Reservation) -> Verdict:
        """Reserve for one step, which counts as one attempt beside what it reserves."""
        steps, tokens, cost = self.left_steps(), self.left_tokens(), self.left_cost_usd()
        short = (
            (steps is not None and steps < 1 + wanted.steps)
            or (tokens is not None and wanted.tokens > tokens)
            or (cost is not None and wanted.cost_usd > cost + 1e-12)
        )
        if short:
            given_back = self.pending and not (steps is not None and steps < 1)
            return "later" if given_back or self.state.reserved.steps else "exhausted"
        self.steps += 1 + wanted.steps
        self.tokens += wanted.tokens
        self.cost_usd += wanted.cost_usd
        return "granted"

    def exhausted(self) -> ErrorInfo:
        """Return the error that lists the spending of each limit."""
        usage, limits = self.state.usage, self.limits
        # `object`: a compiled module would turn whole numbers among floats into floats.
        spent: tuple[tuple[str, object, object], ...] = (
            ("max_steps", self.state.attempts + usage.steps, limits.max_steps),
            ("max_tokens", usage.tokens, limits.max_tokens),
            ("max_cost_usd", round(usage.cost_usd, 6), limits.max_cost_usd),
        )
        details = tuple(
            ErrorDetail(path=f"limits.{name}", message=f"spent {used}", allowed=str(most))
            for name, used, most in spent
            if most is not None
        )
        spending = ", ".join(
            f"{used} of {most} ({name})" for name, used, most in spent if most is not None
        )
        return ErrorInfo(
            code="budget_exhausted",
            message=f"the run's budget is used up: {spending}",
            details=details,
        )


def turn_reservation(
    budget: Budget, agent: CompiledAgent, prompt_bytes: int
) -> tuple[Reservation | None, int | None, Verdict]:
    """Return what a turn may cost, the tokens that its answer is limited to, and the verdict.

    Where no limit of tokens or cost applies, nothing is reserved.
    """
    left_tokens, left_cost = budget.left_tokens(), budget.left_cost_usd()
    own_tokens, own_cost = _own(budget, agent)
    if own_tokens is not None:
        left_tokens = own_tokens if left_tokens is None else min(left_tokens, own_tokens)
    if own_cost is not None:
        left_cost = own_cost if left_cost is None else min(left_cost, own_cost)
    if left_tokens is None and left_cost is None:
        return None, None, "granted"
    prompt = prompt_tokens(prompt_bytes)
    asked = agent.parameters.get("max_tokens", agent.parameters.get("max_completion_tokens"))
    answer = asked if isinstance(asked, int) else DEFAULT_OUTPUT_TOKENS
    if left_tokens is not None:
        answer = min(answer, left_tokens - prompt)
    cost = 0.0
    if left_cost is not None:
        price = agent.price
        if price is None:
            # What it costs is not known: one call at a time may have all that is left.
            cost = left_cost
        else:
            spare = left_cost - prompt * price.input_usd
            if price.output_usd > 0:
                answer = min(answer, int(spare / price.output_usd))
            cost = prompt * price.input_usd + max(answer, 0) * price.output_usd
    if answer < WORTH_ASKING or (left_cost is not None and left_cost <= 0):
        return None, None, "later" if budget.pending else "exhausted"
    reserve = Reservation(tokens=prompt + answer, cost_usd=cost)
    before = budget.by_agent.get(agent.name, Reservation())
    budget.by_agent[agent.name] = Reservation(
        tokens=before.tokens + reserve.tokens, cost_usd=before.cost_usd + reserve.cost_usd
    )
    return reserve, answer, "granted"


def _own(budget: Budget, agent: CompiledAgent) -> tuple[int | None, float | None]:
    """Return the remaining amounts of an agent's own limits."""
    tokens, cost = agent.max_tokens, agent.max_cost_usd
    if tokens is None and cost is None:
        return None, None
    state = budget.state
    own = [step for step in state.steps.values() if step.reserving and step.name == agent.name]
    reserved = [step.reserve for step in own if step.reserve is not None]
    if agent.name in budget.by_agent:
        reserved.append(budget.by_agent[agent.name])
    spent = state.spent_by.get(agent.name) or Usage()
    if tokens is not None:
        tokens -= spent.tokens + sum(each.tokens for each in reserved)
    if cost is not None:
        cost -= spent.cost_usd + sum(each.cost_usd for each in reserved)
    return tokens, cost


def child_limits(budget: Budget, asked: RunLimits) -> tuple[RunLimits, Reservation, Verdict]:
    """Return the limits of a child run: its request, or the remaining amount where that is less."""
    tokens, cost, steps = budget.left_tokens(), budget.left_cost_usd(), budget.left_steps()
    some_tokens, some_steps, some_cost = 0, 0, 0.0
    if tokens is not None:
        some_tokens = min(asked.max_tokens or tokens, tokens)
    if cost is not None:
        some_cost = min(cost if asked.max_cost_usd is None else asked.max_cost_usd, cost)
    if steps is not None:
        some_steps = min(asked.max_steps or steps - 1, steps - 1)
    short = (
        (tokens is not None and some_tokens < 1)
        or (cost is not None and some_cost <= 0)
        or (steps is not None and some_steps < 1)
    )
    if short:
        return asked, NOTHING, "later" if budget.pending else "exhausted"
    reserve = Reservation(tokens=some_tokens, cost_usd=some_cost, steps=some_steps)
    return limits_within(budget.limits, asked, reserve), reserve, "granted"


def limits_within(own: RunLimits, asked: RunLimits, reserve: Reservation) -> RunLimits:
    """Return the limits of a child run whose parent has reserved so much for it."""
    depth = own.max_depth if own.max_depth is not None else MAX_DEPTH
    deepest = depth - 1 if asked.max_depth is None else min(depth - 1, asked.max_depth)
    changes: dict[str, int | float] = {"max_depth": deepest}
    if own.max_tokens is not None:
        changes["max_tokens"] = reserve.tokens
    if own.max_cost_usd is not None:
        changes["max_cost_usd"] = reserve.cost_usd
    if own.max_steps is not None:
        changes["max_steps"] = reserve.steps
    return structs.replace(asked, **changes)


def answer_within(reserve: Reservation | None, prompt_bytes: int) -> int | None:
    """Return the token limit of an answer, from the reservation of its turn."""
    return None if reserve is None else reserve.tokens - prompt_tokens(prompt_bytes)


def prompt_tokens(prompt_bytes: int) -> int:
    """Return a cautious guess of how many tokens a prompt has."""
    return int(prompt_bytes / BYTES_PER_TOKEN) + 8
