"""The work of expressions: decisions are cut, visits and runs are bounded."""

from __future__ import annotations

import pytest

from penstock.contracts import subjects
from penstock.contracts.facts import RunEnded, RunStatus
from penstock.contracts.plan import Block, MapNode, Node, Plan, TransformNode, WaitNode
from penstock.runs.state import Entry, RunState, evolve, new_state
from penstock_orchestrator.core.decide import decide
from penstock_orchestrator.core.progress import Progress
from penstock_orchestrator.core.walk import MOST_WORK
from tests.support.simulation import PREFIX, RUN_ID, SHARD, START, TENANT, make_invoked, make_plan

COSTLY = "lists.range(100).map(a, lists.range(100).map(b, a * b).size()).size()"
"""About 40,000 units."""
ITEMS = 12


def costly_map(output: str | None = None) -> Node:
    item = TransformNode(id="t", input="{{ " + COSTLY + " + item }}")
    body = Block(name="body", nodes=(item,), output=output)
    return MapNode(id="m", over=f"lists.range({ITEMS})", body=body)


def begun(plan: Plan) -> RunState:
    entry = Entry(1, subjects.parse_fact(subjects.invoke(PREFIX)), make_invoked(plan))
    return evolve(new_state(TENANT, SHARD, RUN_ID), entry)


def run_to_end(
    plan: Plan, *, memory: bool, most_work: int | None = None
) -> tuple[list[int], RunState]:
    """Decide until nothing is left; return the number of node records of each decision."""
    state, progress, sizes, seq = begun(plan), Progress(), [], 1
    for _ in range(200):
        given = progress if memory else None
        decided = decide(plan, state, START, 1, given, None, most_work)
        if decided is None:
            if memory and progress.spent >= MOST_WORK and progress.queue:
                sizes.append(0)
                continue
            return sizes, state
        sizes.append(len(decided.node_records))
        for output in decided.outputs:
            seq += 1
            subject = subjects.parse_fact(subjects.out(PREFIX, decided.number, output.suffix))
            state = evolve(state, Entry(seq, subject, output.fact))
    raise AssertionError("the run does not end")


@pytest.mark.parametrize("memory", [True, False])
def test_decision_is_cut_between_items_and_the_next_one_continues(memory: bool) -> None:
    plan = make_plan(costly_map())

    sizes, state = run_to_end(plan, memory=memory)

    assert isinstance(state.ended, RunEnded)
    assert state.ended.output == [100 + item for item in range(ITEMS)]
    assert len(sizes) > 3
    assert max(sizes) <= 4, "no decision computes more than a few items"
    assert state.work >= 3 * MOST_WORK


def test_search_without_a_finding_is_interrupted_where_it_is_remembered() -> None:
    waits = tuple(WaitNode(id=f"w{n}", seconds=5, when=f"{COSTLY} == 100") for n in range(ITEMS))
    sizes, state = run_to_end(make_plan(*waits), memory=True)
    assert state.ended is None
    assert state.open_records == ITEMS
    assert max(sizes) <= 4


def test_results_of_a_map_that_cost_too_much_fail_the_node_and_not_the_engine() -> None:
    hundreds = "lists.range(300).map(a, lists.range(300).map(b, a * b).size()).size()"
    plan = make_plan(costly_map(output="{{ " + hundreds + " }}"))

    _, state = run_to_end(plan, memory=True)

    assert state.ended is not None
    assert state.ended.error is not None
    assert state.ended.error.code == "expression_failed"
    assert "too much work" in state.ended.error.message


def test_run_whose_expressions_cost_too_much_ends_and_names_the_setting() -> None:
    plan = make_plan(costly_map())

    _, state = run_to_end(plan, memory=True, most_work=2 * MOST_WORK)

    assert state.ended is not None
    assert state.ended.status is RunStatus.FAILED
    assert state.ended.error is not None
    assert state.ended.error.code == "work_exhausted"
    assert "PENSTOCK_RUN_MAX_WORK" in state.ended.error.message


def test_work_of_a_run_is_known_to_an_engine_that_reads_its_log() -> None:
    plan = make_plan(costly_map())
    _, state = run_to_end(plan, memory=True)
    worked = state.work
    fresh = begun(plan)
    assert fresh.work == 0
    decided = decide(plan, fresh, START, 1)
    assert decided is not None
    decision = decided.outputs[0].fact.decision
    assert decision is not None
    assert 0 < decision.work <= worked
    entry = Entry(2, subjects.parse_fact(subjects.out(PREFIX, 1, "state")), decided.outputs[0].fact)
    once = evolve(fresh, entry)
    assert evolve(once, entry).work == once.work == decision.work
