"""Where a run's time and money went: per node, per model, and what held it up.

Pure, and one for all: the projector stores with each run what the gateway computes from a run's
facts. Shares compare with the run's wall time and count what overlaps once, so that nodes that
run side by side are never taken for one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from msgspec import structs

from penstock.contracts.facts import RunEnded, RunInvoked, StateChanged, StepResult, StepScheduled
from penstock.contracts.structs import WireStruct
from penstock.contracts.subjects import parse_suffix
from penstock.contracts.usage import Usage
from penstock.runs.state import Entry

THRESHOLD: Final = 0.5
"""Share of the wall time strictly above which a node is a bottleneck."""
STEPS_SHOWN: Final = 50
"""A profile names so many single steps, the longest first."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_BY_PREFIX: Final = {
    "gemini": "google",
    "google": "google",
    "vertex_ai": "google",
    "palm": "google",
    "ollama": "ollama",
    "ollama_chat": "ollama",
    "claude": "anthropic",
}
_BY_NAME: Final = (
    ("gpt-", "openai"),
    ("chatgpt", "openai"),
    ("text-embedding-", "openai"),
    ("o1", "openai"),
    ("o3", "openai"),
    ("o4", "openai"),
    ("claude", "anthropic"),
    ("gemini", "google"),
    ("gemma", "google"),
    ("ollama", "ollama"),
)
FREE: Final = frozenset({"ollama"})
"""Providers whose models run on one's own machine: they cost nothing, and that is known."""


def provider_of(model: str | None) -> str:
    """Return who provides a model, by its name; empty where the name says nothing of it."""
    if not model:
        return ""
    prefix, slash, _ = model.partition("/")
    if slash:
        return _BY_PREFIX.get(prefix, prefix)
    lowered = model.lower()
    for beginning, provider in _BY_NAME:
        if lowered.startswith(beginning):
            return provider
    return ""


def priced(usage: Usage, provider: str) -> Usage:
    """Return the cost of a call; models on the own machine cost nothing."""
    if provider in FREE and (usage.cost_usd or usage.unknown_price):
        return structs.replace(usage, cost_usd=0.0, unknown_price=False)
    return usage


class StepProfile(WireStruct):
    """One step: all its attempts together."""

    step_id: str
    node_id: str
    attempts: int
    queue_wait_ms: float
    """From scheduled to started, of all attempts."""
    duration_ms: float
    """From started to ended, of all attempts."""
    share: float


class NodeProfile(WireStruct):
    """One node of the plan: all steps that ran for it."""

    node_id: str
    kind: str
    name: str
    steps: int
    attempts: int
    queue_wait_ms: float
    """The sum over all attempts."""
    duration_ms: float
    """Wall time during which at least one of its steps was running."""
    longest_ms: float
    """Its longest attempt."""
    share: float
    """``duration_ms`` as a part of the run's wall time, 0 to 1."""
    cost_usd: float
    unknown_price: bool = False
    bottleneck: bool = False


class ModelCost(WireStruct):
    """What the calls of one model cost."""

    provider: str
    model: str
    usage: Usage


class RunProfile(WireStruct):
    """Where a run's time and money went; nodes by duration, models by cost, largest first."""

    wall_ms: float
    queue_wait_ms: float = 0.0
    threshold: float = THRESHOLD
    nodes: tuple[NodeProfile, ...] = ()
    steps: tuple[StepProfile, ...] = ()
    """The longest ones."""
    models: tuple[ModelCost, ...] = ()
    bottlenecks: tuple[str, ...] = ()
    """Nodes whose share is strictly above the threshold."""


class Attempt(NamedTuple):
    """One attempt at a step; times in microseconds since 1970, by its publisher's clock."""

    step_id: str
    node_id: str
    kind: str
    name: str
    attempt: int
    scheduled: int | None
    started: int | None
    ended: int | None
    usage: Usage | None = None
    model: str | None = None

    @property
    def wait_ms(self) -> float:
        """From scheduled to started."""
        if self.scheduled is None or self.started is None:
            return 0.0
        return max(0, self.started - self.scheduled) / 1000

    @property
    def run_ms(self) -> float:
        """From started to ended."""
        if self.started is None or self.ended is None:
            return 0.0
        return max(0, self.ended - self.started) / 1000


def profile_of(
    begun: int | None, ended: int, attempts: Iterable[Attempt], *, threshold: float = THRESHOLD
) -> RunProfile:
    """Return the profile of a run.

    Args:
        begun: When the run was asked for, in microseconds since 1970.
        ended: When it ended, or the present time for an open run.
        attempts: All that is known of its steps.
        threshold: See ``THRESHOLD``.
    """
    wall = max(0, ended - begun) / 1000 if begun is not None else 0.0
    of_node: dict[str, list[Attempt]] = {}
    costs: dict[tuple[str, str], Usage] = {}
    waited = 0.0
    # Always in one order: sums of floats depend on it.
    for attempt in sorted(attempts, key=lambda one: (one.step_id, one.attempt)):
        of_node.setdefault(attempt.node_id or attempt.step_id, []).append(attempt)
        waited += attempt.wait_ms
        if attempt.usage is not None and attempt.usage.model_calls:
            provider = provider_of(attempt.model)
            key = provider, attempt.model or ""
            spent, usage = costs.get(key), priced(attempt.usage, provider)
            costs[key] = usage if spent is None else spent.plus(usage)
    nodes = [_node(node_id, own, wall, threshold) for node_id, own in of_node.items()]
    nodes.sort(key=lambda node: (-node.duration_ms, node.node_id))
    return RunProfile(
        wall_ms=wall,
        queue_wait_ms=waited,
        threshold=threshold,
        nodes=tuple(nodes),
        steps=_longest_steps(of_node, wall),
        models=tuple(
            ModelCost(provider=provider, model=model, usage=usage)
            for (provider, model), usage in sorted(
                costs.items(), key=lambda item: (-item[1].cost_usd, item[0])
            )
        ),
        bottlenecks=tuple(node.node_id for node in nodes if node.bottleneck),
    )


def _node(node_id: str, attempts: Sequence[Attempt], wall: float, threshold: float) -> NodeProfile:
    covered = _covered_ms(attempts)
    share = _share(covered, wall)
    usages = [priced(one.usage, provider_of(one.model)) for one in attempts if one.usage]
    return NodeProfile(
        node_id=node_id,
        kind=attempts[0].kind,
        name=next((one.name for one in attempts if one.name), ""),
        steps=len({one.step_id for one in attempts}),
        attempts=len(attempts),
        queue_wait_ms=sum(one.wait_ms for one in attempts),
        duration_ms=covered,
        longest_ms=max(one.run_ms for one in attempts),
        share=share,
        cost_usd=sum(usage.cost_usd for usage in usages),
        unknown_price=any(usage.unknown_price for usage in usages),
        bottleneck=share > threshold,
    )


def _share(duration_ms: float, wall: float) -> float:
    return duration_ms / wall if wall > 0 else 0.0


def _covered_ms(attempts: Sequence[Attempt]) -> float:
    """Return the length of the union of the attempts' running times."""
    spans = sorted(
        (one.started, one.ended)
        for one in attempts
        if one.started is not None and one.ended is not None and one.ended > one.started
    )
    total, reached = 0, 0
    for begin, end in spans:
        if end > reached:
            total += end - max(begin, reached)
            reached = end
    return total / 1000


def _longest_steps(of_node: dict[str, list[Attempt]], wall: float) -> tuple[StepProfile, ...]:
    steps: dict[str, StepProfile] = {}
    for node_id, attempts in of_node.items():
        for one in attempts:
            waited, ran, number = one.wait_ms, one.run_ms, 1
            if (earlier := steps.get(one.step_id)) is not None:
                waited += earlier.queue_wait_ms
                ran += earlier.duration_ms
                number += earlier.attempts
            steps[one.step_id] = StepProfile(
                step_id=one.step_id,
                node_id=node_id if earlier is None else earlier.node_id,
                attempts=number,
                queue_wait_ms=waited,
                duration_ms=ran,
                share=_share(ran, wall),
            )
    found = sorted(steps.values(), key=lambda step: (-step.duration_ms, step.step_id))
    return tuple(found[:STEPS_SHOWN])


def profile_of_entries(
    entries: Iterable[Entry], *, threshold: float = THRESHOLD
) -> RunProfile | None:
    """Return the profile of a run from all its facts; ``None`` where it was never asked for.

    The facts come in the order of the log. An open run is measured up to its latest fact; of one
    that has ended, results that follow the end are left out.
    """
    begun: int | None = None
    ended: int | None = None
    latest = 0
    scheduled: dict[tuple[str, int], Attempt] = {}
    promised: dict[tuple[str, int], Attempt] = {}
    results: list[tuple[tuple[str, int], StepResult]] = []
    for entry in entries:
        fact, subject = entry.fact, entry.subject
        at = micros(fact.occurred_at)
        latest = max(latest, at)
        if isinstance(fact, StepScheduled | StateChanged | RunEnded) and fact.decision is not None:
            for suffix in fact.decision.manifest:
                kind, _, step_id, number = parse_suffix(suffix)
                promised[step_id, number] = Attempt(step_id, "", kind, "", number, at, None, None)
        match fact:
            case RunInvoked():
                begun = at
            case RunEnded():
                ended = at
            case StepScheduled():
                scheduled[subject.step_id, subject.attempt] = Attempt(
                    subject.step_id,
                    fact.node_id,
                    subject.kind,
                    fact.name,
                    subject.attempt,
                    at,
                    None,
                    None,
                )
            case StepResult() if ended is None:
                results.append(((subject.step_id, subject.attempt), fact))
            case _:
                pass
    if begun is None:
        return None
    for key, result in results:
        known = scheduled.get(key) or promised.get(key)
        if known is None:
            continue  # an outcome without a schedule changes nothing
        scheduled[key] = known._replace(
            started=micros(result.started_at),
            ended=micros(result.occurred_at),
            usage=result.usage,
            model=result.model,
        )
    return profile_of(
        begun, latest if ended is None else ended, scheduled.values(), threshold=threshold
    )


def micros(at: datetime) -> int:
    """Return an aware time as microseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND
