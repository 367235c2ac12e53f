"""A log, engines and runners without a server, for tests of the pure core.

The log keeps what the stream keeps: bytes, one message a subject, one first message a decision.
An engine is a generator that stops before and after every effect, so that a test can let others
go first, or let it die there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from pydantic import JsonValue

from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorFamily, ErrorInfo
from penstock.contracts.facts import (
    CancelRequested,
    DefinitionKind,
    RunEnded,
    RunFact,
    RunInvoked,
    StateChanged,
    StepKind,
    StepResult,
    StepScheduled,
    fact_bytes,
    read_fact,
)
from penstock.contracts.plan import (
    AgentNode,
    CompiledAgent,
    CompiledTool,
    Node,
    Plan,
    RetryPolicy,
    ToolNode,
)
from penstock.contracts.usage import Usage
from penstock.runs.state import Entry, RunState, evolve, fold, new_state
from penstock_orchestrator.core.budget import run_deadline
from penstock_orchestrator.core.decide import decide, expired, repair
from penstock_orchestrator.core.decisions import Decided, Output, Timer
from penstock_orchestrator.core.progress import Progress

TENANT, SHARD, RUN_ID = "acme", 3, "01JCXYZ8M3T5V7W9ABCDEFGHJK"
PREFIX = subjects.run_prefix(TENANT, SHARD, RUN_ID)
START = datetime(2026, 1, 1, tzinfo=UTC)

QUICK = RetryPolicy(max_attempts=3, initial_seconds=1.0, factor=2.0, jitter=0.0)
NEVER = RetryPolicy(max_attempts=1)


def at(seconds: float) -> datetime:
    """Return the moment so many seconds after the run was asked for."""
    return START + timedelta(seconds=seconds)


# -- plans ---------------------------------------------------------------------------------------


def make_tool(name: str, **changes: Any) -> CompiledTool:
    return CompiledTool(**{"name": name, "queue": "builtin", "retry": QUICK, **changes})


def make_agent(name: str = "writer", **changes: Any) -> CompiledAgent:
    return CompiledAgent(**{"name": name, "model": "scripted/test", "retry": QUICK, **changes})


def tool_node(node_id: str, *needs: str, ref: str = "add", **changes: Any) -> ToolNode:
    return ToolNode(**{"id": node_id, "ref": ref, "needs": needs, **changes})


def agent_node(node_id: str, *needs: str, ref: str = "writer", **changes: Any) -> AgentNode:
    base = {"id": node_id, "ref": ref, "needs": needs, "input": "{{ input }}"}
    return AgentNode(**{**base, **changes})


def make_plan(
    *nodes: Node,
    agents: Iterable[CompiledAgent] | None = None,
    tools: Iterable[CompiledTool] | None = None,
    **changes: Any,
) -> Plan:
    """Return a plan with a tool `add` and an agent `writer`, unless others are given."""
    known = [make_tool("add")] if tools is None else tools
    asked = [make_agent(tools=("add",))] if agents is None else agents
    return Plan(
        **{
            "name": "test",
            "kind": DefinitionKind.WORKFLOW,
            "nodes": nodes,
            "agents": {agent.name: agent for agent in asked},
            "tools": {tool.name: tool for tool in known},
            "timeout_seconds": 600.0,
            **changes,
        }
    )


# -- inputs --------------------------------------------------------------------------------------


def make_invoked(plan: Plan, **changes: Any) -> RunInvoked:
    return RunInvoked(
        **{
            "occurred_at": START,
            "name": plan.name,
            "kind": plan.kind,
            "version": 1,
            "plan_digest": plan.digest(),
            "input": {"city": "Ulm"},
            **changes,
        }
    )


def make_result(
    output: JsonValue = None,
    *,
    kind: StepKind = StepKind.TOOL,
    now: datetime = START,
    error: ErrorInfo | None = None,
    usage: Usage | None = None,
) -> StepResult:
    return StepResult(
        occurred_at=now,
        kind=kind,
        name="x",
        status="succeeded" if error is None else "failed",
        output=output,
        error=error,
        usage=usage,
        runner_id="r",
        started_at=now,
    )


def transient(retry_after_seconds: float | None = None) -> ErrorInfo:
    return ErrorInfo(
        code="busy",
        message="try later",
        family=ErrorFamily.TRANSIENT,
        retry_after_seconds=retry_after_seconds,
    )


def rejected() -> ErrorInfo:
    return ErrorInfo(code="bad_arguments", message="no such city", family=ErrorFamily.REJECTED)


def responds(text: str = "done") -> dict[str, JsonValue]:
    return {"action": "respond", "text": text}


def uses(*calls: tuple[str, dict[str, JsonValue]], text: str = "") -> dict[str, JsonValue]:
    """Return the output of a turn that asks for tools, each by name and arguments."""
    return {
        "action": "use_tools",
        "text": text,
        "calls": [
            {"id": f"call_{index}", "name": name, "arguments": arguments}
            for index, (name, arguments) in enumerate(calls)
        ],
    }


# -- the log -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    seq: int
    subject: str
    body: bytes

    @cached_property
    def entry(self) -> Entry:
        return Entry(self.seq, subjects.parse_fact(self.subject), read_fact(self.body))


class Log:
    """Stream RUNS as far as one run sees it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._by_subject: dict[str, Message] = {}

    def append(self, subject: str, fact: RunFact, *, fence: str | None = None) -> Message:
        """Store a fact.

        Raises:
            ConflictError: `duplicate_fact` or `fenced`, as the server refuses it.
        """
        return self.append_body(subject, fact_bytes(fact), fence=fence)

    def append_body(self, subject: str, body: bytes, *, fence: str | None = None) -> Message:
        """Store the bytes of a fact; refuses as `append` does."""
        if subject in self._by_subject:
            raise ConflictError("duplicate_fact", subject)
        if fence is not None and any(
            message.subject.startswith(fence.removesuffix(">")) for message in self.messages
        ):
            raise ConflictError("fenced", subject)
        message = Message(len(self.messages) + 1, subject, body)
        self.messages.append(message)
        self._by_subject[subject] = message
        return message

    def get(self, subject: str) -> Message | None:
        return self._by_subject.get(subject)

    @property
    def entries(self) -> list[Entry]:
        return [message.entry for message in self.messages]

    @property
    def inputs(self) -> list[Message]:
        return [message for message in self.messages if ".in." in message.subject]

    @property
    def steps(self) -> list[Message]:
        return [message for message in self.messages if message.entry.subject.event == "step"]

    @property
    def state(self) -> RunState:
        return fold(new_state(TENANT, SHARD, RUN_ID), self.entries)

    @property
    def ends(self) -> list[RunEnded]:
        return [entry.fact for entry in self.entries if isinstance(entry.fact, RunEnded)]


@dataclass
class Ledger:
    """What engines meant to publish, to compare with what repairs publish."""

    meant: dict[str, bytes] = field(default_factory=dict)


# -- the engine ----------------------------------------------------------------------------------

Effects = Generator[str, None, None]
"""Yields the name of each effect before it happens; ends once the input may be acknowledged."""


class Engine:
    """What the orchestrator does with the core, one input at a time."""

    def __init__(
        self,
        plan: Plan,
        log: Log,
        *,
        hints: bool = True,
        ledger: Ledger | None = None,
        set_timer: Callable[[Timer], None] = lambda _timer: None,
    ) -> None:
        self.plan = plan
        self.log = log
        self.hints = hints
        self.ledger = ledger if ledger is not None else Ledger()
        self.set_timer = set_timer
        self.state: RunState | None = None
        self.progress: Progress | None = None
        self.folded: dict[int, Entry] = {}
        self.decided = 0

    def forget(self) -> None:
        """Lose all that is not in the log, as a crash does."""
        self.state = self.progress = None
        self.folded = {}

    def reload(self) -> RunState:
        self.forget()
        state = self.state = new_state(TENANT, SHARD, RUN_ID)
        for entry in self.log.entries:
            state = self._fold(state, entry)
        return state

    def _fold(self, state: RunState, entry: Entry) -> RunState:
        self.folded[entry.seq] = entry
        self.state = evolve(state, entry)
        return self.state

    def handle(
        self, message: Message, now: datetime | None = None, *, redelivered: bool = False
    ) -> Effects:
        """Work on an input fact at a time of the engine; by default that of the fact."""
        entry = message.entry
        now = now or entry.fact.occurred_at
        state = self.state
        fresh = state is None or redelivered
        if state is None or redelivered:
            yield "read the log"
            state = self.reload()
        else:
            state = self._fold(state, entry)
            cancel = self.log.get(subjects.cancel(PREFIX))
            if cancel is not None and cancel.seq not in self.folded:
                # Its live copy arrives before inputs that were stored earlier.
                state = self._fold(state, cancel.entry)
            if self.progress is not None and entry.subject.event == "result":
                if self.progress.absorb(self.plan, state, entry.subject.step_id):
                    alone = state.cancel is None and now < run_deadline(self.plan, state.request)
                    if alone:
                        assert decide(self.plan, state, now, entry.seq) is None
                else:
                    self.progress.touch_step(self.plan, entry.subject.step_id)
            elif self.progress is not None and entry.subject.event == "signal":
                self.progress.touch_signal(self.plan, state, entry.subject.step_id)
        yield from self.advance(now, entry.seq, fresh=fresh)

    def wake(self, now: datetime, *, reload: bool = True) -> Effects:
        """Let time pass: state what has expired, decide what is due."""
        fresh = reload or self.state is None
        if fresh:
            yield "read the log"
            self.reload()
        assert self.state is not None
        for over in expired(self.state, now):
            yield "state an expired attempt"
            subject = subjects.result(PREFIX, over.step_id, over.attempt)
            if self.log.get(subject) is None:
                self.log.append(subject, over.result)
        yield from self.advance(now, 0, fresh=fresh)

    def advance(self, now: datetime, cause_seq: int, *, fresh: bool) -> Effects:
        for _ in range(50):
            assert self.state is not None
            if fresh:
                yield from self._repair()
            decided = self._decide(now, cause_seq)
            if decided is None:
                yield from self._timers()
                yield "acknowledge"
                return
            try:
                yield from self._publish(decided)
            except ConflictError:
                yield "read the log"
                self.reload()
                fresh = True
            else:
                if self.progress is not None and not self.progress.queue:
                    # Whoever stops here is told of all that changes from now on.
                    assert decide(self.plan, self.state, now, cause_seq) is None
        raise AssertionError("the run does not settle")

    def _decide(self, now: datetime, cause_seq: int) -> Decided | None:
        state = self.state
        assert state is not None
        full = decide(self.plan, state, now, cause_seq)
        if not self.hints:
            return full
        if self.progress is None:
            self.progress = Progress()
        remembered = decide(self.plan, state, now, cause_seq, self.progress)
        assert remembered == full, f"with memory: {remembered} instead of {full}"
        return remembered

    def _repair(self) -> Effects:
        assert self.state is not None
        for missing in repair(self.plan, self.state):
            assert self.state.cancel is None, "a step would start after the cancellation"
            for output in missing.outputs:
                subject = subjects.out(PREFIX, missing.number, output.suffix)
                body = fact_bytes(output.fact)
                assert body == self.ledger.meant[subject], f"{subject} was repaired differently"
                yield "repair"
                self._publish_follower(subject, output)

    def _publish(self, decided: Decided) -> Effects:
        assert self.state is not None
        self.decided += 1
        first, *others = decided.outputs
        number = decided.number
        yield "publish the first message"
        subject = subjects.out(PREFIX, number, first.suffix)
        stored = self.log.append(subject, first.fact, fence=subjects.fence(PREFIX, number))
        for output in others:
            follower = subjects.out(PREFIX, number, output.suffix)
            self.ledger.meant[follower] = fact_bytes(output.fact)
        yield "fold the first message"
        self._fold(self.state, stored.entry)
        for output in others:
            yield "publish another message"
            self._publish_follower(subjects.out(PREFIX, number, output.suffix), output)
        for timer in decided.timers:
            yield "set a timer"
            self.set_timer(timer)

    def _publish_follower(self, subject: str, output: Output) -> None:
        assert self.state is not None
        stored = self.log.get(subject) or self.log.append(subject, output.fact)
        self._fold(self.state, stored.entry)

    def _timers(self) -> Effects:
        """Set again what a crash may have left unset."""
        assert self.state is not None
        if self.state.ended is not None:
            return
        for step in self.state.steps.values():
            if step.status == "waiting" and step.wait is not None:
                yield "set a timer again"
                self.set_timer(Timer(step.wait.timer_id, step.wait.due_at))


# -- one engine, driven by hand ------------------------------------------------------------------


class Driver:
    """One engine on one log, for tests that tell a story."""

    def __init__(self, plan: Plan, **invoked: Any) -> None:
        self.plan = plan
        self.log = Log()
        self.waits: list[Timer] = []
        self.engine = Engine(plan, self.log, set_timer=self.waits.append)
        self.invoked = make_invoked(plan, **invoked)

    def start(self) -> Driver:
        self.give(subjects.invoke(PREFIX), self.invoked)
        return self

    def give(self, subject: str, fact: RunFact) -> None:
        """Append an input and let the engine handle it."""
        message = self.log.append(subject, fact)
        for _ in self.engine.handle(message):
            pass

    def result(
        self,
        step_id: str,
        output: JsonValue = None,
        *,
        attempt: int = 1,
        now: float = 1.0,
        error: ErrorInfo | None = None,
        usage: Usage | None = None,
    ) -> Driver:
        scheduled = self.step(step_id, attempt)
        kind = StepKind(scheduled.subject.kind)
        fact = make_result(output, kind=kind, now=at(now), error=error, usage=usage)
        self.give(subjects.result(PREFIX, step_id, attempt), fact)
        return self

    def cancel(self, reason: str = "", now: float = 1.0) -> Driver:
        self.give(subjects.cancel(PREFIX), CancelRequested(occurred_at=at(now), reason=reason))
        return self

    def wake(self, now: float) -> Driver:
        for _ in self.engine.wake(at(now), reload=False):
            pass
        # What was stated as expired is an input like any other.
        for message in self.log.inputs:
            if message.seq not in self.engine.folded:
                for _ in self.engine.handle(message):
                    pass
        return self

    @property
    def state(self) -> RunState:
        return self.log.state

    def step(self, step_id: str, attempt: int = 1) -> Entry:
        """Return the fact that scheduled an attempt at a step."""
        for entry in self.log.entries:
            subject = entry.subject
            if subject.event == "step" and (subject.step_id, subject.attempt) == (step_id, attempt):
                return entry
        raise AssertionError(f"{step_id} has no attempt {attempt}: {self.scheduled}")

    def fact(self, step_id: str, attempt: int = 1) -> StepScheduled:
        fact = self.step(step_id, attempt).fact
        assert isinstance(fact, StepScheduled)
        return fact

    @property
    def scheduled(self) -> list[str]:
        """What was scheduled, as `step.attempt`, in the order of the log."""
        return [
            f"{entry.subject.step_id}.{entry.subject.attempt}"
            for entry in self.log.entries
            if entry.subject.event == "step"
        ]

    @property
    def running(self) -> set[str]:
        return {step.step_id for step in self.state.steps.values() if step.status == "scheduled"}

    @property
    def ended(self) -> RunEnded | None:
        ends = self.log.ends
        assert len(ends) <= 1
        return ends[0] if ends else None

    @property
    def end(self) -> RunEnded:
        assert self.ended is not None, f"not ended; scheduled {self.scheduled}"
        return self.ended

    def changes(self) -> list[StateChanged]:
        return [e.fact for e in self.log.entries if isinstance(e.fact, StateChanged)]

    def deadline(self) -> datetime:
        return run_deadline(self.plan, self.state.request)
