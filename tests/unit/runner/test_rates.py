"""Rate limits as arithmetic."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.contracts.facts import StepKind
from penstock.contracts.runners import LimitRecord
from penstock.runner.limits import provider_of
from penstock.runner.rates import BUSY_SECONDS, HORIZON_SECONDS, Rule, admit, charge, read_rules
from penstock.runner.settings import RunnerSettings

NOW = 1_795_000_000.0
EMPTY = LimitRecord(name="openai")


def rule(*entries: str) -> Rule:
    return read_rules(entries)["openai"]


def crowd(limit: Rule, number: int, at: float, record: LimitRecord = EMPTY) -> list[float]:
    """Return how long each of so many that come at once is sent away."""
    found = []
    for index in range(number):
        record, away = admit(limit, record, at, f"s{index}")
        found.append(away)
    return found


def test_so_many_pass_at_once_and_then_one_by_one() -> None:
    limit = rule("openai=60/m:3")
    record, passed = EMPTY, []
    for tenth in range(100):
        record, away = admit(limit, record, NOW + tenth / 10, "s")
        if away == 0:
            passed.append(tenth / 10)

    assert passed[:3] == [0.0, 0.1, 0.2]
    assert len(passed) == 12
    assert all(later - sooner >= 0.9 for sooner, later in pairwise(passed[3:]))


def test_those_who_are_turned_away_are_told_times_apart() -> None:
    away = crowd(rule("openai=10/s:1"), 6, NOW)

    assert away[0] == 0
    assert away[1:] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_nobody_is_told_to_come_later_than_the_horizon() -> None:
    assert max(crowd(rule("openai=1/h"), 50, NOW)) <= max(HORIZON_SECONDS, 3600)


def test_whoever_comes_back_when_told_passes() -> None:
    limit = rule("openai=10/s:2")
    record, waiting = EMPTY, []
    for index in range(30):
        record, away = admit(limit, record, NOW, f"s{index}")
        if away:
            waiting.append(NOW + away)
    for moment in waiting:
        record, away = admit(limit, record, moment, "back")
        assert away == 0


def test_places_are_taken_given_back_and_run_out() -> None:
    limit = rule("openai=2")
    record, first = admit(limit, EMPTY, NOW, "a")
    record, second = admit(limit, record, NOW, "b")
    record, third = admit(limit, record, NOW, "c")
    assert (first, second) == (0, 0)
    assert third >= BUSY_SECONDS
    assert admit(limit, record, NOW, "b")[1] == 0
    assert admit(limit, charge(limit, record, NOW, "a", 0), NOW, "c")[1] == 0
    assert admit(limit, record, NOW + 31, "c")[1] == 0


def test_tokens_are_paid_for_afterwards() -> None:
    limit = rule("openai=600t/m")
    record, away = admit(limit, EMPTY, NOW, "a")
    assert away == 0
    record = charge(limit, record, NOW, "a", 900)
    record, away = admit(limit, record, NOW, "b")
    assert away == pytest.approx(30)
    assert admit(limit, record, NOW + 31, "b")[1] == 0


@given(
    st.integers(1, 20),
    st.integers(1, 10),
    st.lists(st.floats(0, 0.5), min_size=1, max_size=200),
)
def test_no_more_pass_in_any_period_than_burst_and_rate_allow(
    count: int, burst: int, gaps: list[float]
) -> None:
    limit = rule(f"openai={count}/s:{burst}")
    record, at, passed = EMPTY, NOW, []
    for gap in gaps:
        at += gap
        record, away = admit(limit, record, at, "s")
        if away == 0:
            passed.append(at)
    for start in passed:
        within = sum(start <= moment < start + 1.0 for moment in passed)
        assert within <= burst + count


@pytest.mark.parametrize("entry", ["openai", "openai=0/m", "openai=5/w", "=5/m", "a=1/m:0", "a=x"])
def test_entry_that_is_none_is_refused_with_what_to_write(entry: str) -> None:
    with pytest.raises(ValidationError, match="NAME=60/m"):
        RunnerSettings(rate_limits=entry)  # type: ignore[arg-type]


def test_entry_that_repeats_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats a limit of openai"):
        read_rules(["openai=1/m", "openai=2/s"])


def test_entries_of_one_name_make_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_RATE_LIMITS", "openai=60/m, openai=9000t/m,openai=8,tool.http=1/s")
    rules = read_rules(RunnerSettings().rate_limits)

    assert set(rules) == {"openai", "tool.http"}
    found = rules["openai"]
    assert found.calls is not None
    assert found.tokens is not None
    assert found.places == 8


@pytest.mark.parametrize(
    ("config", "provider"),
    [
        ({"model": "openai/gpt-5-mini"}, "openai"),
        ({"model": "scripted/x", "parameters": {}}, "scripted"),
        ({"model": "openai/x", "parameters": {"api_base": "http://u:p@h:1/v1"}}, "openai@h:1"),
        ({"model": "", "endpoint": "http://a"}, None),
        ({"endpoint": "http://a", "model": "openai/x"}, None),
        (None, None),
    ],
)
def test_provider_is_named_by_the_model_and_its_address(config: object, provider: str) -> None:
    assert provider_of(StepKind.AGENT, config) == provider  # type: ignore[arg-type]
    assert provider_of(StepKind.TOOL, config) is None  # type: ignore[arg-type]
