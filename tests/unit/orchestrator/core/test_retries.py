"""When a failed attempt is tried again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily, ErrorInfo
from penstock.contracts.facts import RunStatus, StepKind
from penstock.contracts.plan import RetryPolicy
from penstock.runs.state import StepState, new_state
from penstock_orchestrator.core.attempts import next_attempt
from tests.support.simulation import (
    PREFIX,
    RUN_ID,
    START,
    Driver,
    at,
    make_plan,
    make_result,
    make_tool,
    rejected,
    tool_node,
    transient,
)

STATE = new_state("acme", 3, RUN_ID)


def failed(
    attempt: int = 1,
    family: ErrorFamily = ErrorFamily.TRANSIENT,
    retry_after_seconds: float | None = None,
    step_id: str = "a",
) -> StepState:
    error = ErrorInfo(code="x", message="x", family=family, retry_after_seconds=retry_after_seconds)
    return StepState(step_id, StepKind.TOOL, "q", attempt, 1, START, "failed", error=error)


def delay(policy: RetryPolicy, step: StepState) -> float | None:
    wait = next_attempt(policy, STATE, step, START)
    return None if wait is None else (wait.due_at - START).total_seconds()


def test_next_attempt_delay_grows_up_to_its_limit() -> None:
    policy = RetryPolicy(max_attempts=9, initial_seconds=1, factor=3, max_seconds=20, jitter=0)

    assert [delay(policy, failed(attempt)) for attempt in range(1, 6)] == [1, 3, 9, 20, 20]


def test_next_attempt_after_the_last_is_none() -> None:
    policy = RetryPolicy(max_attempts=2)

    assert delay(policy, failed(1)) is not None
    assert delay(policy, failed(2)) is None


@pytest.mark.parametrize("family", list(ErrorFamily))
def test_next_attempt_is_for_the_families_that_the_policy_names(family: ErrorFamily) -> None:
    assert (delay(RetryPolicy(), failed(family=family)) is not None) == (family == "transient")
    assert delay(RetryPolicy(retry_on=(family,)), failed(family=family)) is not None


def test_next_attempt_of_a_step_without_error_is_none() -> None:
    step = StepState("a", StepKind.TOOL, "q", 1, 1, START, "failed")

    assert next_attempt(RetryPolicy(), STATE, step, START) is None


@pytest.mark.parametrize(("after", "expected"), [(None, 1), (0.2, 1), (17.5, 17.5), (-3, 1)])
def test_next_attempt_honours_a_longer_retry_after(after: float | None, expected: float) -> None:
    policy = RetryPolicy(initial_seconds=1, jitter=0)

    assert delay(policy, failed(retry_after_seconds=after)) == expected


def test_next_attempt_jitter_is_derived_and_within_its_share() -> None:
    policy = RetryPolicy(initial_seconds=10, jitter=0.2)
    delays = [delay(policy, failed(step_id=f"s{number}")) for number in range(50)]

    assert delays == [delay(policy, failed(step_id=f"s{number}")) for number in range(50)]
    assert len(set(delays)) > 40
    assert all(found is not None and 8 <= found <= 12 for found in delays)


@pytest.mark.parametrize("after", [1e12, 1e300, float("inf")])
def test_next_attempt_with_an_absurd_retry_after_stays_in_the_calendar(after: float) -> None:
    found = delay(RetryPolicy(), failed(retry_after_seconds=after))

    assert found is not None
    assert found <= timedelta(days=366).total_seconds()


def test_next_attempt_with_an_absurd_factor_stays_at_its_limit() -> None:
    policy = RetryPolicy(max_attempts=100, factor=1e9, max_seconds=30, jitter=0)

    assert delay(policy, failed(99)) == 30


def test_next_attempt_timer_is_named_after_step_and_attempt() -> None:
    wait = next_attempt(RetryPolicy(), STATE, failed(2, step_id="a-1-0"), START)

    assert wait is not None
    assert (wait.timer_id, wait.next_attempt) == ("a-1-0-3", 3)


# -- retries as decisions ------------------------------------------------------------------------


def test_decide_transient_failure_waits_then_tries_again() -> None:
    driver = Driver(make_plan(tool_node("a"))).start()

    driver.result("a", error=transient(), now=5)
    assert driver.state.steps["a"].status == "waiting"
    assert {wait.due_at for wait in driver.waits} == {at(6)}
    driver.wake(5.9)
    assert driver.scheduled == ["a.1"]
    driver.wake(6)
    assert driver.scheduled == ["a.1", "a.2"]
    assert driver.fact("a", 2).input == driver.fact("a").input

    assert driver.result("a", 7, attempt=2).end.output == 7


def test_decide_retry_after_of_a_429_is_waited_for() -> None:
    driver = Driver(make_plan(tool_node("a"))).start()

    driver.result("a", error=transient(30), now=5).wake(34)
    assert driver.scheduled == ["a.1"]
    driver.wake(35)

    assert driver.scheduled == ["a.1", "a.2"]


def test_decide_last_attempt_failing_ends_the_run() -> None:
    driver = Driver(make_plan(tool_node("a"))).start()
    now = 1.0
    for attempt in (1, 2, 3):
        driver.result("a", error=transient(), attempt=attempt, now=now)
        now += 10
        driver.wake(now)

    assert driver.end.status is RunStatus.FAILED
    assert driver.end.error is not None
    assert driver.end.error.code == "busy"
    assert driver.scheduled == ["a.1", "a.2", "a.3"]


def test_decide_node_policy_wins_over_the_tools() -> None:
    plan = make_plan(tool_node("a", retry=RetryPolicy(max_attempts=1)), tools=[make_tool("add")])

    assert Driver(plan).start().result("a", error=transient()).end.status is RunStatus.FAILED


def test_decide_several_failures_wait_in_one_decision() -> None:
    driver = Driver(make_plan(tool_node("a"), tool_node("b"))).start()
    for step_id in ("a", "b"):
        fact = make_result(error=transient(), now=at(1))
        driver.log.append(subjects.result(PREFIX, step_id, 1), fact)

    driver.engine.forget()
    driver.wake(1)

    waits = [change.decision.waits for change in driver.changes()]
    assert [[wait.step_id for wait in each] for each in waits] == [["a", "b"]]
    driver.wake(2)
    assert driver.scheduled[2:] == ["a.2", "b.2"]


def test_decide_other_branches_go_on_while_one_waits() -> None:
    driver = Driver(make_plan(tool_node("a"), tool_node("b"), tool_node("c", "b"))).start()

    driver.result("a", error=transient(50), now=1)
    driver.result("b", 1, now=2)

    assert driver.running == {"c"}
    driver.result("c", 1, now=3)
    assert driver.ended is None
    driver.wake(60)
    assert driver.result("a", 1, attempt=2, now=61).end.status is RunStatus.DONE


def test_decide_rejected_failure_is_not_tried_again() -> None:
    driver = Driver(make_plan(tool_node("a"))).start()

    assert driver.result("a", error=rejected()).end.status is RunStatus.FAILED
