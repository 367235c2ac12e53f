"""The first fact of a run. Requests, webhooks, schedules and parent runs all build it here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from penstock.contracts.facts import (
    ChatMessage,
    DefinitionKind,
    ParentRef,
    RunInvoked,
    StepScheduled,
    Trigger,
)
from penstock.contracts.json import Json
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.schedules import SCHEDULE_TAG, ScheduleRecord, schedule_scope
from penstock.contracts.structs import convert
from penstock.contracts.usage import RunLimits
from penstock.expressions.templates import render
from penstock.runs.engine_steps import ChildRunConfig
from penstock.runs.state import RunState

_NO_LIMITS: Final = RunLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartParams:
    """Parameters of a run to start."""

    tenant: str
    run_id: str
    """A new id, or one derived from an idempotency key."""
    name: str
    """Of the published definition."""
    selector: str | None = None
    """A version or an alias; ``None``: the version in force."""
    kind: DefinitionKind | None = None
    """The kind that the definition must have; ``None``: any."""
    path: str = "name"
    """Path of the name in the request, for errors."""
    input: Json = None
    session_id: str | None = None
    limits: RunLimits = _NO_LIMITS
    trigger: Trigger = Trigger.HTTP
    tags: dict[str, str] | None = None
    priority: int = 0
    request_digest: str | None = None
    """SHA-256 of the request; a repeated key with another digest is refused."""
    requested_by: str | None = None
    traceparent: str | None = None

    def invoked(
        self, version: PublishedVersion, at: datetime, history: Sequence[ChatMessage] = ()
    ) -> RunInvoked:
        """Return the first fact of the run.

        Args:
            version: The published version that the run executes.
            at: Time of the start.
            history: Messages of the session before this run, the oldest first.
        """
        return RunInvoked(
            occurred_at=at,
            name=version.name,
            kind=version.kind,
            version=version.version,
            plan_digest=version.plan_digest,
            input=self.input,
            session_id=self.session_id,
            history=tuple(history),
            limits=self.limits,
            trigger=self.trigger,
            request_digest=self.request_digest,
            requested_by=self.requested_by,
            tags=self.tags or {},
            priority=self.priority,
        )


def scheduled_run(
    tenant: str, run_id: str, record: ScheduleRecord, tick: datetime, by: str
) -> StartParams:
    """Return the parameters of a run that a schedule starts.

    Args:
        tenant: Tenant of the schedule.
        run_id: Id of the run.
        record: The schedule.
        tick: The tick that the templates of the input refer to.
        by: Id of the key, or ``schedule:NAME``.

    Raises:
        RejectedError: A template of the input has no value.
    """
    return StartParams(
        tenant=tenant,
        run_id=run_id,
        name=record.target,
        selector=record.selector,
        path="schedule.target",
        input=render(record.input, schedule_scope(record, tick)),
        limits=record.limits,
        trigger=Trigger.SCHEDULE,
        tags={**record.tags, SCHEDULE_TAG: record.name},
        priority=record.priority,
        requested_by=by,
    )


def child_run(state: RunState, step_id: str, attempt: int, fact: StepScheduled) -> RunInvoked:
    """Return the first fact of a child run.

    Args:
        state: The parent, which was invoked.
        step_id: Step of the parent that is the child run.
        attempt: Attempt of the step.
        fact: The decision that schedules the step.
    """
    parent = state.request
    above = parent.parent
    config = convert(ChildRunConfig, fact.config)
    return RunInvoked(
        occurred_at=fact.occurred_at,
        name=fact.name,
        kind=config.kind,
        version=config.version,
        plan_digest=config.plan_digest,
        input=fact.input,
        limits=config.limits,
        trigger=Trigger.RUN,
        requested_by=parent.requested_by,
        tags=parent.tags,
        priority=parent.priority,
        parent=ParentRef(
            run_id=state.run_id,
            shard=state.shard,
            step_id=step_id,
            attempt=attempt,
            root_run_id=above.root_run_id if above is not None else state.run_id,
            depth=(above.depth if above is not None else 0) + 1,
        ),
    )
