"""States: the fold of facts, whatever comes twice, and in whichever order it is known."""

from __future__ import annotations

import random
from typing import Any

import pytest

from penstock.contracts import subjects
from penstock.contracts.facts import (
    CancelRequested,
    Decision,
    SignalReceived,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    Wait,
)
from penstock.contracts.usage import Usage
from penstock.runs.endings import at_end
from penstock.runs.state import Entry, RunState, Signal, evolve, fold, new_state
from penstock.runs.views import run_view
from tests.support.simulation import (
    PREFIX,
    RUN_ID,
    Driver,
    Engine,
    Log,
    agent_node,
    at,
    make_agent,
    make_invoked,
    make_plan,
    make_result,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)

NEW = new_state("acme", 3, RUN_ID)
PLAN = make_plan(
    tool_node("a"),
    agent_node("b"),
    tool_node("c"),
    tool_node("d", "a", "b"),
    agents=[make_agent(tools=("add",), max_turns=2)],
)


def tangled_log(seed: int) -> Log:
    """Return the log of a run whose inputs came while the engine was busy with earlier ones."""
    dice = random.Random(seed)
    log = Log()
    engine = Engine(PLAN, log)
    log.append(subjects.invoke(PREFIX), make_invoked(PLAN))
    handled = 0
    now = 0.0
    for _ in range(200):
        now += 1
        for message in log.steps:
            found = message.entry.subject
            target = subjects.result(PREFIX, found.step_id, found.attempt)
            if log.get(target) is None and dice.random() < 0.3:
                log.append(target, an_outcome(dice, StepKind(found.kind), now))
        if dice.random() < 0.01 and log.get(subjects.cancel(PREFIX)) is None:
            log.append(subjects.cancel(PREFIX), CancelRequested(occurred_at=at(now)))
        inputs = log.inputs
        if handled < len(inputs):
            for _ in engine.handle(inputs[handled]):
                pass
            handled += 1
        elif dice.random() < 0.5:
            for _ in engine.wake(at(now), reload=False):
                pass
        if log.ends and handled == len(log.inputs):
            break
    return log


def an_outcome(dice: random.Random, kind: StepKind, now: float) -> StepResult:
    error = dice.choice([None, None, None, transient(), rejected() if kind == "tool" else None])
    output: Any = 1
    if kind is StepKind.AGENT:
        output = dice.choice([responds(), uses(("add", {}), ("rm", {}), ("add", {}))])
    usage = Usage(input_tokens=dice.randint(1, 9), model_calls=1) if dice.random() < 0.5 else None
    return make_result(output, kind=kind, now=at(now), error=error, usage=usage)


SEEDS = pytest.mark.parametrize("seed", range(40))


@SEEDS
def test_fold_of_facts_twice_is_the_fold_of_them_once(seed: int) -> None:
    entries = tangled_log(seed).entries
    state = NEW
    for entry in entries:
        state = evolve(state, entry)
        assert evolve(state, entry) == state

    assert fold(state, entries) == state
    assert fold(state, entries[len(entries) // 2 :]) == state


def independent(first: Entry, second: Entry) -> bool:
    """Tell whether neither of two facts can have known of the other."""
    decision = getattr(second.fact, "decision", None)
    if decision is not None and decision.cause_seq >= first.seq:
        return False
    if first.subject.decision and first.subject.decision == second.subject.decision:
        return decision is None and getattr(first.fact, "decision", None) is None
    if {first.subject.event, second.subject.event} == {"step", "result"}:
        return first.subject.step_id != second.subject.step_id
    # An input and a decision, or two inputs; decisions come in the order of their numbers.
    return not (first.subject.decision and second.subject.decision)


@SEEDS
def test_fold_commutes_where_facts_did_not_know_of_each_other(seed: int) -> None:
    entries = tangled_log(seed).entries
    state = fold(NEW, entries)
    swapped = 0
    for index in range(len(entries) - 1):
        first, second = entries[index : index + 2]
        if independent(first, second):
            swapped += 1
            order = [*entries[:index], second, first, *entries[index + 2 :]]
            assert fold(NEW, order) == state, (first.subject, second.subject)

    assert swapped


@SEEDS
def test_what_follows_the_end_shows_in_no_view(seed: int) -> None:
    entries = tangled_log(seed).entries
    end = next(i for i, entry in enumerate(entries, 1) if entry.subject.event == "end")
    state = fold(NEW, entries)

    assert run_view(state) == run_view(fold(NEW, entries[:end]))
    assert at_end(at_end(state)) == at_end(state)


@SEEDS
def test_fold_counts_open_steps(seed: int) -> None:
    state = NEW
    for entry in tangled_log(seed).entries:
        state = evolve(state, entry)
        assert state.open_steps == sum(step.open for step in state.steps.values())


@SEEDS
def test_fold_adds_up_the_usage_of_every_attempt_once(seed: int) -> None:
    entries = tangled_log(seed).entries
    total = Usage()
    for entry in entries:
        if isinstance(entry.fact, StepResult) and entry.fact.usage is not None:
            total = total.plus(entry.fact.usage)

    assert fold(fold(NEW, entries), entries).usage == total


# -- single facts --------------------------------------------------------------------------------


def scheduled(
    seq: int,
    step_id: str = "a",
    attempt: int = 1,
    number: int = 1,
    manifest: tuple[str, ...] | None = (),
) -> Entry:
    suffix = subjects.step_suffix("tool", "q", step_id, attempt)
    fact = StepScheduled(
        occurred_at=at(seq),
        decision=None if manifest is None else Decision(cause_seq=1, manifest=manifest),
        node_id=step_id,
        name="add",
        expires_at=at(seq + 60),
    )
    return Entry(seq, subjects.parse_fact(subjects.out(PREFIX, number, suffix)), fact)


def resulted(seq: int, step_id: str = "a", attempt: int = 1, **changes: Any) -> Entry:
    fact = make_result(**{"now": at(seq), **changes})
    return Entry(seq, subjects.parse_fact(subjects.result(PREFIX, step_id, attempt)), fact)


def waiting(seq: int, step_id: str = "a", attempt: int = 2, number: int = 2) -> Entry:
    wait = Wait(timer_id="t", step_id=step_id, next_attempt=attempt, due_at=at(seq + 5))
    fact = StateChanged(occurred_at=at(seq), decision=Decision(cause_seq=seq - 1, waits=(wait,)))
    return Entry(seq, subjects.parse_fact(subjects.out(PREFIX, number, "state")), fact)


def status(state: RunState, step_id: str = "a") -> tuple[str, int]:
    step = state.steps[step_id]
    return step.status, step.attempt


def test_evolve_of_a_schedule_plans_what_its_manifest_promises() -> None:
    state = evolve(NEW, scheduled(2, "a", manifest=("step.agent.default.b-1.1",)))

    assert status(state, "a") == ("scheduled", 1)
    assert status(state, "b-1") == ("planned", 1)
    assert state.steps["b-1"].kind is StepKind.AGENT
    assert state.steps["b-1"].decided_at == at(2)
    assert (state.decisions, state.open_steps) == (1, 2)


def test_evolve_of_a_promised_message_schedules_it() -> None:
    state = evolve(NEW, scheduled(2, "a", manifest=("step.tool.q.b.1",)))

    state = evolve(state, scheduled(3, "b", manifest=None))

    assert status(state, "b") == ("scheduled", 1)
    assert state.steps["b"].expires_at == at(63)
    assert state.open_steps == 2


def test_evolve_of_an_outcome_before_its_schedule_gives_the_same_step() -> None:
    first = scheduled(2, "a", manifest=("step.tool.q.b.1",))
    second, outcome = scheduled(3, "b", manifest=None), resulted(4, "b", output=7)

    early = fold(NEW, [first, outcome, second])

    assert early == fold(NEW, [first, second, outcome])
    assert status(early, "b") == ("succeeded", 1)
    assert early.steps["b"].name == "add"


def test_evolve_through_failure_wait_and_next_attempt() -> None:
    state = fold(NEW, [scheduled(2), resulted(3, error=transient())])
    assert (status(state), state.open_steps) == (("failed", 1), 0)

    state = evolve(state, waiting(4))
    assert (status(state), state.open_steps) == (("waiting", 1), 1)
    assert state.steps["a"].error is not None

    state = evolve(state, scheduled(5, attempt=2, number=3))
    assert (status(state), state.open_steps) == (("scheduled", 2), 1)
    assert state.steps["a"].error is None


def test_evolve_of_a_stale_attempts_outcome_changes_no_step_but_costs() -> None:
    state = fold(NEW, [scheduled(2), waiting(4), scheduled(5, attempt=2, number=3)])

    late = evolve(state, resulted(6, output=1, usage=Usage(input_tokens=3)))

    assert late.steps == state.steps
    assert late.usage.input_tokens == 3


def test_evolve_of_a_second_outcome_of_an_attempt_changes_no_step() -> None:
    state = fold(NEW, [scheduled(2), resulted(3, output=1)])

    assert evolve(state, resulted(4, output=2)).steps["a"].output == 1


def test_evolve_of_an_outcome_of_an_unknown_step_notes_that_it_was_seen() -> None:
    state = evolve(NEW, resulted(7, "x"))

    assert (state.steps, state.last_seq, state.open_steps) == (NEW.steps, 7, 0)


def test_evolve_of_an_older_fact_keeps_the_highest_sequence() -> None:
    state = fold(NEW, [scheduled(9), resulted(4, "x")])

    assert state.last_seq == 9


def test_evolve_of_a_signal_keeps_it_by_its_id() -> None:
    fact = SignalReceived(occurred_at=at(1), name="approved", payload=True)
    entry = Entry(3, subjects.parse_fact(subjects.signal(PREFIX, "s1")), fact)

    assert evolve(NEW, entry).signals["s1"] == Signal(3, fact)


def test_run_status_goes_from_created_through_running_to_its_end() -> None:
    driver = Driver(make_plan(tool_node("a")))
    seen = [driver.state.status]
    driver.log.append(subjects.invoke(PREFIX), driver.invoked)
    seen.append(driver.state.status)
    for _ in driver.engine.handle(driver.log.inputs[0]):
        pass
    seen.append(driver.state.status)

    driver.result("a", 1)

    assert [*seen, driver.state.status] == ["created", "created", "running", "done"]
    assert driver.state.prefix == PREFIX


def test_updated_at_is_the_latest_time_of_any_fact() -> None:
    driver = Driver(make_plan(tool_node("a"), tool_node("b"))).start()

    driver.result("a", 1, now=50).result("b", 2, now=40)

    assert driver.state.updated_at == at(50)
