"""Events for clients: what each fact means, and that only its last event has an id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import (
    CancelRequested,
    Decision,
    NodeRecord,
    PendingRequest,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
)
from penstock.contracts.messages import DeltaBatch
from penstock.contracts.structs import convert
from penstock.contracts.usage import Usage
from penstock.runs.events import FINAL_EVENTS, EventType, delta_events, events_of
from penstock.runs.state import Entry
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
    (wait,) = entry.fact.decision.waits
    decision = structs.replace(entry.fact.decision, waits=(wait, wait))
    several = Entry(entry.seq, entry.subject, structs.replace(entry.fact, decision=decision))
    assert [event.id for event in events_of(several)] == [None, entry.seq]


def decided(*node_records: NodeRecord) -> Entry:
    fact = StateChanged(
        occurred_at=at(1), decision=Decision(cause_seq=1, node_records=node_records)
    )
    return Entry(7, subjects.parse_fact(subjects.out(PREFIX, 1, subjects.STATE_SUFFIX)), fact)


EXPIRED = ErrorInfo(code="approval_expired", message="nobody decided in time")
REQUEST = PendingRequest(name="pay", arguments={"amount": 3}, digest="d", role="boss")


@pytest.mark.parametrize(
    ("node_record", "kind", "step_id"),
    [
        (NodeRecord(record_id="p-a", kind="approval", status="open"), "approval_created", "p"),
        (NodeRecord(record_id="p-a", kind="approval", status="succeeded"), None, ""),
        (NodeRecord(record_id="p-a", kind="approval", status="failed"), None, ""),
        (
            NodeRecord(record_id="p-a", kind="approval", status="failed", error=EXPIRED),
            "approval_expired",
            "p",
        ),
        (
            NodeRecord(
                record_id="p", kind="approval", status="succeeded", output={"expired": True}
            ),
            "approval_expired",
            "p",
        ),
        (
            NodeRecord(record_id="c-1-0", kind="client_tool", status="open"),
            "tool_call_created",
            "c-1-0",
        ),
        (NodeRecord(record_id="c", kind="client_tool", status="succeeded"), "tool_call_done", "c"),
        (NodeRecord(record_id="c", kind="client_tool", status="failed"), "tool_call_failed", "c"),
        (NodeRecord(record_id="t-r", kind="resolution", status="open"), "resolution_created", "t"),
        (NodeRecord(record_id="t-r", kind="resolution", status="succeeded"), None, ""),
        (NodeRecord(record_id="w", kind="wait", status="open"), "wait_started", "w"),
        (NodeRecord(record_id="w", kind="wait", status="failed"), "wait_ended", "w"),
        (NodeRecord(record_id="b", kind="branch", status="open", choice="large"), None, ""),
        (
            NodeRecord(record_id="b", kind="branch", status="succeeded", choice="x"),
            "branch_taken",
            "b",
        ),
        (NodeRecord(record_id="m", kind="map", status="open", count=3), "map_started", "m"),
        (NodeRecord(record_id="m", kind="map", status="succeeded"), "node_done", "m"),
        (NodeRecord(record_id="l-x1", kind="loop", status="open", count=1), None, ""),
        (NodeRecord(record_id="t-x1", kind="transform", status="failed"), "node_failed", "t-x1"),
        (NodeRecord(record_id="t", kind="agent", status="skipped"), "node_skipped", "t"),
        (NodeRecord(record_id="-main", kind="phase", status="failed"), "phase_ended", "-main"),
    ],
)
def test_event_of_a_mark_is_told_by_its_kind_and_status(
    node_record: NodeRecord, kind: str | None, step_id: str
) -> None:
    found = [
        (event.type.value, event.step_id, event.id) for event in events_of(decided(node_record))
    ]

    assert found == ([] if kind is None else [(kind, step_id, 7)])


def test_event_of_a_question_says_what_exactly_is_asked() -> None:
    node_record = NodeRecord(
        record_id="p-a", kind="approval", status="open", due_at=at(60), request=REQUEST
    )
    branch = NodeRecord(record_id="b", kind="branch", status="succeeded", choice="else")
    first, second = events_of(decided(node_record, branch))

    assert (first.id, second.id) == (None, 7)
    assert first.data == {
        "record_id": "p-a",
        "kind": "approval",
        "status": "open",
        "name": "pay",
        "arguments": {"amount": 3},
        "digest": "d",
        "role": "boss",
        "due_at": at(60).isoformat(),
    }


@pytest.mark.parametrize(
    ("given", "kind", "data"),
    [
        (
            {
                "kind": "approval",
                "name": "pay",
                "target": "p-a",
                "payload": {"decision": "approve", "by": "ada"},
                "sent_by": "key-1",
            },
            "approval_decision",
            {"name": "pay", "record_id": "p-a", "decision": "approve", "by": "ada"},
        ),
        (
            {"kind": "resolution", "name": "pay", "target": "p-r", "payload": {"action": "fail"}},
            "resolution_decision",
            {"name": "pay", "record_id": "p-r", "action": "fail"},
        ),
        (
            {"kind": "pause", "name": "pause", "sent_by": "ada"},
            "run_paused",
            {"name": "pause", "by": "ada"},
        ),
        ({"kind": "admitted", "name": ""}, "run_admitted", {}),
        (
            {"kind": "message", "name": "hi", "from_run": "R", "payload": 1},
            "signal_received",
            {"name": "hi", "payload": 1, "from_run": "R"},
        ),
    ],
)
def test_event_of_a_signal_is_told_by_its_kind(
    given: dict[str, Any], kind: str, data: dict[str, Any]
) -> None:
    fact = convert(SignalReceived, {"occurred_at": at(1), **given})
    entry = Entry(5, subjects.parse_fact(subjects.signal(PREFIX, "s")), fact)
    (event,) = events_of(entry)

    assert (event.type.value, event.data, event.id) == (kind, data, 5)


@pytest.mark.parametrize(
    ("queue", "result", "kinds"),
    [
        ("workflow", {"usage": Usage()}, ["child_run_started", "child_run_done"]),
        (
            "workflow",
            {"status": "failed", "error": ErrorInfo(code="cancelled", message="")},
            ["child_run_started", "child_run_failed"],
        ),
        ("send", {}, ["message_sent", "message_delivered"]),
        (
            "send",
            {"status": "failed", "error": ErrorInfo(code="no_recipient", message="")},
            ["message_sent", "message_failed"],
        ),
    ],
)
def test_events_of_steps_of_the_engine_tell_runs_and_messages_apart(
    queue: str, result: dict[str, Any], kinds: list[str]
) -> None:
    suffix = subjects.step_suffix("run", queue, "sub", 1)
    scheduled = StepScheduled(occurred_at=at(1), node_id="sub", name="x", expires_at=at(9))
    outcome = StepResult(
        **{
            "occurred_at": at(2),
            "started_at": at(1),
            "kind": StepKind.RUN,
            "name": "x",
            "status": "succeeded",
            **result,
        }
    )
    entries = (
        Entry(5, subjects.parse_fact(subjects.out(PREFIX, 1, suffix)), scheduled),
        Entry(6, subjects.parse_fact(subjects.result(PREFIX, "sub", 1)), outcome),
    )

    assert [event.type.value for entry in entries for event in events_of(entry)] == kinds


def test_delta_events_count_on_from_the_first_index_and_have_no_id() -> None:
    events = delta_events(RUN_ID, "a-1", 2, DeltaBatch(first=10, texts=("x", "y", "z")), skip=1)

    assert [(event.data["index"], event.data["text"]) for event in events] == [(11, "y"), (12, "z")]
    assert {(event.id, event.step_id, event.attempt) for event in events} == {(None, "a-1", 2)}


def test_delta_events_of_a_batch_that_was_seen_are_none() -> None:
    assert delta_events(RUN_ID, "a-1", 1, DeltaBatch(first=0, texts=("x",)), skip=5) == ()
