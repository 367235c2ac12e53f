"""An engine in memory: compiles documents, runs them with stubs, keeps virtual time.

It asks the same pure functions as the orchestrator (``decide``, ``expired``, ``wake_at``) and
publishes their decisions into lists instead of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily, ErrorInfo
from penstock.contracts.facts import (
    CancelRequested,
    RunInvoked,
    SignalReceived,
    StepKind,
    StepResult,
    StepScheduled,
)
from penstock.contracts.ids import answer_signal_id, child_run_id, run_id_from_key
from penstock.contracts.json import Json
from penstock.contracts.plan import Plan, PublishedVersion
from penstock.contracts.usage import RunLimits, Usage
from penstock.contracts.versions import accepted_input
from penstock.runs.start import StartParams, child_run
from penstock.runs.state import StepState
from penstock.texts import documents_of
from penstock_orchestrator.core.decide import decide, expired, wake_at
from penstock_registry.core.catalog import RUNNABLE, Catalog
from penstock_registry.core.checks import all_faults
from penstock_registry.core.compiler import compile_document
from penstock_registry.core.documents import kind_of
from penstock_registry.core.places import invalid_document
from penstock_registry.core.reading import parse_documents
from penstock_testing.run import TENANT, LocalRun
from penstock_testing.stubs import Answer, Call, answered

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""When virtual time begins."""
_MOST_DECISIONS: Final = 10_000


class LocalEngine:
    """Runs workflows, networks and agents in memory."""

    def __init__(self, documents: Iterable[str | Path], *, now: datetime = START) -> None:
        """Compile the documents.

        Args:
            documents: YAML texts, or paths of YAML and JSON files.
            now: When virtual time begins.

        Raises:
            RejectedError: ``invalid_document`` with every fault, as ``penstock apply`` shows them.
            TextError: A file is not UTF-8, or not JSON.
        """
        found = (
            documents_of(one.name, one.read_bytes()) if isinstance(one, Path) else [one]
            for one in documents
        )
        parsed = parse_documents(document for group in found for document in group)
        if faults := all_faults(parsed, Catalog()):
            raise invalid_document(faults)
        read = [placed.document for placed in parsed.placed]
        catalog = Catalog.of(read)
        self.now = now
        self.runs: dict[str, LocalRun] = {}
        """All runs by their ids, child runs as well."""
        self._names: dict[str, tuple[Plan, str]] = {}
        self._plans: dict[str, Plan] = {}
        for document in read:
            if kind_of(document) not in RUNNABLE:
                continue
            artifact = compile_document(document, catalog)
            plan = Plan.model_validate_json(artifact.body)
            self._names[document.metadata.name] = (plan, artifact.digest)
            self._plans[artifact.digest] = plan
        self._tools: dict[str, Answer] = {}
        self._agents: dict[str, Answer] = {}
        self._steps: dict[str, Answer] = {}
        self._performed: set[tuple[str, str, int]] = set()

    # -- stubs -------------------------------------------------------------------------------

    def stub_tool(self, name: str, answer: Answer) -> None:
        """Answer all calls of a tool.

        Args:
            name: The tool.
            answer: A fixed output, a function of its arguments, an error to raise, ``InOrder``
                or ``NO_RESULT``.
        """
        self._tools[name] = answer

    def stub_agent(self, name: str, answer: Answer) -> None:
        """Answer all turns of an agent.

        Args:
            name: The agent.
            answer: As for tools; a function takes the messages. A text or other value is the
                agent's response; an action (``use_tools``, ``route_to_agent``) is taken as it is.
        """
        self._agents[name] = answer

    def stub_step(self, node_id: str, answer: Answer) -> None:
        """Answer the steps of one node of a workflow, whatever tool or agent it calls."""
        self._steps[node_id] = answer

    # -- runs --------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        input: Json = None,  # noqa: A002 - as in the API
        *,
        limits: RunLimits | None = None,
    ) -> LocalRun:
        """Start a run and work until only time or an answer from outside can move it.

        Args:
            name: A workflow, network or agent of the documents.
            input: Its input.
            limits: Limits of this run.

        Raises:
            LookupError: No such definition, or a step has no stub.
            RejectedError: ``invalid_input``, as of a start over HTTP.
        """
        if name not in self._names:
            known = ", ".join(sorted(self._names))
            raise LookupError(f"no definition {name!r}; there are: {known}")
        plan, digest = self._names[name]
        run_id = run_id_from_key(TENANT, f"run\x00{len(self.runs)}")
        version = PublishedVersion(
            name=name,
            kind=plan.kind,
            version=1,
            plan_digest=digest,
            input_schema=plan.input_schema,
        )
        params = StartParams(
            tenant=TENANT,
            run_id=run_id,
            name=name,
            input=accepted_input(plan, input),
            limits=limits or RunLimits(),
        )
        run = self._open(run_id, plan, params.invoked(version, self.now))
        self.work()
        return run

    def run(self, name: str, input: Json = None) -> LocalRun:  # noqa: A002 - as in the API
        """Start a run and let time pass until it ends or waits for an answer from outside."""
        run = self.start(name, input)
        run.proceed()
        return run

    def _open(self, run_id: str, plan: Plan, invoked: RunInvoked) -> LocalRun:
        run = self.runs[run_id] = LocalRun(self, plan, run_id)
        run.append(subjects.invoke(run.prefix), invoked)
        if plan.concurrency is not None:
            # In memory every run has its concurrency slot at once.
            admitted = SignalReceived(occurred_at=self.now, name="admitted", kind="admitted")
            signal_id = answer_signal_id("admitted", run_id)
            run.append(subjects.signal(run.prefix, signal_id), admitted)
        return run

    # -- time --------------------------------------------------------------------------------

    def advance(self, delta: timedelta) -> None:
        """Let time pass; what becomes due on the way happens at its moment."""
        until = self.now + delta
        while (due := self._next()) is not None and due <= until:
            self._wake(due)
        self.now = max(self.now, until)
        self.work()

    def proceed(self, until: Callable[[], bool]) -> None:
        """Let time pass, from one due moment to the next, until a condition holds.

        Raises:
            AssertionError: It never does: nothing is due any more.
        """
        while not until():
            due = self._next()
            if due is None:
                raise AssertionError("nothing is due any more")
            self._wake(due)

    def _next(self) -> datetime | None:
        moments = (wake_at(run.plan, run.state) for run in self.runs.values())
        return min((moment for moment in moments if moment is not None), default=None)

    def _wake(self, due: datetime) -> None:
        before = self._facts
        self.now = max(self.now, due)
        for run in list(self.runs.values()):
            for over in expired(run.state, self.now):
                run.append(subjects.result(run.prefix, over.step_id, over.attempt), over.result)
        self.work()
        if self._facts == before:
            raise AssertionError(f"nothing happened at {due}, when something was due")

    @property
    def _facts(self) -> int:
        return sum(len(run.entries) for run in self.runs.values())

    # -- work --------------------------------------------------------------------------------

    def work(self) -> None:
        """Decide and execute steps until only time or an answer from outside can help."""
        before = -1
        while before != self._facts:
            before = self._facts
            for run in list(self.runs.values()):
                self._decide(run)
                for step in list(run.state.steps.values()):
                    if step.status == "scheduled":
                        self._perform(run, step)
                self._report(run)
                self._cancel_children(run)

    def _decide(self, run: LocalRun) -> None:
        for _ in range(_MOST_DECISIONS):
            decided = decide(run.plan, run.state, self.now, run.state.last_seq)
            if decided is None or not decided.outputs:
                return
            for output in decided.outputs:
                run.append(subjects.out(run.prefix, decided.number, output.suffix), output.fact)
        raise AssertionError(f"run {run.run_id} decides without end")

    def _perform(self, run: LocalRun, step: StepState) -> None:
        key = (run.run_id, step.step_id, step.attempt)
        if key in self._performed:
            return
        self._performed.add(key)
        fact = _scheduled(run, step)
        if step.kind is StepKind.RUN:
            self._perform_run(run, step, fact)
            return
        call = Call(
            kind="agent" if step.kind is StepKind.AGENT else "tool",
            name=fact.name,
            step_id=step.step_id,
            node_id=fact.node_id,
            attempt=step.attempt,
            input=fact.input,
            config=fact.config,
        )
        run.calls.append(call)
        outcome = answered(self._stub(call), call)
        if outcome is not None:
            usage = Usage() if step.kind is StepKind.AGENT else None
            self._result(run, step, outcome.output, outcome.error, usage)

    def _stub(self, call: Call) -> Answer:
        if call.node_id in self._steps:
            return self._steps[call.node_id]
        stubs = self._agents if call.kind == "agent" else self._tools
        if call.name not in stubs:
            known = ", ".join(sorted(stubs)) or "none"
            raise LookupError(f"{call.kind} {call.name!r} has no stub; stubbed: {known}")
        return stubs[call.name]

    def _perform_run(self, run: LocalRun, step: StepState, fact: StepScheduled) -> None:
        config = fact.config if isinstance(fact.config, dict) else {}
        if "to" in config:
            self._send(run, step, fact, config["to"])
            return
        child = child_run(run.state, step.step_id, step.attempt, fact)
        run_id = child_run_id(TENANT, run.run_id, step.step_id, step.attempt)
        self._open(run_id, self._plans[child.plan_digest], child)

    def _send(self, run: LocalRun, step: StepState, fact: StepScheduled, to: Json) -> None:
        reached: list[Json] = []
        for target in self._targets(to if isinstance(to, dict) else {}):
            if target.state.ended is not None:
                continue
            message = SignalReceived(
                occurred_at=self.now,
                name=fact.name,
                payload=fact.input,
                kind="message",
                from_run=run.run_id,
            )
            signal_id = answer_signal_id("message", run.run_id, step.step_id)
            target.append(subjects.signal(target.prefix, signal_id), message)
            reached.append(target.run_id)
        error = None
        if not reached:
            error = ErrorInfo(code="no_recipient", message=f"no open run takes {fact.name!r}")
        self._result(run, step, {"run_ids": reached}, error, None)

    def _targets(self, to: dict[str, Json]) -> list[LocalRun]:
        if (run_id := to.get("run_id")) is not None:
            return [self.runs[run_id]] if isinstance(run_id, str) and run_id in self.runs else []
        key = to.get("correlation")
        return [
            run
            for run in self.runs.values()
            if key is not None
            and any(
                known.open
                and known.node_record.request is not None
                and known.node_record.request.correlation == str(key)
                for known in run.state.node_records.values()
            )
        ]

    def _report(self, run: LocalRun) -> None:
        """Give the outcome of an ended child run to its parent."""
        ended, parent = run.state.ended, run.state.request.parent
        if ended is None or parent is None:
            return
        above = self.runs[parent.run_id]
        step = above.state.steps[parent.step_id]
        error = ended.error
        if error is not None:
            family = error.family if error.family != ErrorFamily.CONFLICT else ErrorFamily.REJECTED
            message = f"run {run.run_id} {ended.status.value}: {error.message}"
            error = ErrorInfo(code=error.code, message=message, family=family)
        usage = run.state.usage.plus(Usage(steps=run.state.attempts))
        self._result(above, step, ended.output, error, usage, attempt=parent.attempt)

    def _cancel_children(self, run: LocalRun) -> None:
        """Cancel the child runs of stopped steps, and all of them where the run has ended."""
        ended = run.state.ended is not None
        for step in run.state.steps.values():
            run_id = child_run_id(TENANT, run.run_id, step.step_id, step.attempt)
            unneeded = step.status == "stopped" or (ended and step.open)
            if unneeded and (child := self.runs.get(run_id)) is not None:
                reason = f"its parent {run.run_id} does not wait for it any more"
                fact = CancelRequested(occurred_at=self.now, reason=reason)
                child.append(subjects.cancel(child.prefix), fact)

    def _result(
        self,
        run: LocalRun,
        step: StepState,
        output: Json,
        error: ErrorInfo | None,
        usage: Usage | None,
        *,
        attempt: int | None = None,
    ) -> None:
        status: Literal["succeeded", "failed", "unknown"] = "succeeded"
        if error is not None:
            status = "unknown" if error.code == "outcome_unknown" else "failed"
        result = StepResult(
            occurred_at=self.now,
            kind=step.kind,
            name=step.name,
            status=status,
            output=output,
            error=error,
            usage=usage,
            runner_id="stub",
            started_at=self.now,
        )
        number = step.attempt if attempt is None else attempt
        run.append(subjects.result(run.prefix, step.step_id, number), result)


def _scheduled(run: LocalRun, step: StepState) -> StepScheduled:
    """Return the fact that scheduled the current attempt at a step."""
    for entry in reversed(run.entries):
        subject, fact = entry.subject, entry.fact
        if isinstance(fact, StepScheduled) and (
            (subject.step_id, subject.attempt) == (step.step_id, step.attempt)
        ):
            return fact
    raise RuntimeError(f"{step.step_id} was never scheduled")
