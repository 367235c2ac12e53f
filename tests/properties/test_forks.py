"""Forks of whatever the plan language can say: replays spend nothing, forks from anywhere end."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from msgspec import structs

from penstock.contracts import subjects
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import NodeRecord, SignalReceived, StepKind, StepResult
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.plan import Plan
from penstock.contracts.structs import convert
from penstock.runs.forks import FROM_OUTSIDE, seed_of
from tests.simulation.plans import EVENT, FEATURES, PlanMaker
from tests.simulation.users import sketch
from tests.support.simulation import (
    PREFIX,
    Driver,
    at,
    make_result,
    rejected,
    responds,
    transient,
    uses,
)

USED = sorted(set(FEATURES) - {"limits", "correlation", "concurrency", "one_at_a_time", "workflow"})
MOST_ROUNDS = 200
ANSWERS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "approval": ("approval", [{"decision": "approve"}, {"decision": "reject"}]),
    "client_tool": ("tool_result", [{"output": 5}, {"status": "failed"}]),
    "resolution": ("resolution", [{"action": "succeed", "output": 6}, {"action": "fail"}]),
}


class Player:
    """Plays runners and the world outside, by chance, until a run has ended."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0

    def play(self, driver: Driver) -> Driver:
        for _ in range(MOST_ROUNDS):
            if driver.ended is not None:
                return driver
            self._move(driver)
        raise AssertionError(f"the run does not end: {driver.state}")

    def _move(self, driver: Driver) -> None:
        self.now += 1
        state = driver.state
        steps = sorted(state.steps.values(), key=lambda step: step.step_id)
        node_records = [state.node_records[record_id] for record_id in sorted(state.node_records)]
        running = [step for step in steps if step.status == "scheduled"]
        opened = [
            m.node_record
            for m in node_records
            if m.open and m.node_record.kind in ANSWERS and self._unanswered(driver, m.node_record)
        ]
        waiting = [m.node_record for m in node_records if m.open and m.node_record.kind == "wait"]
        if running:
            step = self.random.choice(running)
            subject = subjects.result(PREFIX, step.step_id, step.attempt)
            fact = self._outcome(step.kind, step.name)
            driver.give(subject, structs.replace(fact, name=step.name))
        elif opened:
            self._answer(driver, self.random.choice(opened))
        elif waiting and self.random.random() < 0.5:
            fact_ = SignalReceived(occurred_at=at(self.now), name=EVENT, payload={"n": 5})
            driver.give(subjects.signal(PREFIX, f"e{self.now:.0f}"), fact_)
        else:
            self.now += 20
            driver.wake(self.now)

    def _unanswered(self, driver: Driver, node_record: NodeRecord) -> bool:
        return self._answer_to(node_record) not in driver.state.signals

    def _answer_to(self, node_record: NodeRecord) -> str:
        assert node_record.request is not None
        return answer_signal_id(
            ANSWERS[node_record.kind][0], node_record.record_id, node_record.request.digest
        )

    def _outcome(self, kind: StepKind, name: str) -> StepResult:
        random = self.random
        error = random.choice([None, None, None, None, transient(), rejected()])
        if name == "once" and random.random() < 0.3:
            lost = make_result(now=at(self.now), error=transient())
            return structs.replace(lost, status="unknown")
        output: Any = random.randint(0, 9)
        if kind is StepKind.AGENT:
            output = random.choice(
                [
                    responds(),
                    uses(("add", {}), ("rm", {})),
                    uses(("guarded", {}), ("once", {})),
                    {"action": "route_to_agent", "agent": "editor"},
                ]
            )
        return make_result(None if error else output, kind=kind, now=at(self.now), error=error)

    def _answer(self, driver: Driver, node_record: NodeRecord) -> None:
        kind, answers = ANSWERS[node_record.kind]
        fact = convert(
            SignalReceived,
            {
                "occurred_at": at(self.now),
                "name": kind,
                "kind": kind,
                "target": node_record.record_id,
                "payload": self.random.choice(answers),
            },
        )
        driver.give(subjects.signal(PREFIX, self._answer_to(node_record)), fact)


def source_of(seed: int) -> Driver:
    """Play a run of a plan drawn from the seed to its end."""
    random = Random(seed)
    features = frozenset(each for each in USED if random.random() < 0.4)
    plan = PlanMaker(random, features, Plan.digest).plan("test")
    plan = plan.model_copy(update={"timeout_seconds": 100_000.0})
    note(sketch(plan.nodes))
    return Player(seed).play(begun(Driver(plan, input={"city": "Ulm", "n": 5, "items": [1, 2]})))


def begun(driver: Driver) -> Driver:
    driver.engine.hints = False  # time goes on here without anybody telling the memory
    return driver.start()


def is_main(source: Driver, step_id: str) -> bool:
    position = source.plan.positions.get(step_id)
    return position is not None and position.phase == "main"


def fork(source: Driver, **how: Any) -> Driver:
    seed = seed_of(source.plan, source.log.entries, **how)
    driver = begun(Driver(source.plan, input=source.invoked.input, seed=seed))
    taken_over = {step.step_id for step in seed.steps}
    assert not taken_over & {each.rpartition(".")[0] for each in driver.scheduled}
    return driver


def fork_with_outcomes(source: Driver, overrides: dict[str, Any], **how: Any) -> Driver:
    """Fork; say what became of steps that must not be repeated."""
    for _ in range(2 * len(source.state.steps)):
        try:
            return fork(source, overrides=overrides, **how)
        except RejectedError as refused:
            step_id = refused.details[0].path.removeprefix("overrides.")
            if refused.code == "outcome_unknown" and step_id not in overrides:
                overrides = {**overrides, step_id: 1}
            elif "begins anew" in refused.message:
                overrides = {each: 1 for each in overrides if each != step_id}
            else:
                raise
    return fork(source, overrides=overrides, **how)


SETTINGS = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@SETTINGS
@given(seed=st.integers(0, 10**6))
def test_replay_of_any_run_spends_nothing_and_ends_the_same(seed: int) -> None:
    source = source_of(seed)
    error = source.end.error
    if error is not None and error.code in FROM_OUTSIDE:
        return

    copy = fork(source, as_recorded=True)

    assert copy.scheduled == []
    assert (copy.end.status, copy.end.output) == (source.end.status, source.end.output)
    assert copy.end.error == error


@SETTINGS
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@example(seed=846696, share=1.0)
@example(seed=633961, share=0.5)
def test_fork_from_any_sequence_ends(seed: int, share: float) -> None:
    source = source_of(seed)
    at_seq = 1 + int(share * (len(source.log.messages) - 1))

    copy = fork_with_outcomes(source, {}, at_seq=at_seq)

    Player(seed + 1).play(copy)


@SETTINGS
@given(seed=st.integers(0, 10**6), data=st.data())
def test_override_of_any_step_leads_to_an_end(seed: int, data: st.DataObject) -> None:
    source = source_of(seed)
    known = sorted(
        step.step_id
        for step in source.state.steps.values()
        if step.kind is StepKind.TOOL
        and step.status == "succeeded"
        and is_main(source, step.step_id)
    )
    if not known:
        return
    overridden = data.draw(st.sampled_from(known))

    copy = fork_with_outcomes(source, {overridden: 99}, as_recorded=True)

    Player(seed + 1).play(copy)
