"""The core, node kind by node kind. The driver checks each decision with and without memory."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from penstock.contracts import subjects
from penstock.contracts.facts import (
    DefinitionKind,
    ParentRef,
    RunStatus,
    Seed,
    SeededStep,
    SignalReceived,
    StepKind,
)
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.plan import (
    ApprovalNode,
    ApprovalPolicy,
    Block,
    BranchNode,
    ChildSpec,
    ConcurrencySpec,
    EndNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    TransformNode,
    WaitNode,
    WorkflowNode,
)
from penstock.contracts.usage import Reservation, RunLimits, Usage
from tests.support.simulation import (
    NEVER,
    PREFIX,
    START,
    Driver,
    agent_node,
    at,
    make_agent,
    make_plan,
    make_result,
    make_tool,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)


def transform(node_id: str, value: Any, *needs: str, **changes: Any) -> Node:
    return TransformNode(id=node_id, input=value, needs=needs, **changes)


def body(*nodes: Node, **changes: Any) -> Block:
    return Block(name="body", nodes=nodes, **changes)


def mapped(over: str, *nodes: Node, **changes: Any) -> Node:
    return MapNode(id="m", over=over, body=body(*nodes), **changes)


def looped(*nodes: Node, **changes: Any) -> Node:
    return LoopNode(id="l", body=body(*nodes), **changes)


def side_by_side(**changes: Any) -> Node:
    blocks = tuple(Block(name=name, nodes=(tool_node(name, retry=NEVER),)) for name in "abc")
    return ParallelNode(id="p", blocks=blocks, **changes)


def signal(driver: Driver, signal_id: str, **said: Any) -> None:
    fact = SignalReceived(**{"occurred_at": at(2), "name": "go", **said})
    driver.give(subjects.signal(PREFIX, signal_id), fact)


def answer(driver: Driver, kind: Any, record_id: str, payload: dict[str, Any]) -> None:
    request = driver.state.node_records[record_id].node_record.request
    assert request is not None
    signal_id = answer_signal_id(kind, record_id, request.digest)
    signal(driver, signal_id, name=kind, kind=kind, target=record_id, payload=payload)


def code_of(driver: Driver) -> str:
    error = driver.end.error
    assert error is not None
    return error.code


# -- transforms and conditions -------------------------------------------------------------------


def test_transform_chain_is_decided_at_once() -> None:
    plan = make_plan(
        transform("a", "{{ input.city }}"), transform("b", '{{ steps.a.output + "!" }}', "a")
    )

    driver = Driver(plan).start()

    assert driver.end.output == "Ulm!"
    assert driver.state.decisions == 1


def test_condition_that_does_not_hold_skips_the_node_alone() -> None:
    plan = make_plan(
        transform("a", 1, when='input.city == "Bonn"'),
        transform("b", {"of_a": "{{ steps.a.status }}", "out": "{{ steps.a.output }}"}, "a"),
    )

    assert Driver(plan).start().end.output == {"of_a": "skipped", "out": None}


def test_condition_with_a_type_error_fails_the_run() -> None:
    driver = Driver(make_plan(transform("a", 1, when="input.city > 3"))).start()

    assert driver.end.status is RunStatus.FAILED
    assert code_of(driver) == "expression_failed"


def test_failure_that_is_continued_after_leaves_its_fallback() -> None:
    plan = make_plan(
        tool_node("a", retry=NEVER, on_error="continue", fallback={"n": 0}),
        transform("b", "{{ steps.a.output.n }} {{ steps.a.error.code }}", "a"),
    )

    driver = Driver(plan).start().result("a", error=rejected())

    assert driver.end.output == "0 bad_arguments"


def test_end_ends_the_run_whatever_is_under_way() -> None:
    plan = make_plan(
        tool_node("slow"),
        tool_node("quick"),
        EndNode(id="stop", needs=("quick",), output={"early": True}),
        tool_node("never", "stop", "slow"),
    )

    driver = Driver(plan).start().result("quick", 1)

    assert driver.end.status is RunStatus.DONE
    assert driver.end.output == {"early": True}


def test_end_may_fail_the_run() -> None:
    plan = make_plan(EndNode(id="e", status="failed", message="no {{ 1+1 }}"))

    driver = Driver(plan).start()

    assert driver.end.status is RunStatus.FAILED
    assert driver.end.error is not None
    assert driver.end.error.message == "no 2"


# -- branches ------------------------------------------------------------------------------------


def branching(*conditions: Any) -> Node:
    blocks = tuple(
        Block(name=f"c{index}", nodes=(tool_node(f"c{index}"),)) for index in range(len(conditions))
    )
    return BranchNode(id="br", conditions=conditions, blocks=blocks)


@pytest.mark.parametrize(
    ("city", "taken"), [("Ulm", "c0"), ("Bonn", "c1"), ("Rome", "c2")], ids=str
)
def test_branch_takes_the_first_case_that_holds(city: str, taken: str) -> None:
    second = {"path": "$.input.city", "op": "in", "value": ["Bonn", "Ulm"]}
    driver = Driver(
        make_plan(branching('input.city == "Ulm"', second, None)), input={"city": city}
    ).start()

    assert driver.scheduled == [f"{taken}.1"]
    assert driver.state.node_records["br"].node_record.choice == taken[1:]
    assert driver.result(taken, 7).end.output == 7


def test_branch_without_a_case_that_holds_is_done() -> None:
    assert Driver(make_plan(branching("false"))).start().end.output is None


def test_branch_whose_block_fails_fails() -> None:
    plan = make_plan(
        BranchNode(id="br", conditions=(None,), blocks=(body(tool_node("x", retry=NEVER)),))
    )

    assert code_of(Driver(plan).start().result("x", error=rejected())) == "bad_arguments"


# -- parallel ------------------------------------------------------------------------------------


def test_parallel_waits_for_all_and_names_its_outputs() -> None:
    driver = Driver(make_plan(side_by_side())).start()
    assert driver.scheduled == ["a.1", "b.1", "c.1"]

    driver.result("c", 3).result("a", 1).result("b", 2)

    assert driver.end.output == {"a": 1, "b": 2, "c": 3}


def test_parallel_any_takes_the_first_and_stops_the_others() -> None:
    plan = make_plan(side_by_side(wait=1), transform("z", "{{ steps.p.output }}", "p"))

    driver = Driver(plan).start().result("b", 2)

    assert driver.end.output == {"b": 2}


def test_parallel_two_of_three_bears_one_failure() -> None:
    driver = Driver(make_plan(side_by_side(wait=2))).start()

    driver.result("a", error=rejected()).result("b", 2).result("c", 3)

    assert driver.end.output == {"b": 2, "c": 3}


def test_parallel_two_of_three_fails_with_the_second_failure() -> None:
    driver = Driver(make_plan(side_by_side(wait=2))).start()

    driver.result("a", error=rejected()).result("b", error=rejected())

    assert code_of(driver) == "bad_arguments"


def test_parallel_fails_fast() -> None:
    driver = Driver(make_plan(side_by_side())).start().result("a", error=rejected())

    assert driver.end.status is RunStatus.FAILED


def test_parallel_collects_failures() -> None:
    driver = Driver(make_plan(side_by_side(collect=True))).start()

    driver.result("a", error=rejected()).result("b", 2).result("c", 3)

    output: Any = driver.end.output
    assert [output[name]["status"] for name in "abc"] == ["failed", "succeeded", "succeeded"]
    assert output["a"]["error"]["code"] == "bad_arguments"


def test_step_of_a_block_that_has_failed_is_not_tried_again_by_whoever_reads_the_log() -> None:
    fragile = Block(name="a", nodes=(tool_node("x"), tool_node("y", retry=NEVER)))
    sturdy = Block(name="b", nodes=(tool_node("z"),))
    sides = ParallelNode(id="p", blocks=(fragile, sturdy), collect=True)
    driver = Driver(make_plan(sides)).start()
    for step_id, error in (("x", transient()), ("y", rejected())):
        fact = make_result(error=error, now=at(1))
        driver.log.append(subjects.result(PREFIX, step_id, 1), fact)

    driver.engine.forget()
    driver.wake(1)
    driver.engine.forget()
    driver.wake(5)

    assert driver.scheduled == ["x.1", "y.1", "z.1"]
    assert not driver.state.waiting_steps


# -- maps ----------------------------------------------------------------------------------------


def test_map_keeps_the_order_of_its_list() -> None:
    work = tool_node("w", input={"v": "{{ item }}", "i": "{{ index }}"})
    driver = Driver(make_plan(mapped('["a","b"]', work))).start()
    assert driver.fact("w-x1").input == {"v": "b", "i": 1}

    driver.result("w-x1", "B").result("w-x0", "A")

    assert driver.end.output == ["A", "B"]


def test_map_runs_no_more_items_at_a_time_than_it_may() -> None:
    driver = Driver(make_plan(mapped("[1,2,3]", tool_node("w"), concurrency=2))).start()
    assert driver.scheduled == ["w-x0.1", "w-x1.1"]

    driver.result("w-x1", 1)

    assert driver.scheduled[2:] == ["w-x2.1"]


def test_map_over_nothing_is_done() -> None:
    assert Driver(make_plan(mapped("[]", tool_node("w")))).start().end.output == []


def test_map_over_no_list_fails() -> None:
    assert code_of(Driver(make_plan(mapped("1", tool_node("w")))).start()) == "map_not_a_list"


def test_map_over_too_many_items_fails() -> None:
    plan = make_plan(mapped("[1,2,3]", tool_node("w")))
    driver = Driver(plan, limits=RunLimits(max_fan_out=2)).start()

    assert code_of(driver) == "too_many_items"


def test_map_schedules_many_items_in_several_decisions() -> None:
    plan = make_plan(mapped("input", tool_node("w")))

    driver = Driver(plan, input=list(range(600))).start()

    assert len(driver.scheduled) == 600
    assert driver.state.decisions == 3


def test_map_of_maps_sees_both_items() -> None:
    inner = MapNode(
        id="inner", over="row", variable="cell", body=body(transform("t", "{{ cell * size(row) }}"))
    )
    outer = MapNode(id="m", over="[[1,2],[3]]", variable="row", body=body(inner))

    assert Driver(make_plan(outer)).start().end.output == [[2, 4], [3]]


def test_map_that_fails_fast_stops_its_other_items() -> None:
    plan = make_plan(
        mapped("[1,2]", tool_node("w", retry=NEVER)), tool_node("other"), finally_=(tool_node("f"),)
    )
    driver = Driver(plan).start()

    driver.result("w-x0", error=rejected())

    assert driver.state.steps["w-x1"].status == "stopped"
    assert driver.state.steps["other"].status == "stopped"
    assert code_of(driver.result("f", 1)) == "bad_arguments"


def test_item_that_fails_stops_what_else_it_does_and_the_map_goes_on() -> None:
    plan = make_plan(
        mapped("[1,2]", tool_node("w", retry=NEVER), tool_node("v"), concurrency=1, collect=True)
    )
    driver = Driver(plan).start()

    driver.result("w-x0", error=rejected())

    assert driver.state.steps["v-x0"].status == "stopped"
    assert driver.scheduled[2:] == ["w-x1.1", "v-x1.1"]


# -- loops ---------------------------------------------------------------------------------------


def test_loop_runs_until_its_condition_holds() -> None:
    step = tool_node("w", input={"n": "{{ iteration }}", "was": "{{ previous }}"})
    driver = Driver(make_plan(looped(step, until="steps.w.output >= 2"))).start()

    driver.result("w-x0", 1)
    assert driver.fact("w-x1").input == {"n": 1, "was": 1}
    driver.result("w-x1", 2)

    assert driver.end.output == 2
    assert driver.state.node_records["l"].node_record.count == 2


def test_loop_while_is_checked_before_the_first_iteration() -> None:
    driver = Driver(make_plan(looped(tool_node("w"), while_="iteration < 0"))).start()

    assert driver.end.output is None


@pytest.mark.parametrize(("on_limit", "status"), [("fail", "failed"), ("stop", "done")])
def test_loop_ends_at_its_bound(on_limit: str, status: str) -> None:
    step = transform("t", "{{ iteration }}")
    plan = make_plan(looped(step, until="false", max_iterations=5, on_limit=on_limit))

    driver = Driver(plan).start()

    assert driver.end.status.value == status
    assert driver.state.node_records["l"].node_record.count == 5


def test_loop_of_many_iterations_is_decided_in_pieces() -> None:
    step = transform("t", "{{ iteration }}")
    plan = make_plan(looped(step, until="iteration == 999", max_iterations=1000))

    driver = Driver(plan).start()

    assert driver.end.output == 999
    assert driver.state.decisions == 2


# -- waits and signals ---------------------------------------------------------------------------


def waiting(**spec: Any) -> Node:
    return WaitNode(id="w", **spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"seconds": 10},
        {"seconds": "10s"},
        {"seconds": "{{ 5 + 5 }}"},
        {"seconds": "{{ 'PT10S' }}"},
        {"seconds": "{{ '10' }}"},
    ],
)
def test_wait_ends_when_its_time_has_come(spec: dict[str, Any]) -> None:
    driver = Driver(make_plan(waiting(**spec))).start()
    assert driver.state.status is RunStatus.WAITING
    assert driver.waits[0].due_at == at(10)

    driver.wake(9)
    assert driver.state.ended is None

    assert driver.wake(10).end.status is RunStatus.DONE


def test_wait_until_a_time_of_the_input() -> None:
    driver = Driver(make_plan(waiting(until="{{ input }}")), input="2026-01-01T00:01:00Z").start()

    assert driver.waits[0].due_at == at(60)


def test_wait_for_nonsense_fails() -> None:
    assert code_of(Driver(make_plan(waiting(seconds="soon"))).start()) == "invalid_duration"


def test_signal_that_matches_ends_a_wait() -> None:
    driver = Driver(make_plan(waiting(signal="go", match="signal.payload.n > 1"))).start()

    signal(driver, "s1", payload={"n": 1})
    assert driver.state.ended is None
    signal(driver, "s2", payload={"n": 2})

    assert driver.end.output == {"name": "go", "payload": {"n": 2}}


def test_signals_that_came_before_the_wait_are_taken_in_their_order() -> None:
    plan = make_plan(
        tool_node("t"),
        WaitNode(id="w1", needs=("t",), signal="go"),
        WaitNode(id="w2", needs=("w1",), signal="go"),
        transform("o", ["{{ steps.w1.output.payload }}", "{{ steps.w2.output.payload }}"], "w2"),
    )
    driver = Driver(plan).start()
    signal(driver, "zz", payload=1)
    signal(driver, "aa", payload=2)

    driver.result("t", 0)

    assert driver.end.output == [1, 2]


@pytest.mark.parametrize(("on_timeout", "status"), [("fail", "failed"), ("continue", "done")])
def test_signal_that_does_not_come_in_time(on_timeout: str, status: str) -> None:
    spec = {"signal": "go", "timeout_seconds": 5.0, "on_timeout": on_timeout}
    driver = Driver(make_plan(waiting(**spec))).start().wake(5)

    assert driver.end.status.value == status


def test_paused_run_schedules_nothing_until_it_is_resumed() -> None:
    driver = Driver(make_plan(tool_node("a"), tool_node("b", "a"))).start()
    signal(driver, "p", kind="pause", name="pause")

    driver.result("a", 1)
    assert driver.state.status is RunStatus.PAUSED
    assert driver.scheduled == ["a.1"]
    signal(driver, "r", kind="resume", name="resume")

    assert driver.scheduled == ["a.1", "b.1"]


def test_run_that_queues_for_its_turn_decides_nothing_before_it() -> None:
    driver = Driver(make_plan(tool_node("a"), concurrency=ConcurrencySpec())).start()
    assert driver.scheduled == []

    signal(driver, "t", kind="admitted", name="admitted")

    assert driver.scheduled == ["a.1"]


# -- approvals -----------------------------------------------------------------------------------


def guarded(**changes: Any) -> Driver:
    tool = make_tool("add", policy="require_approval")
    return Driver(make_plan(tool_node("a", input={"n": 1}), tools=[tool], **changes)).start()


def test_call_that_needs_approval_is_parked_with_its_exact_arguments() -> None:
    driver = guarded()

    request = driver.state.node_records["a-a"].node_record.request
    assert request is not None
    assert (request.name, request.arguments, len(request.digest)) == ("add", {"n": 1}, 64)
    assert driver.scheduled == []
    assert driver.state.status is RunStatus.WAITING


def test_message_of_an_approval_is_rendered_over_the_call_and_the_run() -> None:
    asked = ApprovalPolicy(message="Add {{ arguments.n }} in {{ input.city }}?")
    tool = make_tool("add", policy="require_approval", approval=asked)
    driver = Driver(make_plan(agent_node("g"), tools=[tool])).start()

    driver.result("g-1", uses(("add", {"n": 1})))

    request = driver.state.node_records["g-1-0-a"].node_record.request
    assert request is not None
    assert request.message == "Add 1 in Ulm?"


def test_call_whose_approval_cannot_be_worded_is_refused() -> None:
    asked = ApprovalPolicy(message="Add {{ arguments.absent }}?")
    tool = make_tool("add", policy="require_approval", approval=asked)
    step = Driver(make_plan(tool_node("a", input={"n": 1}), tools=[tool])).start()
    agent = Driver(make_plan(agent_node("g"), tools=[tool])).start()
    agent.result("g-1", uses(("add", {"n": 1})))

    assert code_of(step) == "template_unresolved"
    assert agent.scheduled == ["g-1.1", "g-2.1"]
    shown: Any = agent.fact("g-2").input
    assert "template_unresolved" in shown["messages"][-1]["content"]


def test_approved_call_goes_ahead() -> None:
    driver = guarded()

    answer(driver, "approval", "a-a", {"decision": "approve", "by": "eva"})

    assert driver.scheduled == ["a.1"]
    assert driver.result("a", 2).end.output == 2


def test_rejected_call_fails_its_node() -> None:
    driver = guarded()

    answer(driver, "approval", "a-a", {"decision": "reject", "reason": "too dear"})

    assert code_of(driver) == "approval_rejected"
    assert driver.scheduled == []


def test_approval_that_nobody_gives_expires() -> None:
    assert code_of(guarded(timeout_seconds=6000.0).wake(600)) == "approval_expired"


def test_agent_is_told_of_a_rejected_call_and_goes_on() -> None:
    tool = make_tool("add", policy="require_approval")
    driver = Driver(make_plan(agent_node("g"), tools=[tool])).start()
    driver.result("g-1", uses(("add", {"n": 1})))
    assert "g-1-0.1" not in driver.scheduled

    answer(driver, "approval", "g-1-0-a", {"decision": "reject", "reason": "no"})

    told: Any = driver.fact("g-2").input
    assert "approval_rejected" in told["messages"][-1]["content"]


def test_approval_step_gives_who_agreed() -> None:
    step = ApprovalNode(id="ok", message="{{ input.city }}?")
    driver = Driver(make_plan(step)).start()
    request = driver.state.node_records["ok"].node_record.request
    assert request is not None
    assert request.message == "Ulm?"

    answer(driver, "approval", "ok", {"decision": "approve", "by": "eva"})

    output: Any = driver.end.output
    assert (output["approved"], output["by"]) == (True, "eva")


def test_approval_step_that_is_rejected_may_be_continued_after() -> None:
    step = ApprovalNode(id="ok", on_reject="continue")
    driver = Driver(make_plan(step)).start()

    answer(driver, "approval", "ok", {"decision": "reject"})

    output: Any = driver.end.output
    assert output["approved"] is False


# -- tools of the caller, lost attempts ----------------------------------------------------------


def test_client_tool_waits_for_the_callers_result() -> None:
    tool = make_tool("add", client=True)
    driver = Driver(make_plan(agent_node("g"), tools=[tool])).start()
    driver.result("g-1", uses(("add", {"n": 1})))
    assert driver.state.node_records["g-1-0"].node_record.kind == "client_tool"

    answer(driver, "tool_result", "g-1-0", {"status": "succeeded", "output": {"sum": 3}})

    told: Any = driver.fact("g-2").input
    assert told["messages"][-1]["content"] == '{"sum": 3}'


def lost(driver: Driver, step_id: str, attempt: int = 1) -> None:
    fact = structs.replace(make_result(error=transient(), now=at(1)), status="unknown")
    driver.give(subjects.result(PREFIX, step_id, attempt), fact)


@pytest.mark.parametrize(
    ("action", "scheduled", "ended"),
    [("retry", ["a.1", "a.2"], None), ("succeed", ["a.1"], "done"), ("fail", ["a.1"], "failed")],
)
def test_lost_attempt_needs_a_decision(
    action: str, scheduled: list[str], ended: str | None
) -> None:
    driver = Driver(make_plan(tool_node("a"), tools=[make_tool("add", at_most_once=True)])).start()
    lost(driver, "a")
    assert driver.scheduled == ["a.1"]

    answer(driver, "resolution", "a-r", {"action": action, "output": 5})

    assert driver.scheduled == scheduled
    assert (driver.state.ended.status.value if driver.state.ended else None) == ended


# -- child runs ----------------------------------------------------------------------------------


def child(**changes: Any) -> Node:
    spec = ChildSpec(name="sub", kind=DefinitionKind.WORKFLOW, version=3, plan_digest="d" * 64)
    return WorkflowNode(id="c", child=spec, input={"of": "{{ input.city }}"}, **changes)


def test_child_run_is_a_step_of_the_engine() -> None:
    driver = Driver(make_plan(child())).start()

    fact = driver.fact("c")
    config: Any = fact.config
    assert driver.step("c").subject.kind == "run"
    assert fact.input == {"of": "Ulm"}
    assert (config["plan_digest"], config["depth"]) == ("d" * 64, 1)
    assert driver.result("c", {"x": 1}).end.output == {"x": 1}


def test_child_that_fails_fails_its_step() -> None:
    driver = Driver(make_plan(child())).start().result("c", error=transient())

    assert code_of(driver) == "busy"


def test_child_too_deep_is_refused() -> None:
    driver = Driver(make_plan(child()), limits=RunLimits(max_depth=0)).start()

    assert code_of(driver) == "too_deep"


def test_child_with_a_wrong_input_fails_at_once() -> None:
    schema: dict[str, Any] = {"type": "object", "required": ["of"]}
    parent = ParentRef(run_id="P", shard=0, step_id="c", attempt=1, root_run_id="P", depth=1)
    driver = Driver(make_plan(tool_node("a"), input_schema=schema), parent=parent, input={}).start()

    assert code_of(driver) == "invalid_input"
    assert driver.scheduled == []


# -- phases --------------------------------------------------------------------------------------


def test_failure_is_compensated_in_reverse_then_handled_then_finished() -> None:
    undo_a = tool_node("undo_a", input={"v": "{{ steps.a.output }}"})
    plan = make_plan(
        tool_node("a", compensate=undo_a),
        tool_node("b", "a", compensate=tool_node("undo_b")),
        tool_node("c", "b", retry=NEVER),
        on_error=(tool_node("told", input={"why": "{{ error.code }}"}),),
        finally_=(tool_node("last"),),
    )
    driver = Driver(plan).start().result("a", 1).result("b", 2).result("c", error=rejected())

    driver.result("undo_b", 0)
    assert driver.fact("undo_a").input == {"v": 1}
    driver.result("undo_a", error=rejected())
    assert driver.fact("told").input == {"why": "bad_arguments"}
    driver.result("told", 0).result("last", 0)

    order = ["a.1", "b.1", "c.1", "undo_b.1", "undo_a.1", "told.1", "last.1"]
    assert driver.scheduled == order
    assert code_of(driver) == "bad_arguments"


def test_output_that_cannot_be_made_fails_the_run_as_a_step_would() -> None:
    plan = make_plan(
        tool_node("a", compensate=tool_node("undo_a")),
        output="{{ input.nowhere }}",
        on_error=(tool_node("told", input={"why": "{{ error.code }}"}),),
        finally_=(tool_node("last"),),
    )
    driver = Driver(plan).start().result("a", 1).result("undo_a", 0)

    assert driver.fact("told").input == {"why": "template_unresolved"}
    assert code_of(driver.result("told", 0).result("last", 0)) == "template_unresolved"


def test_on_error_recovers_the_run_by_an_end() -> None:
    plan = make_plan(
        tool_node("a", retry=NEVER),
        on_error=(EndNode(id="e", output="{{ error.code }} borne"),),
    )

    driver = Driver(plan).start().result("a", error=rejected())

    assert driver.end.status is RunStatus.DONE
    assert driver.end.output == "bad_arguments borne"


def test_finally_runs_after_success_too_and_may_fail_the_run() -> None:
    plan = make_plan(tool_node("a"), finally_=(tool_node("f", retry=NEVER),))

    driver = Driver(plan).start().result("a", 1).result("f", error=rejected())

    assert code_of(driver) == "bad_arguments"


# -- budgets -------------------------------------------------------------------------------------


def spent(tokens: int) -> Usage:
    return Usage(output_tokens=tokens, model_calls=1)


def test_budget_of_steps_ends_the_run() -> None:
    plan = make_plan(tool_node("a"), tool_node("b", "a"), tool_node("c", "b"))
    driver = Driver(plan, limits=RunLimits(max_steps=2)).start().result("a", 1).result("b", 1)

    assert code_of(driver) == "budget_exhausted"
    assert driver.end.error is not None
    assert driver.end.error.details[0].message == "spent 2"


def test_budget_of_nothing_says_so() -> None:
    driver = Driver(make_plan(agent_node("g")), limits=RunLimits(max_cost_usd=0)).start()

    assert driver.end.error is not None
    assert driver.end.error.message.endswith(": 0.0 of 0.0 (max_cost_usd)")


def test_budget_of_tokens_limits_the_answer_and_then_ends_the_run() -> None:
    plan = make_plan(agent_node("g"))
    driver = Driver(plan, limits=RunLimits(max_tokens=500)).start()
    config: Any = driver.fact("g-1").config
    reserve = driver.fact("g-1").reserve
    assert reserve is not None
    assert reserve.tokens <= 500
    assert config["parameters"]["max_tokens"] < 500

    driver.result("g-1", uses(("add", {})), usage=spent(495)).result("g-1-0", 1)

    assert code_of(driver) == "budget_exhausted"


def test_budget_reserved_by_one_turn_makes_the_other_wait() -> None:
    agents = [make_agent(parameters={"max_tokens": 300})]
    plan = make_plan(agent_node("g"), agent_node("h"), agents=agents, tools=[])
    driver = Driver(plan, limits=RunLimits(max_tokens=400)).start()
    first: Any = driver.fact("g-1").config
    assert first["parameters"]["max_tokens"] == 300

    if "h-1.1" in driver.scheduled:
        second: Any = driver.fact("h-1").config
        assert second["parameters"]["max_tokens"] < 100
    driver.result("g-1", responds(), usage=spent(20))

    assert "h-1.1" in driver.scheduled
    assert driver.state.reserved.tokens <= 380


def test_child_reserves_a_share_of_the_budget() -> None:
    driver = Driver(make_plan(child()), limits=RunLimits(max_tokens=1000)).start()

    assert driver.fact("c").reserve == Reservation(tokens=1000)
    driver.result("c", 1, usage=Usage(input_tokens=10, steps=4))

    assert driver.state.usage.steps == 4
    assert driver.state.reserved == Reservation()


# -- networks ------------------------------------------------------------------------------------


def routed(agent: str, message: str = "") -> dict[str, Any]:
    return {"action": "route_to_agent", "agent": agent, "message": message}


def network(**worker: Any) -> Driver:
    agents = [
        make_agent("boss", routes=("worker",), max_turns=6),
        make_agent("worker", **worker),
    ]
    plan = make_plan(agent_node("n", ref="boss"), agents=agents, tools=[])
    return Driver(plan).start()


def test_route_hands_the_conversation_over() -> None:
    driver = network().result("n-1", routed("worker", "count"))

    fact = driver.fact("n-2")
    told: Any = fact.input
    assert fact.name == "worker"
    assert told["messages"][-1]["content"] == "[boss] count"
    assert driver.result("n-2", responds("three")).end.output == {"text": "three"}


def test_answer_for_the_caller_returns_to_it() -> None:
    driver = network(responds_to="caller").result("n-1", routed("worker", "count"))

    driver.result("n-2", responds("three"))

    fact = driver.fact("n-3")
    told: Any = fact.input
    assert fact.name == "boss"
    assert told["messages"][-1]["content"] == "[worker] three"
    assert driver.result("n-3", responds("it is three")).end.output == {"text": "it is three"}


def test_route_that_does_not_exist_is_blocked_logged_and_told() -> None:
    driver = network().result("n-1", routed("stranger"))

    fact = driver.fact("n-2")
    told: Any = fact.input
    assert fact.name == "boss"
    assert "may not route to 'stranger'" in told["messages"][-1]["content"]
    assert fact.decision is not None
    assert fact.decision.blocked[0].tool == "route_to_agent:stranger"


# -- seeds ---------------------------------------------------------------------------------------


def test_seeded_run_goes_on_from_what_is_recorded() -> None:
    taken = SeededStep(
        step_id="a",
        kind=StepKind.TOOL,
        queue="builtin",
        attempt=1,
        node_id="a",
        name="add",
        output=41,
        started_at=START,
        ended_at=START,
    )
    plan = make_plan(tool_node("a"), tool_node("b", "a", input={"n": "{{ steps.a.output + 1 }}"}))

    driver = Driver(plan, seed=Seed(steps=(taken,))).start()

    assert driver.scheduled == ["b.1"]
    assert driver.fact("b").input == {"n": 42}
    assert driver.state.attempts == 1
