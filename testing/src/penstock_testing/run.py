"""One run in memory: its view, and what reaches it from outside."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal, Protocol

from penstock.contracts import subjects
from penstock.contracts.errors import ErrorInfo
from penstock.contracts.facts import CancelRequested, RunFact, RunStatus, SignalReceived
from penstock.contracts.ids import answer_signal_id
from penstock.contracts.json import Json
from penstock.contracts.plan import Plan
from penstock.runs.events import ClientEvent, events_of
from penstock.runs.state import Entry, RunState, evolve, new_state
from penstock.runs.views import (
    NodeRecordView,
    RunView,
    StepView,
    awaited,
    node_record_view,
    run_view,
)
from penstock_testing.stubs import Call

TENANT = "test"


class Clock(Protocol):
    """The engine, as far as a run uses it."""

    now: datetime

    def work(self) -> None:
        """Do everything that needs neither time nor an answer from outside."""

    def advance(self, delta: timedelta) -> None:
        """Let time pass."""

    def proceed(self, until: Callable[[], bool]) -> None:
        """Let time pass, from one due moment to the next, until a condition holds."""


class LocalRun:
    """A run; its properties show it as it is now."""

    def __init__(self, clock: Clock, plan: Plan, run_id: str) -> None:
        """Made by ``LocalEngine``."""
        self.run_id = run_id
        self.plan = plan
        self.state: RunState = new_state(TENANT, 0, run_id)
        self.entries: list[Entry] = []
        """The run's log."""
        self.calls: list[Call] = []
        """Calls of its stubs, in order."""
        self._clock = clock
        self._subjects: set[str] = set()

    @property
    def prefix(self) -> str:
        """Stem of the run's subjects."""
        return subjects.run_prefix(TENANT, 0, self.run_id)

    def append(self, subject: str, fact: RunFact) -> Entry | None:
        """Record a fact and fold it in; ``None`` if its subject has one already."""
        if subject in self._subjects:
            return None
        self._subjects.add(subject)
        entry = Entry(len(self.entries) + 1, subjects.parse_fact(subject), fact)
        self.entries.append(entry)
        self.state = evolve(self.state, entry)
        return entry

    # -- the view ----------------------------------------------------------------------------

    @property
    def view(self) -> RunView:
        """The run as the API shows it."""
        view = run_view(self.state, node_records=True, planned=self.plan.limits)
        if view is None:
            raise RuntimeError("a run begins with its invocation")
        return view

    @property
    def status(self) -> RunStatus:
        """Status of the run."""
        return self.view.status

    @property
    def output(self) -> Json:
        """Output of an ended run."""
        return self.view.output

    @property
    def error(self) -> ErrorInfo | None:
        """Failure of an ended run."""
        return self.view.error

    @property
    def steps(self) -> dict[str, StepView]:
        """The steps by their ids, in the order of the decisions that scheduled them."""
        return {step.step_id: step for step in self.view.steps}

    @property
    def events(self) -> list[ClientEvent]:
        """The events that a follower of the run sees."""
        return [event for entry in self.entries for event in events_of(entry)]

    @property
    def waiting_for(self) -> list[NodeRecordView]:
        """Open waits, approvals, client tool calls and resolutions."""
        return list(self.view.waiting_for)

    # -- from outside ------------------------------------------------------------------------

    def signal(self, name: str, payload: Json = None) -> None:
        """Send an event to the run."""
        number = sum(entry.subject.event == "signal" for entry in self.entries)
        fact = SignalReceived(occurred_at=self._clock.now, name=name, payload=payload)
        self.append(subjects.signal(self.prefix, f"s-{number}"), fact)
        self._clock.work()

    def approve(self, record_id: str | None = None, *, reason: str | None = None) -> None:
        """Approve an open request.

        Args:
            record_id: Which one; may be left out where one alone is open.
            reason: Recorded with the decision.

        Raises:
            LookupError: No such request is open, or several are.
        """
        self._answer("approval", record_id, {"decision": "approve", "reason": reason, "by": None})

    def reject(self, record_id: str | None = None, *, reason: str | None = None) -> None:
        """Reject an open request; arguments and errors as for ``approve``."""
        self._answer("approval", record_id, {"decision": "reject", "reason": reason, "by": None})

    def answer_tool(self, output: Json = None, record_id: str | None = None) -> None:
        """Give the result of an open client tool call; errors as for ``approve``."""
        payload: dict[str, Json] = {"status": "succeeded", "output": output}
        self._answer("tool_result", record_id, payload)

    def fail_tool(self, code: str, message: str, record_id: str | None = None) -> None:
        """Fail an open client tool call; errors as for ``approve``."""
        payload: dict[str, Json] = {
            "status": "failed",
            "error": {"code": code, "message": message},
        }
        self._answer("tool_result", record_id, payload)

    def cancel(self, reason: str = "") -> None:
        """Cancel the run."""
        fact = CancelRequested(occurred_at=self._clock.now, reason=reason)
        self.append(subjects.cancel(self.prefix), fact)
        self._clock.work()

    def advance(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Let virtual time pass; retries, waits and timeouts that become due happen on the way."""
        self._clock.advance(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds))

    def proceed(self) -> None:
        """Let virtual time pass until the run ends or waits for an answer from outside."""
        self._clock.proceed(lambda: self.state.ended is not None or self._asks())

    def _asks(self) -> bool:
        return any(
            one.node_record.kind != "wait" or one.node_record.request is not None
            for one in awaited(self.state)
        )

    def _answer(
        self,
        kind: Literal["approval", "tool_result"],
        record_id: str | None,
        payload: dict[str, Json],
    ) -> None:
        asked = "client_tool" if kind == "tool_result" else kind
        open_requests = [
            one
            for one in map(node_record_view, awaited(self.state))
            if one.kind == asked and record_id in (None, one.record_id)
        ]
        if len(open_requests) != 1:
            names = ", ".join(one.record_id for one in open_requests) or "none"
            raise LookupError(f"one open {asked} is needed; there are: {names}")
        (found,) = open_requests
        digest = found.request.digest if found.request is not None else ""
        fact = SignalReceived(
            occurred_at=self._clock.now,
            name=found.request.name if found.request is not None else "",
            payload={**payload, "digest": digest},
            kind=kind,
            target=found.record_id,
        )
        signal_id = answer_signal_id(kind, found.record_id, digest)
        self.append(subjects.signal(self.prefix, signal_id), fact)
        self._clock.work()
