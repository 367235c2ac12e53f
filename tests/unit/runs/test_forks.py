"""Seeds, node kind by node kind: what a fork takes over, what it does again."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.contracts import subjects
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import RunStatus, Seed, SignalReceived, StepKind, StepResult
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.plan import (
    ApprovalNode,
    Block,
    BranchNode,
    EndNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    Plan,
    TransformNode,
    WaitNode,
)
from penstock.runs.forks import seed_of
from penstock.runs.lineage import Lineage, changed_nodes
from tests.support.simulation import (
    NEVER,
    PREFIX,
    Driver,
    agent_node,
    at,
    make_agent,
    make_plan,
    make_tool,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)


def fork(source: Driver, *, plan: Plan | None = None, asked: Any = None, **how: Any) -> Driver:
    """Start a run with the seed of another one."""
    plan = plan or source.plan
    seed = seed_of(plan, source.log.entries, **how)
    given = source.invoked.input if asked is None else asked
    return Driver(plan, input=given, seed=seed).start()


def replay(source: Driver, **how: Any) -> Driver:
    return fork(source, as_recorded=True, **how)


def code_of(driver: Driver) -> str:
    error = driver.end.error
    assert error is not None
    return error.code


def reading(node_id: str, *sources: str, **changes: Any) -> Node:
    """Return a tool node that reads the outputs of others."""
    given = {name: f"{{{{ steps.{name}.output }}}}" for name in sources}
    return tool_node(node_id, *sources, input=given, **changes)


def body(*nodes: Node, **changes: Any) -> Block:
    return Block(name="body", nodes=nodes, **changes)


def mapped(over: str, *nodes: Node, **changes: Any) -> Node:
    return MapNode(id="m", over=over, body=body(*nodes), **changes)


def looped(*nodes: Node, **changes: Any) -> Node:
    return LoopNode(id="l", body=body(*nodes), **changes)


def assert_same_end(source: Driver, copy: Driver) -> None:
    assert copy.scheduled == []
    assert copy.end.status is source.end.status
    assert copy.end.output == source.end.output
    assert copy.end.error == source.end.error


def signal(driver: Driver, signal_id: str, **said: Any) -> None:
    fact = SignalReceived(**{"occurred_at": at(2), "name": "go", **said})
    driver.give(subjects.signal(PREFIX, signal_id), fact)


def answer(driver: Driver, record_id: str, decision: str) -> None:
    request = driver.state.node_records[record_id].node_record.request
    assert request is not None
    signal_id = answer_signal_id("approval", record_id, request.digest)
    payload = {"decision": decision, "by": "ann"}
    signal(driver, signal_id, kind="approval", target=record_id, payload=payload)


# -- tools ---------------------------------------------------------------------------------------


def diamond() -> Driver:
    plan = make_plan(
        tool_node("a"), tool_node("b"), reading("c", "a"), reading("d", "b", "c"), output=None
    )
    return Driver(plan).start().result("a", 1).result("b", 2).result("c", 3).result("d", 4)


def test_replay_of_a_complete_run_spends_nothing() -> None:
    source = diamond()

    assert_same_end(source, replay(source))
    assert_same_end(source, fork(source))


def test_override_runs_again_what_depends_on_it_alone() -> None:
    copy = replay(diamond(), overrides={"a": 10})

    assert copy.scheduled == ["c.1"]
    assert copy.fact("c").input == {"a": 10}
    copy.result("c", 30)
    assert copy.fact("d").input == {"b": 2, "c": 30}
    assert copy.state.steps["a"].seeded


def test_override_by_null_is_an_override() -> None:
    assert replay(diamond(), overrides={"a": None}).fact("c").input == {"a": None}


def test_override_says_that_it_is_one() -> None:
    seed = seed_of(diamond().plan, diamond().log.entries, overrides={"a": 10})

    assert {step.step_id: step.overridden for step in seed.steps} == {"a": True, "b": False}


def test_override_of_what_never_ran_is_made_up() -> None:
    source = Driver(make_plan(tool_node("a"), reading("b", "a"))).start()
    source.cancel()

    copy = fork(source, overrides={"a": 5})

    assert copy.scheduled == ["b.1"]


def test_override_of_an_unknown_step_names_the_known_ones() -> None:
    with pytest.raises(RejectedError) as refused:
        seed_of(diamond().plan, diamond().log.entries, overrides={"z": 1})

    assert refused.value.code == "unknown_step"
    assert refused.value.details[0].path == "overrides.z"
    assert refused.value.details[0].allowed == "a, b, c, d"


def test_fork_at_a_sequence_takes_over_what_was_known_then() -> None:
    source = diamond()
    seq = next(
        e.seq for e in source.log.entries if e.subject.step_id == "b" and not e.subject.decision
    )

    copy = fork(source, at_seq=seq)

    assert copy.scheduled == ["c.1"]


def test_replay_from_a_sequence_uses_outcomes_of_what_was_decided_by_then() -> None:
    source = diamond()
    seq = source.step("c").seq

    copy = replay(source, decided_by=seq)

    # The outcome of c came later, but c was decided by then.
    assert copy.scheduled == ["d.1"]


def test_retry_begins_the_failed_step_anew() -> None:
    source = Driver(make_plan(tool_node("a"), reading("b", "a"))).start().result("a", 1)
    source.result("b", error=rejected())
    assert source.end.status is RunStatus.FAILED

    copy = fork(source)

    assert copy.scheduled == ["b.1"]
    assert copy.result("b", 2).end.output == 2


def test_retry_of_a_cancelled_run_goes_on() -> None:
    source = Driver(make_plan(tool_node("a"), reading("b", "a"))).start().result("a", 1)
    source.cancel()

    assert fork(source).scheduled == ["b.1"]


def test_replay_of_a_failed_run_fails_the_same() -> None:
    source = Driver(make_plan(tool_node("a"), tool_node("x"), reading("b", "a"))).start()
    source.result("a", 1).result("b", error=transient()).wake(10)
    source.result("b", error=transient(), attempt=2).wake(20)
    source.result("b", error=transient(), attempt=3)
    assert source.end.status is RunStatus.FAILED

    assert_same_end(source, replay(source))


def test_failure_that_was_continued_after_is_taken_over() -> None:
    quiet = tool_node("a", retry=NEVER, on_error="continue", fallback={"n": 0})
    source = Driver(make_plan(quiet, reading("b", "a", retry=NEVER))).start()
    source.result("a", error=rejected()).result("b", error=rejected())

    copy = fork(source)

    assert copy.scheduled == ["b.1"]
    assert copy.fact("b").input == {"a": {"n": 0}}


def test_retry_without_needs_follows_references() -> None:
    plan = make_plan(
        tool_node("a"),
        TransformNode(id="t", input="{{ steps.a.output + 1 }}", needs=("a",)),
        tool_node("c", "t", when="steps.t.output > 5"),
    )
    source = Driver(plan).start().result("a", 1)
    assert source.state.node_records["c"].node_record.status == "skipped"

    copy = replay(source, overrides={"a": 9})

    assert copy.scheduled == ["c.1"]


# -- steps that must not be repeated ---------------------------------------------------------------


def once() -> Driver:
    plan = make_plan(tool_node("a", ref="pay"), tools=[make_tool("pay", at_most_once=True)])
    source = Driver(plan).start()
    fact = StepResult(
        occurred_at=at(1),
        kind=StepKind.TOOL,
        name="pay",
        status="unknown",
        error=transient(),
        started_at=at(1),
    )
    source.give(subjects.result(PREFIX, "a", 1), fact)
    return source


def test_step_of_unknown_outcome_is_not_repeated_in_silence() -> None:
    source = once().cancel()

    with pytest.raises(RejectedError) as refused:
        seed_of(source.plan, source.log.entries)

    assert refused.value.code == "outcome_unknown"
    assert fork(source, overrides={"a": "paid"}).end.output == "paid"
    assert fork(source, at_seq=1).scheduled == ["a.1"]


def test_unknown_outcome_of_a_step_in_finally_can_be_given() -> None:
    pay = make_tool("pay", at_most_once=True)
    plan = make_plan(
        tool_node("a"), finally_=(tool_node("f", ref="pay"),), tools=[make_tool("add"), pay]
    )
    source = Driver(plan).start().result("a", 1)
    assert source.scheduled[-1] == "f.1"

    with pytest.raises(RejectedError) as refused:
        seed_of(source.plan, source.log.entries)

    assert refused.value.code == "outcome_unknown"
    copy = fork(source, overrides={"f": "paid"})
    assert (copy.end.status, copy.scheduled) == ("done", [])


def test_unknown_outcome_that_was_decided_is_taken_over() -> None:
    source = once()
    signal(
        source,
        answer_signal_id("resolution", "a-r", "attempt-1"),
        kind="resolution",
        target="a-r",
        payload={"action": "succeed", "output": "paid"},
    )

    assert_same_end(source, fork(source))


# -- branches, parallel steps ----------------------------------------------------------------------


def branching(condition: str) -> Node:
    blocks = (Block(name="yes", nodes=(tool_node("y"),)), Block(name="no", nodes=(tool_node("n"),)))
    return BranchNode(id="br", conditions=(condition, None), blocks=blocks, needs=("a",))


def test_branch_is_decided_again_where_its_condition_reads_an_override() -> None:
    plan = make_plan(tool_node("a"), branching("steps.a.output > 1"), tool_node("z", "br"))
    source = Driver(plan).start().result("a", 5).result("y", 1).result("z", 2)
    assert_same_end(source, fork(source))

    copy = replay(source, overrides={"a": 0})

    assert copy.scheduled == ["n.1"]
    assert "y" not in copy.state.steps


def test_branch_keeps_its_choice_where_a_step_inside_is_overridden() -> None:
    plan = make_plan(tool_node("a"), branching("steps.a.output > 1"), reading("z", "br"))
    source = Driver(plan).start().result("a", 5).result("y", 1).result("z", 2)

    copy = replay(source, overrides={"y": 7})

    assert copy.scheduled == ["z.1"]
    assert copy.fact("z").input == {"br": 7}


def parallel(**changes: Any) -> Node:
    blocks = tuple(Block(name=name, nodes=(tool_node(name, retry=NEVER),)) for name in "abc")
    return ParallelNode(id="p", blocks=blocks, **changes)


def test_retry_of_a_parallel_step_repeats_the_failed_block_alone() -> None:
    source = Driver(make_plan(parallel())).start().result("a", 1).result("b", error=rejected())

    copy = fork(source)

    assert copy.scheduled == ["b.1", "c.1"]
    assert copy.result("b", 2).result("c", 3).end.output == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("changes", [{"wait": 1}, {"wait": 2}, {"collect": True}], ids=str)
def test_parallel_step_that_bore_failures_is_taken_over(changes: dict[str, Any]) -> None:
    source = Driver(make_plan(parallel(**changes))).start()
    source.result("a", error=rejected()).result("b", 2)
    if source.ended is None:
        source.result("c", 3)

    assert_same_end(source, fork(source))


def test_parallel_step_with_an_override_inside_settles_anew() -> None:
    source = Driver(make_plan(parallel())).start().result("a", 1).result("b", 2).result("c", 3)

    copy = replay(source, overrides={"b": 20})

    assert copy.scheduled == []
    assert copy.end.output == {"a": 1, "b": 20, "c": 3}


# -- maps and loops --------------------------------------------------------------------------------


def test_retry_of_a_map_repeats_the_failed_item_alone() -> None:
    source = Driver(make_plan(mapped("[1,2,3]", tool_node("w", retry=NEVER)))).start()
    source.result("w-x0", "A").result("w-x2", "C").result("w-x1", error=rejected())

    copy = fork(source)

    assert copy.scheduled == ["w-x1.1"]
    assert copy.result("w-x1", "B").end.output == ["A", "B", "C"]


def test_override_of_an_item_leaves_the_others() -> None:
    work = (tool_node("v"), reading("w", "v"))
    source = Driver(make_plan(mapped("[1,2]", *work), reading("z", "m"))).start()
    for step_id in ("v-x0", "v-x1", "w-x0", "w-x1"):
        source.result(step_id, step_id)
    source.result("z", 1)
    assert_same_end(source, fork(source))

    copy = replay(source, overrides={"v-x1": "V"})

    assert copy.scheduled == ["w-x1.1"]
    assert copy.fact("w-x1").input == {"v": "V"}
    assert copy.result("w-x1", "W").fact("z").input == {"m": ["w-x0", "W"]}


def test_map_whose_list_changes_begins_anew() -> None:
    source = Driver(
        make_plan(
            tool_node("a"),
            mapped("steps.a.output", tool_node("w")).model_copy(update={"needs": ("a",)}),
        )
    ).start()
    source.result("a", [1]).result("w-x0", "A")

    copy = replay(source, overrides={"a": [1, 2]})

    assert copy.scheduled == ["w-x0.1", "w-x1.1"]


def test_override_of_a_map_as_a_whole_is_its_output() -> None:
    source = Driver(make_plan(mapped("[1]", tool_node("w")), reading("z", "m"))).start()
    source.result("w-x0", "A").result("z", 1)

    assert replay(source, overrides={"m": ["other"]}).fact("z").input == {"m": ["other"]}


def test_item_beyond_the_map_cannot_be_overridden() -> None:
    source = Driver(make_plan(mapped("[1]", tool_node("w")))).start().result("w-x0", 1)

    with pytest.raises(RejectedError, match="unknown_step"):
        seed_of(source.plan, source.log.entries, overrides={"w-x7": 1})


def test_collected_failures_of_a_map_are_taken_over() -> None:
    source = Driver(
        make_plan(
            mapped("[1,2]", tool_node("w", retry=NEVER), collect=True),
            tool_node("z", "m", retry=NEVER),
        )
    ).start()
    source.result("w-x0", error=rejected()).result("w-x1", "B").result("z", error=rejected())

    assert fork(source).scheduled == ["z.1"]


def counting() -> Driver:
    step = tool_node("w", input={"was": "{{ previous }}"})
    source = Driver(make_plan(looped(step, until="steps.w.output >= 3"))).start()
    return source.result("w-x0", 1).result("w-x1", 2).result("w-x2", 3)


def test_loop_is_taken_over() -> None:
    source = counting()

    assert_same_end(source, fork(source))


def test_override_of_an_iteration_repeats_the_later_ones() -> None:
    copy = replay(counting(), overrides={"w-x1": 0})

    assert copy.scheduled == ["w-x2.1"]
    assert copy.fact("w-x2").input == {"was": 0}
    assert copy.result("w-x2", 9).end.output == 9


def test_retry_of_a_loop_goes_on_in_the_failed_iteration() -> None:
    step = tool_node("w", retry=NEVER)
    source = Driver(make_plan(looped(step, until="steps.w.output >= 3"))).start()
    source.result("w-x0", 1).result("w-x1", error=rejected())

    copy = fork(source)

    assert copy.scheduled == ["w-x1.1"]
    assert copy.result("w-x1", 3).end.output == 3


# -- agents ----------------------------------------------------------------------------------------


def talking() -> Driver:
    source = Driver(make_plan(agent_node("a"), reading("z", "a"))).start()
    source.result("a-1", uses(("add", {"n": 1}), ("add", {"n": 2})))
    source.result("a-1-0", 1).result("a-1-1", error=rejected())
    return source.result("a-2", responds("three")).result("z", 0)


def test_agent_with_a_failed_call_is_taken_over() -> None:
    source = talking()

    assert_same_end(source, fork(source))


def test_override_of_a_call_repeats_the_later_turns() -> None:
    copy = replay(talking(), overrides={"a-1-1": 40})

    assert copy.scheduled == ["a-2.1"]
    given: Any = copy.fact("a-2").input
    assert [message["content"] for message in given["messages"][-2:]] == ["1", "40"]


def test_override_of_a_turn_makes_its_calls_anew() -> None:
    copy = replay(talking(), overrides={"a-1": uses(("add", {"n": 9}))})

    assert copy.scheduled == ["a-1-0.1"]
    assert copy.fact("a-1-0").input == {"n": 9}


def test_override_of_a_turn_must_be_an_action() -> None:
    with pytest.raises(RejectedError, match="invalid_override"):
        seed_of(talking().plan, talking().log.entries, overrides={"a-2": "hello"})


def test_override_of_a_call_that_nobody_made_is_refused() -> None:
    with pytest.raises(RejectedError, match="unknown_step"):
        seed_of(talking().plan, talking().log.entries, overrides={"a-1-2": 1})


def test_override_of_an_agent_replaces_its_answer() -> None:
    copy = replay(talking(), overrides={"a": {"text": "four"}})

    assert copy.scheduled == ["z.1"]
    assert copy.fact("z").input == {"a": {"text": "four"}}


def test_turn_of_an_agent_that_begins_anew_cannot_be_overridden() -> None:
    plan = make_plan(tool_node("b"), agent_node("a", "b", input="{{ steps.b.output }}"))
    source = Driver(plan).start().result("b", 1).result("a-1", uses(("add", {})))
    source.result("a-1-0", 1).result("a-2", responds())

    with pytest.raises(RejectedError, match="begins anew"):
        seed_of(plan, source.log.entries, overrides={"b": 2, "a-2": responds("x")})


def test_retry_of_an_agent_out_of_turns_asks_for_the_last_one_again() -> None:
    plan = make_plan(agent_node("a"), agents=[make_agent(tools=("add",), max_turns=2)])
    source = Driver(plan).start().result("a-1", uses(("add", {}))).result("a-1-0", 1)
    source.result("a-2", uses(("add", {}))).result("a-2-0", 2)
    assert code_of(source) == "max_turns_exceeded"

    copy = fork(source)

    assert copy.scheduled == ["a-2.1"]
    assert copy.result("a-2", responds("ok")).end.output == {"text": "ok"}
    assert_same_end(source, replay(source))


def test_override_of_an_early_turn_holds_where_the_last_one_had_no_valid_action() -> None:
    plan = make_plan(agent_node("a"), agents=[make_agent(tools=("add",), max_turns=3)])
    source = Driver(plan).start().result("a-1", uses(("add", {"n": 1}))).result("a-1-0", 1)
    source.result("a-2", uses(("add", {"n": 2}))).result("a-2-0", 2)
    source.result("a-3", uses(("add", {"n": 3}))).result("a-3-0", 3)
    assert code_of(source) == "max_turns_exceeded"

    copy = fork(source, overrides={"a-1": uses(("add", {"n": 9}))})

    assert copy.scheduled == ["a-1-0.1"]
    assert copy.fact("a-1-0").input == {"n": 9}


def test_network_of_agents_is_taken_over_and_goes_on_from_an_override() -> None:
    agents = [
        make_agent("boss", routes=("clerk",)),
        make_agent("clerk", routes=("boss",), responds_to="caller"),
    ]
    plan = make_plan(agent_node("a", ref="boss"), agents=agents)
    source = Driver(plan).start()
    source.result("a-1", {"action": "route_to_agent", "agent": "clerk", "message": "do it"})
    source.result("a-2", responds("done")).result("a-3", responds("all done"))
    assert_same_end(source, fork(source))

    copy = replay(source, overrides={"a-2": responds("not done")})

    assert copy.scheduled == ["a-3.1"]
    assert copy.fact("a-3").name == "boss"


# -- waits, approvals, ends ------------------------------------------------------------------------


def test_wait_keeps_the_event_that_it_took_and_others_stay_for_later() -> None:
    wait = WaitNode(id="w", signal="go")
    again = WaitNode(id="v", signal="go", needs=("z",))
    source = Driver(make_plan(wait, reading("z", "w", retry=NEVER), again)).start()
    signal(source, "s1", payload=1)
    signal(source, "s0", payload=2)
    source.result("z", error=rejected())

    copy = fork(source)

    assert copy.fact("z").input == {"w": {"name": "go", "payload": 1}}
    output: Any = copy.result("z", 0).end.output
    assert output["payload"] == 2


def test_events_are_taken_again_in_their_order() -> None:
    first = WaitNode(id="w", signal="go")
    second = WaitNode(id="v", signal="go", needs=("w",))
    source = Driver(
        make_plan(tool_node("a"), first.model_copy(update={"needs": ("a",)}), second)
    ).start()
    source.result("a", 0)
    signal(source, "s2", payload="first")
    signal(source, "s1", payload="second")

    output: Any = replay(source, overrides={"a": 1}).end.output

    assert output["payload"] == "second"


def test_wait_that_was_given_up_with_the_run_is_begun_again() -> None:
    wait = WaitNode(id="w", signal="go")
    plan = make_plan(wait, tool_node("a", retry=NEVER), finally_=(tool_node("f"),))
    source = Driver(plan).start().result("a", error=rejected()).result("f", 1)
    assert source.state.node_records["w"].node_record.status == "skipped"

    copy = fork(source)

    assert copy.state.node_records["w"].open
    assert copy.running == {"a"}
    assert "f" not in copy.state.steps


def test_approval_is_taken_over_with_what_it_led_to_and_asked_again_else() -> None:
    tool = make_tool("pay", policy="require_approval", retry=NEVER)
    plan = make_plan(
        tool_node("a", ref="pay", retry=NEVER),
        reading("b", "a", ref="pay", retry=NEVER),
        tools=[tool],
    )
    source = Driver(plan).start()
    answer(source, "a-a", "approve")
    source.result("a", 1)
    answer(source, "b-a", "approve")
    source.result("b", error=rejected())

    copy = fork(source)

    assert copy.state.node_records["a-a"].node_record.status == "succeeded"
    assert copy.state.node_records["b-a"].open
    assert copy.scheduled == []


def test_rejected_call_of_an_agent_is_taken_over() -> None:
    tool = make_tool("pay", policy="require_approval")
    plan = make_plan(agent_node("a"), tools=[tool], agents=[make_agent(tools=("pay",))])
    source = Driver(plan).start().result("a-1", uses(("pay", {})))
    answer(source, "a-1-0-a", "reject")
    source.result("a-2", responds("then not"))

    assert_same_end(source, fork(source))


def test_approval_step_is_taken_over() -> None:
    node = ApprovalNode(id="ask")
    source = Driver(make_plan(node, tool_node("z", "ask"))).start()
    answer(source, "ask", "approve")
    source.result("z", 1)

    assert_same_end(source, fork(source))


def test_end_ends_the_fork_as_well() -> None:
    plan = make_plan(
        tool_node("slow"),
        tool_node("quick"),
        EndNode(id="stop", needs=("quick",), output="early"),
        tool_node("never", "stop", "slow"),
    )
    source = Driver(plan).start().result("quick", 1)

    assert_same_end(source, fork(source))


# -- compensation and handlers ---------------------------------------------------------------------


def undoing() -> Driver:
    plan = make_plan(
        tool_node("a", compensate=tool_node("undo_a")),
        tool_node("b", "a", retry=NEVER, compensate=tool_node("undo_b")),
        tool_node("c", "b", retry=NEVER),
        finally_=(tool_node("f"),),
    )
    source = Driver(plan).start().result("a", 1).result("b", 2).result("c", error=rejected())
    return source.result("undo_b", "b").result("undo_a", "a").result("f", 0)


def test_retry_does_again_what_was_undone() -> None:
    copy = fork(undoing())

    assert copy.scheduled == ["a.1"]
    copy.result("a", 1).result("b", 2).result("c", 3).result("f", 0)
    assert copy.end.status is RunStatus.DONE


def test_replay_of_a_compensated_run_undoes_nothing_twice() -> None:
    source = undoing()

    assert_same_end(source, replay(source))


def test_steps_that_were_taken_over_are_undone_in_reverse() -> None:
    plan = make_plan(
        tool_node("z", compensate=tool_node("undo_z")),
        tool_node("a", "z", compensate=tool_node("undo_a")),
        tool_node("c", "a", retry=NEVER),
    )
    source = Driver(plan).start().result("z", 1).result("a", 2).cancel()

    copy = fork(source).result("c", error=rejected())

    assert copy.scheduled == ["c.1", "undo_a.1"]


# -- changed input and plan ------------------------------------------------------------------------


def test_changed_input_runs_again_what_reads_the_changed_part() -> None:
    plan = make_plan(
        tool_node("a", input="{{ {'x': input.city} }}"),
        tool_node("b", input={"y": "{{ input.n }}"}),
    )
    source = Driver(plan, input={"city": "Ulm", "n": 1}).start().result("a", 1).result("b", 2)
    changed: dict[str, Any] = {"city": "Ulm", "n": 2}
    readers = Lineage(plan).readers(source.invoked.input, changed)
    assert readers == {"b"}

    copy = fork(source, asked=changed, drop=readers)

    assert copy.scheduled == ["b.1"]


def test_another_version_runs_again_what_is_defined_otherwise() -> None:
    source = diamond()
    nodes = (
        tool_node("a"),
        tool_node("b", input={"new": 1}),
        reading("c", "a"),
        reading("d", "b", "c"),
    )
    plan = make_plan(*nodes)
    whole, reshaped = changed_nodes(source.plan, plan)
    assert (set(whole), set(reshaped)) == ({"b"}, set())

    copy = fork(source, plan=plan, drop=whole, reshaped=reshaped)

    assert copy.scheduled == ["b.1"]


def test_version_with_another_tool_runs_its_steps_again() -> None:
    plan = make_plan(tool_node("a"), tools=[make_tool("add", description="new")])

    assert changed_nodes(make_plan(tool_node("a")), plan)[0] == {"a"}


def test_version_with_another_output_of_a_block_keeps_what_is_inside() -> None:
    source = Driver(make_plan(mapped("[1]", tool_node("w")))).start().result("w-x0", "A")
    node = MapNode(
        id="m", over="[1]", body=body(tool_node("w"), output={"w": "{{ steps.w.output }}"})
    )
    plan = make_plan(node)
    whole, reshaped = changed_nodes(source.plan, plan)
    assert (set(whole), set(reshaped)) == (set(), {"m"})

    copy = fork(source, plan=plan, drop=whole, reshaped=reshaped)

    assert copy.scheduled == []
    assert copy.end.output == [{"w": "A"}]


def test_fork_of_a_fork_takes_over_what_that_had_taken_over() -> None:
    copy = replay(diamond(), overrides={"a": 10}).result("c", 30).result("d", 40)

    again = replay(copy, overrides={"c": 31})

    assert again.scheduled == ["d.1"]
    assert again.fact("d").input == {"b": 2, "c": 31}


def test_seed_tells_what_the_source_had_cost() -> None:
    source = diamond()

    assert seed_of(source.plan, source.log.entries).spent.steps == 4
    assert Seed().spent.steps == 0
