"""Events for clients: what each fact means, and that only its last event has an id."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.contracts import subjects
from penstock.contracts.events import FINAL_EVENTS, EventType, delta_events, events_of
from penstock.contracts.facts import CancelRequested, DeltaBatch, SignalReceived, StateChanged
from penstock.contracts.state import Entry
from tests.support.simulation import (
    PREFIX,
    RUN_ID,
    Driver,
    agent_node,
    at,
    make_agent,
    make_plan,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)

Story = Callable[[], Driver]


def told(driver: Driver) -> list[str]:
    return [event.type.value for entry in driver.log.entries for event in events_of(entry)]


def agent_story() -> Driver:
    driver = Driver(make_plan(agent_node("a"), agents=[make_agent(tools=("add",))])).start()
    driver.result("a-1", uses(("rm", {}), ("add", {"x": 1}), ("add", {"x": 2})))
    driver.result("a-1-1", 1).result("a-1-2", error=rejected())
    return driver.result("a-2", responds("so"))


def retry_story() -> Driver:
    driver = Driver(make_plan(tool_node("a"), tool_node("b"))).start()
    driver.result("a", error=transient(), now=1).wake(2)
    driver.result("a", 1, attempt=2, now=3)
    return driver.cancel(now=4)


def failed_story() -> Driver:
    return Driver(make_plan(tool_node("a"))).start().result("a", error=rejected())


STORIES = pytest.mark.parametrize("story", [agent_story, retry_story, failed_story])


def test_events_of_an_agents_run_tell_it_from_start_to_end() -> None:
    assert told(agent_story()) == [
        "run_started",
        "user_input",
        "agent_invoke_started",
        "agent_invoke_done",
        "policy_decision",
        "tool_call_started",
        "tool_call_started",
        "tool_call_done",
        "tool_call_failed",
        "agent_invoke_started",
        "agent_invoke_done",
        "run_done",
    ]


def test_events_of_a_retried_and_cancelled_run_tell_both() -> None:
    assert told(retry_story()) == [
        "run_started",
        "user_input",
        "tool_call_started",
        "tool_call_started",
        "tool_call_failed",
        "step_waiting",
        "tool_call_started",
        "tool_call_done",
        "run_cancel_requested",
        "run_cancelled",
    ]


def test_events_of_a_failed_run_carry_its_error() -> None:
    *_, last = events_of(failed_story().log.entries[-1])

    assert last.type is EventType.RUN_FAILED
    assert last.data["error"]["code"] == "bad_arguments"  # type: ignore[index,call-overload]
    assert "output" not in last.data


@STORIES
def test_events_of_a_fact_give_their_last_alone_its_sequence(story: Story) -> None:
    for entry in story().log.entries:
        *others, last = events_of(entry)
        assert last.id == entry.seq
        assert all(event.id is None for event in others)
        assert {event.run_id for event in (*others, last)} == {RUN_ID}


@STORIES
def test_events_end_with_one_final_event(story: Story) -> None:
    final = [kind for kind in told(story()) if kind in FINAL_EVENTS]

    assert final == [told(story())[-1]]


def test_events_of_a_blocked_call_say_why() -> None:
    policy = next(
        event
        for entry in agent_story().log.entries
        for event in events_of(entry)
        if event.type is EventType.POLICY_DECISION
    )

    assert policy.step_id == "a-1-0"
    assert policy.data["decision"] == "blocked"
    assert "not equipped" in str(policy.data["reason"])


def test_events_of_a_tool_call_show_its_arguments_and_those_of_a_turn_no_messages() -> None:
    started = {
        event.step_id: event.data
        for entry in agent_story().log.entries
        for event in events_of(entry)
        if event.type in (EventType.TOOL_CALL_STARTED, EventType.AGENT_INVOKE_STARTED)
    }

    assert started["a-1-1"]["arguments"] == {"x": 1}
    assert "arguments" not in started["a-1"]


def test_events_of_signals_and_cancellations_carry_what_was_said() -> None:
    signal = Entry(
        5,
        subjects.parse_fact(subjects.signal(PREFIX, "s")),
        SignalReceived(occurred_at=at(1), name="approved", payload={"by": "ada"}),
    )
    cancel = Entry(
        6,
        subjects.parse_fact(subjects.cancel(PREFIX)),
        CancelRequested(occurred_at=at(1), reason="no need"),
    )

    assert events_of(signal)[0].data == {"name": "approved", "payload": {"by": "ada"}}
    assert events_of(cancel)[0].data == {"reason": "no need"}


def test_events_of_several_waits_are_one_each() -> None:
    entry = next(e for e in retry_story().log.entries if isinstance(e.fact, StateChanged))
    assert isinstance(entry.fact, StateChanged)
    waits = (entry.fact.waits[0], entry.fact.waits[0])
    several = Entry(entry.seq, entry.subject, entry.fact.model_copy(update={"waits": waits}))

    assert [event.id for event in events_of(several)] == [None, entry.seq]


def test_delta_events_count_on_from_the_first_index_and_have_no_id() -> None:
    events = delta_events(RUN_ID, "a-1", 2, DeltaBatch(first=10, texts=("x", "y", "z")), skip=1)

    assert [(event.data["index"], event.data["text"]) for event in events] == [(11, "y"), (12, "z")]
    assert {(event.id, event.step_id, event.attempt) for event in events} == {(None, "a-1", 2)}


def test_delta_events_of_a_batch_that_was_seen_are_none() -> None:
    assert delta_events(RUN_ID, "a-1", 1, DeltaBatch(first=0, texts=("x",)), skip=5) == ()
