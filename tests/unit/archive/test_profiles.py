"""Profiles: what overlaps counts once, shares compare with the wall time, prices have providers."""

from __future__ import annotations

import pytest

from penstock.contracts.usage import Usage
from penstock.runs.profiles import (
    Attempt,
    RunProfile,
    priced,
    profile_of,
    provider_of,
)


def create_attempt(
    node: str,
    start_ms: int,
    end_ms: int,
    *,
    step: str = "",
    number: int = 1,
    wait_ms: int = 0,
    cost: float | None = None,
    model: str | None = None,
) -> Attempt:
    return Attempt(
        step or f"{node}-1",
        node,
        "agent",
        node,
        number,
        (start_ms - wait_ms) * 1000,
        start_ms * 1000,
        end_ms * 1000,
        None if cost is None else Usage(cost_usd=cost, model_calls=1),
        model,
    )


def profile(*attempts: Attempt, wall_ms: int = 1000, threshold: float = 0.5) -> RunProfile:
    return profile_of(0, wall_ms * 1000, attempts, threshold=threshold)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("openai/gpt-5-mini", "openai"),
        ("gpt-5-mini", "openai"),
        ("o3-mini", "openai"),
        ("anthropic/claude-opus-5", "anthropic"),
        ("claude-opus-5", "anthropic"),
        ("gemini/gemini-3-pro", "google"),
        ("vertex_ai/gemini-3-pro", "google"),
        ("gemini-3-pro", "google"),
        ("ollama/llama4", "ollama"),
        ("ollama_chat/llama4:8b", "ollama"),
        ("mistral/large", "mistral"),
        ("mystery", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_provider_of_model_is_in_its_name(model: str | None, provider: str) -> None:
    assert provider_of(model) == provider


def test_price_of_a_model_of_ones_own_machine_is_nothing_and_known() -> None:
    unpriced = Usage(input_tokens=5, unknown_price=True, model_calls=1)
    assert priced(unpriced, "ollama") == Usage(input_tokens=5, model_calls=1)
    assert priced(unpriced, "openai") == unpriced


def test_profile_of_branches_side_by_side_compares_each_with_the_wall_time() -> None:
    found = profile(create_attempt("a", 0, 600), create_attempt("b", 0, 600), wall_ms=1000)
    assert [node.share for node in found.nodes] == [0.6, 0.6]
    assert found.bottlenecks == ("a", "b")


def test_profile_of_many_items_at_a_time_counts_their_overlap_once() -> None:
    items = [create_attempt("m", 10 * n, 10 * n + 100, step=f"m-x{n}") for n in range(10)]
    (node,) = profile(*items, wall_ms=1000).nodes
    assert node.steps == 10
    assert node.duration_ms == 190
    assert node.longest_ms == 100
    assert not node.bottleneck


def test_profile_at_the_threshold_has_no_bottleneck_but_strictly_above_it_has() -> None:
    at = profile(create_attempt("a", 0, 500))
    assert at.bottlenecks == ()
    assert profile(create_attempt("a", 0, 501)).bottlenecks == ("a",)
    assert profile(create_attempt("a", 0, 500), threshold=0.49).bottlenecks == ("a",)


def test_profile_of_a_step_that_was_tried_again_adds_all_its_attempts() -> None:
    found = profile(
        create_attempt("a", 0, 100, wait_ms=5, cost=0.5, model="openai/x"),
        create_attempt("a", 300, 500, number=2, wait_ms=7, cost=0.25, model="claude-y"),
    )
    (node,) = found.nodes
    assert (node.steps, node.attempts) == (1, 2)
    assert node.duration_ms == 300
    assert node.queue_wait_ms == found.queue_wait_ms == 12
    assert node.cost_usd == 0.75
    assert [(line.provider, line.usage.cost_usd) for line in found.models] == [
        ("openai", 0.5),
        ("anthropic", 0.25),
    ]
    assert found.steps[0].duration_ms == 300


def test_profile_of_a_run_without_steps_or_time_divides_by_nothing() -> None:
    assert profile(wall_ms=0).nodes == ()
    assert profile(create_attempt("a", 0, 0), wall_ms=0).bottlenecks == ()
