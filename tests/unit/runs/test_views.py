"""Views: what clients read of a run."""

from __future__ import annotations

from penstock.contracts.facts import RunStatus
from penstock.contracts.usage import RunLimits, Usage
from penstock.runs.views import RUN_VIEW, Allowance, RunView, StepWindow, run_view
from tests.support.simulation import (
    START,
    Driver,
    agent_node,
    at,
    make_plan,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)


def seen(driver: Driver) -> RunView:
    view = run_view(driver.state)
    assert view is not None
    return view


def test_run_view_of_a_run_never_asked_for_is_none() -> None:
    assert run_view(Driver(make_plan(tool_node("a"))).state) is None


def test_run_view_of_a_running_run_shows_its_steps_in_order() -> None:
    driver = Driver(make_plan(tool_node("b"), tool_node("a", "b"))).start()

    driver.result("b", 7, now=3)

    view = seen(driver)
    assert view.status is RunStatus.RUNNING
    assert [(step.step_id, step.status, step.output) for step in view.steps] == [
        ("b", "succeeded", 7),
        ("a", "scheduled", None),
    ]
    assert [step.queue for step in view.steps] == [
        driver.state.steps[name].queue for name in ("b", "a")
    ]
    assert all(step.queue for step in view.steps)
    assert (view.created_at, view.updated_at, view.ended_at) == (START, at(3), None)
    assert view.last_seq == driver.log.messages[-1].seq


def test_run_view_of_an_ended_run_shows_output_usage_and_when() -> None:
    driver = Driver(make_plan(agent_node("a")), session_id="s", tags={"t": "1"}).start()
    driver.result("a-1", uses(("add", {})), usage=Usage(input_tokens=3))
    driver.result("a-1-0", 1).result("a-2", responds("so"), now=9)

    view = seen(driver)

    assert (view.status, view.output, view.error) == (RunStatus.DONE, {"text": "so"}, None)
    assert (view.usage.input_tokens, view.ended_at) == (3, at(9))
    assert (view.session_id, view.tags) == ("s", {"t": "1"})


def test_run_view_of_a_failed_run_shows_its_error() -> None:
    view = seen(Driver(make_plan(tool_node("a"))).start().result("a", error=rejected()))

    assert view.status is RunStatus.FAILED
    assert view.error is not None
    assert view.error.code == "bad_arguments"


def test_run_view_of_an_ended_run_is_the_same_whatever_comes_late() -> None:
    limits = RunLimits(max_tokens=100_000, max_steps=9)
    plan = make_plan(agent_node("a"), tool_node("b"), tool_node("c"))
    driver = Driver(plan, limits=limits).start()
    driver.result("b", error=transient()).cancel(now=4)
    before, seen_seq = seen(driver), driver.log.messages[-1].seq

    driver.result("a-1", responds(), now=9, usage=Usage(input_tokens=5)).result("c", 1, now=9)

    assert seen(driver) == before
    assert [(step.step_id, step.status) for step in before.steps] == [
        ("a-1", "stopped"),
        ("b", "stopped"),
        ("c", "stopped"),
    ]
    assert before.step_counts == {"stopped": 3}
    assert (before.updated_at, before.last_seq) == (at(4), seen_seq)
    assert before.budget is not None
    assert before.budget.tokens == Allowance(limit=100_000, spent=0, reserved=0, left=100_000)


def test_run_view_counts_attempts_at_steps_before_and_after_the_end() -> None:
    driver = Driver(make_plan(tool_node("a"), tool_node("b", "a"))).start()
    assert seen(driver).usage.steps == 1

    driver.result("a", error=transient()).wake(60).result("a", 1, attempt=2).result("b", 1)

    assert (seen(driver).usage.steps, driver.end.usage.steps) == (3, 3)


def test_run_view_of_a_waiting_step_shows_its_last_error() -> None:
    (step,) = seen(Driver(make_plan(tool_node("a"))).start().result("a", error=transient())).steps

    assert (step.status, step.attempt) == ("waiting", 1)
    assert step.error is not None


def test_run_view_is_read_back_from_json() -> None:
    view = seen(Driver(make_plan(tool_node("a"))).start().result("a", 1))

    assert RUN_VIEW.validate_json(RUN_VIEW.dump_json(view)) == view


def wide(count: int) -> Driver:
    return Driver(make_plan(*(tool_node(f"n{n}") for n in range(count)))).start()


def pages(driver: Driver, limit: int) -> list[RunView]:
    found: list[RunView] = []
    after = None
    while True:
        view = run_view(driver.state, window=StepWindow(limit, after))
        assert view is not None
        found.append(view)
        if view.next_steps_cursor is None:
            return found
        decision, _, step_id = view.next_steps_cursor.partition(".")
        after = (int(decision), step_id)


def test_pages_of_a_run_view_hold_every_step_once_in_order() -> None:
    driver = wide(7).result("n2", 1).result("n4", error=rejected())

    found = pages(driver, 3)

    assert [len(view.steps) for view in found] == [3, 3, 1]
    assert [step for view in found for step in view.steps] == list(seen(driver).steps)
    assert {view.step_counts["succeeded"] for view in found} == {1}
    assert all(sum(view.step_counts.values()) == 7 for view in found)


def test_last_page_that_is_full_has_no_cursor() -> None:
    assert [len(view.steps) for view in pages(wide(6), 3)] == [3, 3]


def test_step_that_is_retried_between_pages_is_not_missed() -> None:
    driver = wide(4)
    first = run_view(driver.state, window=StepWindow(2))
    assert first is not None
    assert first.next_steps_cursor == "1.n1"

    driver.result("n2", error=transient()).wake(600)
    rest = run_view(driver.state, window=StepWindow(2, (1, "n1")))

    assert rest is not None
    assert {step.step_id for step in rest.steps} == {"n2", "n3"}
