"""Workflows in memory: child runs, messages, client tools, cancellation, missing stubs."""

import pytest

from penstock.contracts.errors import RejectedError
from penstock_testing import NO_RESULT, LocalEngine, use_tools

FAMILY = """
apiVersion: penstock/v1
kind: Workflow
metadata: {name: parent}
spec:
  steps:
    - id: each
      map:
        over: "{{ input }}"
        steps:
          - id: half
            workflow: {name: child, input: "{{ item }}"}
        output: "{{ steps.half.output }}"
  output: "{{ steps.each.output }}"
---
apiVersion: penstock/v1
kind: Workflow
metadata: {name: child}
spec:
  steps:
    - id: halve
      tool: halve
      input: {number: "{{ input }}"}
  output: "{{ steps.halve.output }}"
---
apiVersion: penstock/v1
kind: Tool
metadata: {name: halve, description: Half of a number.}
spec:
  runner: {queue: sums}
  parameters: {type: object, properties: {number: {type: number}}, required: [number]}
---
apiVersion: penstock/v1
kind: Tool
metadata: {name: pick, description: The user picks.}
spec:
  client: {}
  parameters: {type: object, properties: {}}
---
apiVersion: penstock/v1
kind: Agent
metadata: {name: asker, description: Asks the user.}
spec: {model: scripted/none, instructions: Ask., tools: [pick]}
"""


def create_engine() -> LocalEngine:
    engine = LocalEngine([FAMILY])
    engine.stub_tool("halve", lambda number: number / 2)
    return engine


def test_child_runs_give_their_outputs_to_the_parent() -> None:
    engine = create_engine()
    run = engine.run("parent", [2, 4])
    assert (run.status, run.output) == ("done", [1.0, 2.0])
    assert sorted(one.view.name for one in engine.runs.values()) == ["child", "child", "parent"]


def test_inputs_are_checked_and_have_their_defaults_also_those_of_child_runs() -> None:
    schema = "spec:\n  input: {properties: {n: {type: number, default: 8}}, type: object}\n"
    text = FAMILY.replace("spec:\n", schema, 2)
    text = text.replace("{{ input }}", "{{ [{}, {'n': input.n}] }}", 1)
    text = text.replace('number: "{{ input }}"', 'number: "{{ input.n }}"')
    engine = LocalEngine([text])
    engine.stub_tool("halve", lambda number: number / 2)
    assert engine.run("parent", {}).output == [4.0, 4.0]
    inputs = [one.state.request.input for one in engine.runs.values()]
    assert inputs == [{"n": 8}] * 3
    with pytest.raises(RejectedError, match=r"input\.n"):
        engine.run("parent", {"n": "x"})


def test_failed_child_run_fails_its_parent() -> None:
    engine = create_engine()
    engine.stub_tool("halve", RejectedError("odd", "only even numbers"))
    run = engine.run("parent", [3])
    assert run.error is not None
    assert (run.status, run.error.code) == ("failed", "odd")
    (step,) = (step for step in run.steps.values() if step.kind == "run")
    assert step.status == "failed"


def test_client_tool_is_answered_from_outside() -> None:
    engine = create_engine()
    engine.stub_agent(
        "asker",
        lambda messages: (
            use_tools(("pick", {})) if messages[-1]["role"] == "user" else messages[-1]["content"]
        ),
    )
    run = engine.run("asker", "red or blue?")
    assert [one.kind for one in run.waiting_for] == ["client_tool"]
    with pytest.raises(LookupError, match="approval"):
        run.approve()
    run.answer_tool("blue")
    assert run.status == "done"
    assert run.output == {"text": "blue"}


def test_cancelled_run_ends_and_so_do_its_children() -> None:
    engine = create_engine()
    engine.stub_tool("halve", NO_RESULT)
    run = engine.start("parent", [2])
    run.cancel("enough")
    assert {one.status for one in engine.runs.values()} == {"cancelled"}


def test_what_is_missing_is_named() -> None:
    engine = create_engine()
    with pytest.raises(LookupError, match="there are: asker, child, parent"):
        engine.start("nephew")
    with pytest.raises(LookupError, match="agent 'asker' has no stub; stubbed: none"):
        engine.start("asker", "hello")
    with pytest.raises(RejectedError, match="invalid_document"):
        LocalEngine([FAMILY.replace("tool: halve", "tool: third")])


def test_bug_in_a_stub_fails_the_test() -> None:
    engine = create_engine()
    engine.stub_tool("halve", lambda number: number / 0)
    with pytest.raises(ZeroDivisionError):
        engine.start("child", 1)


def test_stub_of_a_step_wins_and_time_is_virtual() -> None:
    engine = create_engine()
    engine.stub_step("halve", 7)
    before = engine.now
    run = engine.run("child", 1)
    run.advance(days=1)
    assert (run.output, (engine.now - before).days) == (7, 1)
