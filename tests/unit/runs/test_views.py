"""Views: what clients read of a run."""

from __future__ import annotations

from penstock.contracts.facts import RunStatus, Usage
from penstock.runs.views import RUN_VIEW, RunView, run_view
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


def test_run_view_of_a_waiting_step_shows_its_last_error() -> None:
    (step,) = seen(Driver(make_plan(tool_node("a"))).start().result("a", error=transient())).steps

    assert (step.status, step.attempt) == ("waiting", 1)
    assert step.error is not None


def test_run_view_is_read_back_from_json() -> None:
    view = seen(Driver(make_plan(tool_node("a"))).start().result("a", 1))

    assert RUN_VIEW.validate_json(RUN_VIEW.dump_json(view)) == view
