"""Runs under every disorder that the bus and its processes can bring.

Several engines share one log. Deliveries come twice, late, out of order, to any engine; engines
die between any two effects and keep stale states; runners answer twice, late, or not at all.
Whatever happens, the log stays consistent, and every run ends once runners answer and time goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import JsonValue

from penstock.contracts import subjects
from penstock.contracts.facts import (
    CancelRequested,
    Decision,
    RunStatus,
    StepKind,
    StepResult,
    StepScheduled,
)
from penstock.contracts.plan import Node, Plan, RetryPolicy
from penstock.contracts.usage import Usage
from penstock.runs.state import fold, new_state
from penstock_orchestrator.core.decide import decide, expired, repair
from penstock_orchestrator.core.decisions import Timer as DecidedTimer
from tests.support.simulation import (
    PREFIX,
    RUN_ID,
    SHARD,
    START,
    TENANT,
    Effects,
    Engine,
    Ledger,
    Log,
    Message,
    agent_node,
    make_agent,
    make_invoked,
    make_plan,
    make_result,
    make_tool,
    rejected,
    responds,
    tool_node,
    transient,
    uses,
)

TOOLS = ("add", "look")
NOT_EQUIPPED = "rm"
STEP_SECONDS = 20.0


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    retry = RetryPolicy(
        max_attempts=draw(st.integers(1, 3)), initial_seconds=2, factor=2, jitter=0.1
    )
    count = draw(st.integers(1, 5))
    nodes: list[Node] = []
    for index in range(count):
        earlier = [node.id for node in nodes]
        needs = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2)) if earlier else []
        if draw(st.booleans()):
            given: dict[str, Any] = {"city": "{{ input.city }}"}
            given |= {f"from_{need}": f"{{{{ steps.{need}.output }}}}" for need in needs}
            nodes.append(
                tool_node(f"n{index}", *needs, ref=draw(st.sampled_from(TOOLS)), input=given)
            )
        else:
            nodes.append(agent_node(f"n{index}", *needs))
    return make_plan(
        *nodes,
        tools=[
            make_tool("add", retry=retry, timeout_seconds=STEP_SECONDS),
            make_tool(
                "look",
                retry=retry,
                timeout_seconds=STEP_SECONDS,
                sources={"key": {"source": "system", "value": "{{ run.tenant }}"}},
            ),
        ],
        agents=[
            make_agent(
                tools=TOOLS,
                retry=retry,
                timeout_seconds=STEP_SECONDS,
                max_turns=draw(st.integers(1, 3)),
            )
        ],
        timeout_seconds=draw(st.sampled_from([60.0, 3600.0])),
    )


arguments: st.SearchStrategy[dict[str, JsonValue]] = st.dictionaries(
    st.sampled_from(["a", "key"]), st.integers(0, 3), max_size=2
)
calls = st.tuples(st.sampled_from([*TOOLS, NOT_EQUIPPED]), arguments)
actions = st.one_of(
    st.builds(responds),
    st.lists(calls, min_size=1, max_size=3).map(lambda chosen: uses(*chosen)),
)
errors = st.sampled_from([None, None, None, transient(), transient(9.0), rejected()])
usages = st.sampled_from([None, Usage(input_tokens=3, model_calls=1)])


@dataclass(eq=False)
class Process:
    """An engine's process: at most one input at a time."""

    engine: Engine
    effects: Effects | None = None
    works_on: int | None = None
    """Sequence of the input; `None`: a timer, or nobody's input."""


@dataclass
class Timer:
    due_at: datetime
    fired: bool = False


@dataclass
class World:
    plan: Plan
    log: Log = field(default_factory=Log)
    ledger: Ledger = field(default_factory=Ledger)
    now: datetime = START
    processes: list[Process] = field(default_factory=list)
    timers: dict[str, Timer] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    delivered: Counter[int] = field(default_factory=Counter)

    def set_timer(self, wait: DecidedTimer) -> None:
        self.timers.setdefault(wait.timer_id, Timer(wait.due_at))


class RunMachine(RuleBasedStateMachine):
    """The world of one run."""

    ENGINES = 3

    @initialize(
        plan=plans(), engines=st.integers(1, 3), hints=st.booleans(), asked=st.integers(0, 5)
    )
    def begin(self, plan: Plan, engines: int, hints: bool, asked: int) -> None:
        note(f"plan: {[(n.id, n.kind, n.needs) for n in plan.nodes]}")
        self.world = World(plan)
        for _ in range(min(engines, self.ENGINES)):
            engine = Engine(
                plan,
                self.world.log,
                hints=hints,
                ledger=self.world.ledger,
                set_timer=self.world.set_timer,
            )
            self.world.processes.append(Process(engine))
        if asked:
            self.invoke()

    # -- what comes from outside -----------------------------------------------------------------

    @precondition(lambda self: self.world.log.get(subjects.invoke(PREFIX)) is None)
    @rule()
    def invoke(self) -> None:
        world = self.world
        world.log.append(subjects.invoke(PREFIX), make_invoked(world.plan, occurred_at=world.now))

    @precondition(lambda self: self.world.log.get(subjects.cancel(PREFIX)) is None)
    @rule(rarely=st.integers(0, 4))
    def cancel(self, rarely: int) -> None:
        if rarely == 0:
            self.world.log.append(
                subjects.cancel(PREFIX), CancelRequested(occurred_at=self.world.now)
            )

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 25.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += timedelta(seconds=seconds)

    # -- runners ---------------------------------------------------------------------------------

    @precondition(lambda self: self.world.log.steps)
    @rule(data=st.data(), error=errors, usage=usages, skew=st.sampled_from([0.0, -1.0, 1.0]))
    def runner_answers(self, data: st.DataObject, error: Any, usage: Any, skew: float) -> None:
        """Any step that was ever scheduled, so also once more, and after its time."""
        message = data.draw(st.sampled_from(self.world.log.steps))
        kind = StepKind(message.entry.subject.kind)
        output = data.draw(actions) if kind is StepKind.AGENT else data.draw(st.integers(0, 9))
        self._answer(message, output, error, usage, skew)

    @precondition(lambda self: self._unanswered())
    @rule(data=st.data(), how_many=st.integers(1, 4))
    def runners_answer_what_is_open(self, data: st.DataObject, how_many: int) -> None:
        for message in self._unanswered()[:how_many]:
            kind = StepKind(message.entry.subject.kind)
            output = data.draw(actions) if kind is StepKind.AGENT else data.draw(st.integers(0, 9))
            self._answer(message, output, data.draw(errors), data.draw(usages))

    def _unanswered(self) -> list[Message]:
        found = []
        for message in self.world.log.steps:
            subject = message.entry.subject
            target = subjects.result(PREFIX, subject.step_id, subject.attempt)
            if self.world.log.get(target) is None:
                found.append(message)
        return found

    def _answer(
        self, message: Message, output: Any, error: Any = None, usage: Any = None, skew: float = 0
    ) -> None:
        subject = message.entry.subject
        target = subjects.result(PREFIX, subject.step_id, subject.attempt)
        if self.world.log.get(target) is not None:
            return  # refused by the stream
        fact = make_result(
            None if error is not None else output,
            kind=StepKind(subject.kind),
            now=self.world.now + timedelta(seconds=skew),
            error=error,
            usage=usage,
        )
        self.world.log.append(target, fact)

    # -- engines ---------------------------------------------------------------------------------

    @property
    def idle(self) -> list[Process]:
        return [process for process in self.world.processes if process.effects is None]

    @property
    def busy(self) -> list[Process]:
        return [process for process in self.world.processes if process.effects is not None]

    @property
    def undelivered(self) -> list[Message]:
        return [m for m in self.world.log.inputs if m.seq not in self.world.acknowledged]

    @precondition(lambda self: self.idle and self.undelivered)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Any input that is not acknowledged, to anybody: late, out of order, or again."""
        process = data.draw(st.sampled_from(self.idle))
        self._deliver(process, data.draw(st.sampled_from(self.undelivered)))

    def _deliver(self, process: Process, message: Message) -> None:
        redelivered = self.world.delivered[message.seq] > 0
        self.world.delivered[message.seq] += 1
        # The engine's clock: a runner's may be wrong, and the input may have waited long.
        now = self.world.now
        process.effects = process.engine.handle(message, now, redelivered=redelivered)
        process.works_on = message.seq

    @precondition(lambda self: self.idle and self.undelivered)
    @rule(data=st.data(), how_many=st.integers(1, 6))
    def all_goes_well_for_a_while(self, data: st.DataObject, how_many: int) -> None:
        process = data.draw(st.sampled_from(self.idle))
        for message in self.undelivered[:how_many]:
            self._deliver(process, message)
            self._finish(process)

    @precondition(lambda self: self.idle and self.world.log.inputs)
    @rule(data=st.data())
    def deliver_once_more(self, data: st.DataObject) -> None:
        """A stale acknowledgement, or none: what was handled is handled again."""
        message = data.draw(st.sampled_from(self.world.log.inputs))
        self._deliver(data.draw(st.sampled_from(self.idle)), message)

    @precondition(lambda self: self.idle and self._due())
    @rule(data=st.data())
    def timer_fires(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._due()))
        process = data.draw(st.sampled_from(self.idle))
        self.world.timers[name].fired = data.draw(st.booleans())
        process.effects = process.engine.wake(self.world.now, reload=data.draw(st.booleans()))
        process.works_on = None

    def _due(self) -> list[str]:
        return [
            name
            for name, timer in self.world.timers.items()
            if not timer.fired and timer.due_at <= self.world.now
        ]

    @precondition(lambda self: self.idle)
    @rule(data=st.data(), reload=st.booleans())
    def reconciler_wakes(self, data: st.DataObject, reload: bool) -> None:
        process = data.draw(st.sampled_from(self.idle))
        process.effects = process.engine.wake(self.world.now, reload=reload)
        process.works_on = None

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), effects=st.integers(1, 6))
    def engine_works(self, data: st.DataObject, effects: int) -> None:
        process = data.draw(st.sampled_from(self.busy))
        for _ in range(effects):
            if process.effects is not None:
                self._step(process)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def engine_finishes(self, data: st.DataObject) -> None:
        self._finish(data.draw(st.sampled_from(self.busy)))

    @rule(data=st.data())
    def engine_dies(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.world.processes))
        process.effects, process.works_on = None, None
        process.engine.forget()

    @precondition(lambda self: self.idle and self.undelivered)
    @rule(data=st.data(), effects=st.integers(1, 8))
    def engine_dies_at_its_work(self, data: st.DataObject, effects: int) -> None:
        process = data.draw(st.sampled_from(self.idle))
        self._deliver(process, data.draw(st.sampled_from(self.undelivered)))
        for _ in range(effects):
            if process.effects is not None:
                self._step(process)
        process.effects, process.works_on = None, None
        process.engine.forget()

    def _step(self, process: Process) -> None:
        assert process.effects is not None
        try:
            next(process.effects)
        except StopIteration:
            if process.works_on is not None:
                self.world.acknowledged.add(process.works_on)
            process.effects, process.works_on = None, None

    def _finish(self, process: Process) -> None:
        while process.effects is not None:
            self._step(process)

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def decisions_have_one_first_message_each(self) -> None:
        firsts = self._firsts()
        assert [number for number, _, _ in firsts] == list(range(1, len(firsts) + 1))

    def _firsts(self) -> list[tuple[int, Message, Decision]]:
        found = []
        for message in self.world.log.messages:
            decision = getattr(message.entry.fact, "decision", None)
            if decision is not None:
                found.append((message.entry.subject.decision, message, decision))
        return found

    @invariant()
    def followers_were_promised_and_are_what_was_meant(self) -> None:
        promised = {
            subjects.out(PREFIX, number, suffix)
            for number, _, decision in self._firsts()
            for suffix in decision.manifest
        }
        for message in self.world.log.steps:
            fact = message.entry.fact
            assert isinstance(fact, StepScheduled)
            if fact.decision is None:
                assert message.subject in promised
                assert message.body == self.world.ledger.meant[message.subject]

    @invariant()
    def a_run_ends_once_and_nothing_is_decided_after(self) -> None:
        ends = [m for m in self.world.log.messages if m.entry.subject.event == "end"]
        assert len(ends) <= 1
        if ends:
            assert ends[0].entry.subject.decision == len(self._firsts())

    @invariant()
    def nothing_is_decided_after_a_cancellation_that_was_known(self) -> None:
        cancel = self.world.log.get(subjects.cancel(PREFIX))
        if cancel is None:
            return
        for _, message, decision in self._firsts():
            if decision.cause_seq >= cancel.seq:
                assert message.entry.subject.event == "end"

    @invariant()
    def an_attempt_follows_the_failure_of_the_one_before(self) -> None:
        for message in self.world.log.steps:
            subject = message.entry.subject
            if subject.attempt > 1:
                before = subjects.result(PREFIX, subject.step_id, subject.attempt - 1)
                result = self.world.log.get(before)
                assert result is not None
                fact = result.entry.fact
                assert isinstance(fact, StepResult)
                assert fact.status == "failed"
                assert result.seq < message.seq

    @invariant()
    def a_step_succeeds_at_most_once(self) -> None:
        succeeded = Counter(
            entry.subject.step_id
            for entry in self.world.log.entries
            if isinstance(entry.fact, StepResult) and entry.fact.status == "succeeded"
        )
        assert all(times == 1 for times in succeeded.values())

    @invariant()
    def a_state_is_the_fold_of_what_was_folded_in_the_order_of_the_log(self) -> None:
        for process in self.world.processes:
            engine = process.engine
            if engine.state is not None:
                known = [entry for _, entry in sorted(engine.folded.items())]
                assert engine.state == fold(new_state(TENANT, SHARD, RUN_ID), known)

    @invariant()
    def the_count_of_open_steps_is_right(self) -> None:
        state = self.world.log.state
        assert state.open_steps == sum(step.open for step in state.steps.values())

    @invariant()
    def the_decision_is_a_function_of_the_log(self) -> None:
        state = self.world.log.state
        assert fold(state, self.world.log.entries) == state
        first = decide(self.world.plan, state, self.world.now, 0)
        assert decide(self.world.plan, state, self.world.now, 0) == first

    @invariant()
    def a_blocked_call_is_told_once(self) -> None:
        told = Counter(
            call.step_id for _, _, decision in self._firsts() for call in decision.blocked
        )
        assert all(times == 1 for times in told.values())

    @invariant()
    def system_parameters_are_the_systems(self) -> None:
        for message in self.world.log.steps:
            fact = message.entry.fact
            assert isinstance(fact, StepScheduled)
            if fact.name == "look":
                assert isinstance(fact.input, dict)
                assert fact.input["key"] == TENANT
            assert fact.name != NOT_EQUIPPED

    # -- the end ---------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everybody work from now on: the run must end."""
        if not hasattr(self, "world") or self.world.log.get(subjects.invoke(PREFIX)) is None:
            return
        world = self.world
        alone = len(world.processes) == 1
        for _ in range(200):
            if world.log.ends and not self.undelivered:
                break
            for process in world.processes:
                self._finish(process)
            for message in self.undelivered:
                self._deliver(world.processes[0], message)
                self._finish(world.processes[0])
            for message in world.log.steps:
                kind = message.entry.subject.kind
                self._answer(message, responds() if kind == StepKind.AGENT else 1)
            world.now += timedelta(seconds=1)
            if not alone and not self.undelivered:
                # States of several engines went stale: what one of them swallowed, only a look
                # into the log brings back.
                self._wake(reload=True)
            for name in self._due():
                world.timers[name].fired = True
                self._wake(reload=False)
        self._check_end()

    def _wake(self, *, reload: bool) -> None:
        process = self.world.processes[0]
        process.effects = process.engine.wake(self.world.now, reload=reload)
        self._finish(process)

    def _check_end(self) -> None:
        world = self.world
        assert len(world.log.ends) == 1, "the run does not end"
        state = world.log.state
        later = world.now + timedelta(days=1)
        assert decide(world.plan, state, later, 0) is None
        assert repair(world.plan, state) == []
        assert expired(state, later) == []
        if world.log.ends[0].status is RunStatus.DONE:
            assert all(step.status != "planned" for step in state.steps.values())
        for invariant_of in (
            self.decisions_have_one_first_message_each,
            self.followers_were_promised_and_are_what_was_meant,
            self.a_run_ends_once_and_nothing_is_decided_after,
            self.a_step_succeeds_at_most_once,
        ):
            invariant_of()


RunMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("PENSTOCK_MACHINE_EXAMPLES", "150")),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestRunMachine = pytest.mark.timeout(600)(RunMachine.TestCase)
