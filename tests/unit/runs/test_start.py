"""The first fact of a run, however it is started."""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from penstock.contracts.facts import ChatMessage, DefinitionKind, ParentRef, StepScheduled, Trigger
from penstock.contracts.json import Json
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.schedules import SCHEDULE_TAG, ScheduleRecord
from penstock.contracts.usage import RunLimits
from penstock.runs.start import StartParams, child_run, scheduled_run
from penstock.runs.state import RunState
from tests.support.simulation import START, Driver, make_plan, tool_node

VERSION = PublishedVersion(
    name="flow", kind=DefinitionKind.WORKFLOW, version=7, plan_digest="digest"
)
CHILD: dict[str, Json] = {
    "name": "below",
    "depth": 3,
    "kind": "workflow",
    "version": 3,
    "plan_digest": "below",
    "limits": {"max_steps": 2},
}


def parent(**changes: object) -> RunState:
    state = Driver(make_plan(tool_node("a")), tags={"t": "1"}).start().state
    return replace(state, invoked=replace(state.request, **changes))


def scheduled(**config: Json) -> StepScheduled:
    return StepScheduled(
        occurred_at=START,
        node_id="a",
        name="below",
        input={"n": 1},
        config={**CHILD, **config},
        expires_at=START + timedelta(seconds=9),
    )


def test_the_first_fact_names_the_version_and_what_was_requested() -> None:
    params = StartParams(
        tenant="t", run_id="r", name="flow@live", input=5, session_id="s", requested_by="key"
    )
    history = [ChatMessage(role="user", content="hi")]

    fact = params.invoked(VERSION, START, history)

    assert (fact.name, fact.version, fact.plan_digest) == ("flow", 7, "digest")
    assert (fact.input, fact.session_id, fact.requested_by) == (5, "s", "key")
    assert (fact.history, fact.tags, fact.occurred_at) == (tuple(history), {}, START)


def test_a_scheduled_run_has_the_tag_of_its_schedule_and_the_tick_in_its_input() -> None:
    record = ScheduleRecord(
        name="nightly",
        target="flow",
        selector="live",
        every_seconds=60,
        input={"at": "{{ schedule.tick }}"},
        tags={"t": "1"},
    )

    params = scheduled_run("t", "r", record, START, "schedule:nightly")

    assert (params.name, params.selector, params.trigger) == ("flow", "live", Trigger.SCHEDULE)
    assert params.tags == {"t": "1", SCHEDULE_TAG: "nightly"}
    assert "2026" in str(params.input)


def test_a_child_run_inherits_from_its_parent_and_is_one_deeper() -> None:
    above = ParentRef(run_id="p", shard=1, step_id="s", attempt=1, root_run_id="root", depth=2)
    state = parent(priority=5, requested_by="key", parent=above)

    fact = child_run(state, "a", 2, scheduled())

    assert (fact.tags, fact.priority, fact.requested_by) == ({"t": "1"}, 5, "key")
    assert (fact.version, fact.plan_digest, fact.limits) == (3, "below", RunLimits(max_steps=2))
    assert fact.parent is not None
    assert (fact.parent.run_id, fact.parent.attempt) == (state.run_id, 2)
    assert (fact.parent.root_run_id, fact.parent.depth) == ("root", 3)


def test_a_child_of_a_run_without_a_parent_has_that_run_as_its_root() -> None:
    fact = child_run(parent(), "a", 1, scheduled(limits={}))

    assert fact.parent is not None
    assert (fact.parent.root_run_id, fact.parent.depth) == (fact.parent.run_id, 1)
