"""Sequences, fan-out and join, ends, cancellation, deadlines."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts import subjects
from penstock.contracts.facts import CancelRequested, RunEnded, RunStatus, StepScheduled
from penstock.contracts.plan import Node
from penstock.contracts.usage import RunLimits, Usage
from penstock_orchestrator.core.budget import run_deadline
from penstock_orchestrator.core.decide import decide, expired, repair, wake_at
from tests.support.simulation import (
    NEVER,
    PREFIX,
    START,
    Driver,
    agent_node,
    at,
    make_plan,
    make_result,
    make_tool,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)


def start(*nodes: Node, **changes: Any) -> Driver:
    return Driver(make_plan(*nodes, **changes)).start()


SEQUENCE = (tool_node("a"), tool_node("b", "a"), tool_node("c", "b"))


def test_decide_of_a_run_that_was_never_asked_for_is_nothing() -> None:
    driver = Driver(make_plan(tool_node("a")))

    assert decide(driver.plan, driver.state, START, 0) is None


def test_decide_sequence_runs_one_step_after_the_other() -> None:
    driver = start(*SEQUENCE)

    assert driver.scheduled == ["a.1"]
    driver.result("a", 1)
    assert driver.scheduled == ["a.1", "b.1"]
    driver.result("b", 2).result("c", 3)
    assert driver.scheduled == ["a.1", "b.1", "c.1"]
    assert driver.end.status is RunStatus.DONE
    assert driver.end.output == 3


def test_decide_numbers_decisions_and_names_their_causes() -> None:
    driver = start(*SEQUENCE).result("a").result("b").result("c")

    decisions = [
        (entry.subject.decision, entry.fact.decision.cause_seq)
        for entry in driver.log.entries
        if isinstance(entry.fact, StepScheduled | RunEnded) and entry.fact.decision is not None
    ]
    assert decisions == [(1, 1), (2, 3), (3, 5), (4, 7)]


def test_decide_fan_out_is_one_decision_whose_first_message_names_the_others() -> None:
    driver = start(tool_node("a"), tool_node("b"), agent_node("c"))

    entries = [entry for entry in driver.log.entries if entry.subject.event == "step"]
    assert driver.scheduled == ["a.1", "b.1", "c-1.1"]
    assert {entry.subject.decision for entry in entries} == {1}
    first, *others = [entry.fact for entry in entries]
    assert isinstance(first, StepScheduled)
    assert first.decision is not None
    assert first.decision.manifest == ("step.tool.builtin.b.1", "step.agent.default.c-1.1")
    assert all(isinstance(fact, StepScheduled) and fact.decision is None for fact in others)


def test_decide_join_waits_for_all_that_it_needs() -> None:
    driver = start(tool_node("a"), tool_node("b"), tool_node("c", "a", "b"))

    driver.result("b", 2)
    assert driver.running == {"a"}
    driver.result("a", 1)
    assert driver.running == {"c"}


def test_decide_diamond_goes_on_where_it_can() -> None:
    driver = start(
        tool_node("a"),
        tool_node("b", "a"),
        tool_node("c", "a"),
        tool_node("d", "b"),
        tool_node("e", "c", "d"),
    )
    driver.result("a")

    driver.result("b")
    assert driver.running == {"c", "d"}
    driver.result("d").result("c")
    assert driver.running == {"e"}


def test_decide_run_with_a_branch_still_open_does_not_end() -> None:
    driver = start(tool_node("a"), tool_node("b"))

    driver.result("b", 2)

    assert driver.ended is None
    assert driver.result("a", 1).end.output == 2


def test_decide_input_templates_see_input_steps_session_and_run() -> None:
    plan = make_plan(
        tool_node("a"),
        tool_node(
            "b",
            "a",
            input={
                "city": "{{ input.city }}",
                "sum": "{{ steps.a.output.sum }}",
                "text": "{{ session.id }} of {{ run.tenant }}",
                "tag": "{{ run.tags.team }}",
                "name": "{{ run.name }}",
            },
        ),
    )
    driver = Driver(plan, session_id="s1", tags={"team": "blue"}).start()

    driver.result("a", {"sum": 3})

    assert driver.fact("b").input == {
        "city": "Ulm",
        "sum": 3,
        "text": "s1 of acme",
        "tag": "blue",
        "name": "test",
    }


def test_decide_values_with_braces_are_never_rendered_again() -> None:
    plan = make_plan(tool_node("a", input={"text": "{{ input.text }}"}))

    driver = Driver(plan, input={"text": "{{ run.tenant }}"}).start()

    assert driver.fact("a").input == {"text": "{{ run.tenant }}"}


def test_decide_output_template_makes_the_runs_output() -> None:
    plan = make_plan(
        tool_node("a"), output={"is": "{{ steps.a.output }}", "of": "{{ input.city }}"}
    )

    assert Driver(plan).start().result("a", 7).end.output == {"is": 7, "of": "Ulm"}


def test_decide_output_that_cannot_be_rendered_fails_the_run() -> None:
    driver = start(tool_node("a"), output="{{ steps.a.output.missing }}")

    driver.result("a", {})

    assert driver.end.status is RunStatus.FAILED
    assert driver.end.error is not None
    assert driver.end.error.code == "template_unresolved"


@pytest.mark.parametrize("template", ["{{ input.nothing }}", "{{ steps }}", "all: {{ steps }}"])
def test_decide_input_that_cannot_be_rendered_fails_the_run(template: str) -> None:
    driver = start(tool_node("a", input={"x": template}))

    assert driver.end.status is RunStatus.FAILED
    assert driver.end.error is not None
    assert driver.end.error.code == "template_unresolved"
    assert driver.scheduled == []


def test_decide_tool_input_that_is_no_object_fails_the_run() -> None:
    plan = make_plan(tool_node("a", input="{{ input.city }}"))

    error = Driver(plan).start().end.error

    assert error is not None
    assert (error.code, error.details[0].path) == ("invalid_input", "a.input")


def test_decide_expiry_of_a_step_follows_node_then_tool() -> None:
    tools = [make_tool("add", timeout_seconds=7)]
    driver = start(tool_node("a"), tool_node("b", timeout_seconds=3), tools=tools)

    assert driver.fact("a").expires_at == at(7)
    assert driver.fact("b").expires_at == at(3)


def test_decide_failed_step_ends_the_run_with_its_error() -> None:
    driver = start(*SEQUENCE)

    driver.result("a", error=rejected())

    assert driver.end.status is RunStatus.FAILED
    assert driver.end.error is not None
    assert driver.end.error.code == "bad_arguments"
    assert driver.end.error.details[0].path == "a"
    assert driver.scheduled == ["a.1"]


@pytest.mark.parametrize(("branches", "stops"), [(("a",), False), (("a", "b"), True)])
def test_decide_failed_step_stops_other_branches_where_there_are_any(
    branches: tuple[str, ...], stops: bool
) -> None:
    driver = start(*(tool_node(branch) for branch in branches))
    message = driver.log.append(subjects.result(PREFIX, "a", 1), make_result(error=rejected()))

    decided = decide(driver.plan, driver.state, START, message.seq)

    assert decided is not None
    assert decided.outputs[0].suffix == subjects.END_SUFFIX
    assert decided.stop is stops


def test_decide_late_result_after_the_end_changes_nothing() -> None:
    driver = start(tool_node("a"), tool_node("b"))
    driver.result("a", error=rejected())

    driver.result("b", 1)

    assert driver.end.status is RunStatus.FAILED
    assert driver.log.messages[-1].subject.endswith("in.result.b.1")


def test_decide_usage_of_all_steps_is_in_the_end() -> None:
    driver = start(agent_node("a"))
    driver.result(
        "a-1", uses(("add", {})), usage=Usage(input_tokens=5, cost_usd=0.5, model_calls=1)
    )
    driver.result("a-1-0", 1)
    driver.result("a-2", responds(), usage=Usage(input_tokens=7, unknown_price=True, model_calls=1))

    assert driver.end.usage == Usage(
        input_tokens=12, cost_usd=0.5, unknown_price=True, model_calls=2, steps=3
    )


# -- cancellation --------------------------------------------------------------------------------


def test_decide_cancel_before_the_start_ends_the_run_with_nothing_scheduled() -> None:
    driver = Driver(make_plan(tool_node("a")))

    driver.cancel("too late").start()

    assert driver.end.status is RunStatus.CANCELLED
    assert driver.end.error is not None
    assert driver.end.error.message == "too late"
    assert driver.scheduled == []


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_decide_cancel_of_a_running_step_ends_the_run_and_schedules_nothing(steps: int) -> None:
    driver = start(*SEQUENCE)
    for step_id in ("a", "b")[:steps]:
        driver.result(step_id)
    before = driver.scheduled

    driver.cancel()

    assert driver.end.status is RunStatus.CANCELLED
    assert driver.scheduled == before
    driver.result(before[-1].split(".")[0])
    assert driver.scheduled == before


def test_decide_cancel_of_a_waiting_step_ends_the_run_and_its_timer_changes_nothing() -> None:
    driver = start(tool_node("a"))
    driver.result("a", error=transient())

    driver.cancel()
    driver.wake(100)

    assert driver.end.status is RunStatus.CANCELLED
    assert driver.scheduled == ["a.1"]


def test_decide_cancel_between_turns_ends_the_run() -> None:
    driver = start(agent_node("a"))
    driver.result("a-1", uses(("add", {}), ("add", {})))
    driver.result("a-1-0", 1)

    driver.cancel()
    driver.result("a-1-1", 2)

    assert driver.end.status is RunStatus.CANCELLED
    assert driver.scheduled == ["a-1.1", "a-1-0.1", "a-1-1.1"]


def test_decide_cancel_after_the_end_changes_nothing() -> None:
    driver = start(tool_node("a")).result("a", 1)

    driver.cancel()

    assert driver.end.status is RunStatus.DONE


def test_decide_cancel_tells_running_steps_to_stop_only_if_there_are_any() -> None:
    driver = Driver(make_plan(tool_node("a"), tool_node("b", "a"))).start()
    message = driver.log.append(subjects.cancel(PREFIX), CancelRequested(occurred_at=at(1)))

    decided = decide(driver.plan, driver.state, at(1), message.seq)

    assert decided is not None
    assert decided.stop


def test_decide_cancel_wins_over_the_deadline() -> None:
    driver = start(tool_node("a"))

    driver.cancel(now=10_000)

    assert driver.end.status is RunStatus.CANCELLED


def test_repair_after_a_cancellation_publishes_nothing() -> None:
    driver = Driver(make_plan(tool_node("a"), tool_node("b")))
    message = driver.log.append(subjects.invoke(PREFIX), driver.invoked)
    for effect in driver.engine.handle(message):
        if effect == "publish another message":
            break
    assert repair(driver.plan, driver.state) != []

    driver.log.append(subjects.cancel(PREFIX), CancelRequested(occurred_at=at(1)))

    assert repair(driver.plan, driver.state) == []


# -- deadlines -----------------------------------------------------------------------------------


def test_decide_run_deadline_fails_the_run() -> None:
    driver = start(tool_node("a"), timeout_seconds=10)

    driver.wake(9.9)
    assert driver.ended is None
    driver.wake(10)

    assert driver.end.status is RunStatus.FAILED
    assert driver.end.error is not None
    assert driver.end.error.code == "run_timeout"


@pytest.mark.parametrize(("asked", "expected"), [(None, 60), (5, 5), (100, 60)])
def test_run_deadline_is_the_shorter_of_plan_and_request(
    asked: float | None, expected: int
) -> None:
    plan = make_plan(tool_node("a"), timeout_seconds=60)
    driver = Driver(plan, limits=RunLimits(timeout_seconds=asked)).start()

    assert run_deadline(plan, driver.state.request) == at(expected)


def test_expired_attempt_is_stated_as_failed_and_tried_again() -> None:
    driver = start(tool_node("a", timeout_seconds=5))

    driver.wake(6)
    assert driver.state.steps["a"].status == "scheduled"
    driver.wake(7)

    step = driver.state.steps["a"]
    assert step.status == "waiting"
    assert step.error is not None
    assert step.error.code == "step_timeout"
    driver.wake(8.1)
    assert driver.scheduled == ["a.1", "a.2"]
    assert driver.fact("a", 2).expires_at == at(13.1)


def test_expired_attempt_without_retries_fails_the_run() -> None:
    driver = start(tool_node("a", timeout_seconds=5), tools=[make_tool("add", retry=NEVER)])

    driver.wake(8)

    assert driver.end.error is not None
    assert driver.end.error.code == "step_timeout"


def test_expired_of_an_ended_run_is_nothing() -> None:
    driver = start(tool_node("a"), tool_node("b"))
    driver.cancel()

    assert expired(driver.state, at(100_000)) == []


def test_wake_at_is_the_soonest_of_deadline_expiry_and_wait() -> None:
    plan = make_plan(
        tool_node("a", timeout_seconds=50), tool_node("b", timeout_seconds=20), timeout_seconds=100
    )
    driver = Driver(plan).start()

    assert wake_at(plan, driver.state) == at(22)
    driver.result("b", error=transient(), now=3)
    assert wake_at(plan, driver.state) == at(4)
    driver.result("a")
    driver.wake(4)
    driver.result("b", attempt=2, now=5)
    assert wake_at(plan, driver.state) is None


def test_wake_at_of_a_run_that_only_its_deadline_can_move_is_that() -> None:
    driver = Driver(make_plan(tool_node("a"), timeout_seconds=30))
    assert wake_at(driver.plan, driver.state) is None

    driver.start()

    assert wake_at(driver.plan, driver.state) == at(30)


def test_wake_at_after_waking_is_later_than_now() -> None:
    plan = make_plan(tool_node("a", timeout_seconds=5))
    driver = Driver(plan).start()
    for _ in range(10):
        moment = wake_at(plan, driver.state)
        if moment is None:
            break
        driver.wake((moment - START).total_seconds())
        after = wake_at(plan, driver.state)
        assert after is None or after > moment

    assert driver.end.error is not None
    assert driver.end.error.code == "step_timeout"


# -- what cannot happen, happens -----------------------------------------------------------------


def test_decide_turn_that_ends_with_no_action_fails_the_run() -> None:
    driver = start(agent_node("a"))

    driver.result("a-1", {"action": "dance"})

    assert driver.end.error is not None
    assert driver.end.error.code == "invalid_action"


def test_decide_asked_again_after_its_decision_is_nothing() -> None:
    driver = start(*SEQUENCE)

    assert decide(driver.plan, driver.state, START, 1) is None
    assert repair(driver.plan, driver.state) == []


def test_decide_schedules_no_more_than_the_room_and_names_full_pools() -> None:
    plan = make_plan(tool_node("a"), tool_node("b"), tool_node("c"))
    driver = Driver(plan)
    message = driver.log.append(subjects.invoke(PREFIX), driver.invoked)
    pool = f"tool.{plan.tools['add'].queue}"

    decided = decide(plan, driver.state, START, message.seq, room={pool: 2})

    assert decided is not None
    assert len(decided.outputs) == 2
    assert decided.used == {pool: 2}
    assert decided.full_pools == {pool}


def test_decide_without_room_publishes_nothing_but_names_full_pools() -> None:
    plan = make_plan(tool_node("a"))
    driver = Driver(plan)
    message = driver.log.append(subjects.invoke(PREFIX), driver.invoked)
    pool = f"tool.{plan.tools['add'].queue}"

    decided = decide(plan, driver.state, START, message.seq, room={pool: 0})

    assert decided is not None
    assert decided.outputs == ()
    assert decided.used == {}
    assert decided.full_pools == {pool}


# -- what an engine remembers --------------------------------------------------------------------


def test_attempts_that_are_due_together_are_scheduled_in_the_order_of_the_plan() -> None:
    driver = start(tool_node("a"), tool_node("b"))
    driver.result("a", error=transient(9.0))
    driver.result("b", error=transient(2.0))

    # The wait of b is over first. An engine that remembers both decides as one that does not.
    driver.wake(20)

    assert driver.scheduled[2:] == ["a.2", "b.2"]
