"""Requests to the archive and its replies; they travel in the envelope of ``contracts/rpc.py``.

The archive is behind the log by a fraction of a second, more where its database was away. Requests
name their tenant: the caller has checked its access to that tenant. Lists are newest first.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import AwareDatetime, Field

from penstock.contracts.facts import (
    DefinitionKind,
    Record,
    RunStatus,
    SignalKind,
    StepKind,
    Trigger,
)
from penstock.contracts.ids import Token
from penstock.contracts.json import Json
from penstock.contracts.rpc import PageSize
from penstock.runs.views import RunView, StepView

RESTORED_HEADER: Final = "Penstock-Restored"
"""Stands on facts that were put back into the log from the archive: no service acts on them."""

# Runs


class ListRuns(Record):
    """Verb ``list_runs``: read runs in order of time; all filters that are given must match.

    Pages stay the same while runs are added: a run is in one page and in one only.
    """

    tenant: Token
    status: tuple[RunStatus, ...] = ()
    """Any of these; none given means all."""
    id_prefix: str | None = None
    """The first characters of the run's id."""
    name: str | None = None
    kind: DefinitionKind | None = None
    session_id: str | None = None
    created_from: AwareDatetime | None = None
    created_before: AwareDatetime | None = None
    ended_from: AwareDatetime | None = None
    ended_before: AwareDatetime | None = None
    tags: dict[str, str] = {}
    """The run has all of these, with these values."""
    trigger: tuple[Trigger, ...] = ()
    min_cost_usd: float | None = None
    max_cost_usd: float | None = None
    """Included, as ``min_cost_usd`` is."""
    parent_run_id: str | None = None
    root_run_id: str | None = None
    """A run; it and all its descendants are listed."""
    forked_from: str | None = None
    error: str | None = None
    """A part of the code of the error that it ended with."""
    sort: Literal["created", "ended"] = "created"
    """By ``ended``, only runs that have ended are listed."""
    order: Literal["desc", "asc"] = "desc"
    limit: PageSize = 50
    cursor: str | None = None
    """The ``next_cursor`` of the page before."""


class RunPage(Record):
    """Some runs, without their steps; inputs and outputs above 16 KiB are left out.

    There are more if ``next_cursor`` is given.
    """

    items: tuple[RunView, ...]
    next_cursor: str | None = None


class GetRun(Record):
    """Verb ``get_run``: read one run with its steps, folded from its facts; answers ``RunView``.

    Refused as ``run_not_found``, or as ``reply_too_large``: read its facts instead.
    """

    tenant: Token
    run_id: Token


class RunFacts(Record):
    """Verb ``run_facts``: read a run's facts in the order of the log."""

    tenant: Token
    run_id: Token
    after: int = Field(default=0, ge=0)
    """Leave out facts up to this sequence."""
    limit: PageSize = 500


class ArchivedFact(Record):
    """A fact as the log held it: its body may be a claim."""

    seq: int
    subject: str
    body: str


class FactPage(Record):
    """Some facts; there are more if ``next_after`` is given. A page may be short."""

    items: tuple[ArchivedFact, ...]
    next_after: int | None = None


class OpenRuns(Record):
    """Verb ``open_runs``: find the runs of all tenants that have not ended, the oldest first.

    For engines: facts older than the log are found nowhere else.
    """

    created_before: AwareDatetime
    after: int = Field(default=0, ge=0)
    """Leave out runs whose first fact has a sequence up to this."""
    limit: PageSize = 500


class OpenRun(Record):
    """Where a run is found."""

    tenant: str
    run_id: str


class OpenRunPage(Record):
    """Some open runs; there are more if ``next_after`` is given."""

    items: tuple[OpenRun, ...]
    next_after: int | None = None


# Steps and signals


class ListSteps(Record):
    """Verb ``list_steps``: read step executions, the latest first; all given filters must match."""

    tenant: Token
    run_id: str | None = None
    status: tuple[str, ...] = ()
    kind: tuple[StepKind, ...] = ()
    name: str | None = None
    """Agent, tool or workflow that the step runs."""
    node_id: str | None = None
    scheduled_from: AwareDatetime | None = None
    scheduled_before: AwareDatetime | None = None
    limit: PageSize = 50
    cursor: str | None = None


class StepExecution(StepView):
    """One step of one run. Long outputs are left out; the run has them."""

    run_id: str
    queue: str
    model: str | None = None
    queue_wait_ms: float | None = None
    """From scheduled to started."""
    duration_ms: float | None = None
    """From started to ended."""


class StepPage(Record):
    """Some steps; there are more if ``next_cursor`` is given."""

    items: tuple[StepExecution, ...]
    next_cursor: str | None = None


class ListSignals(Record):
    """Verb ``list_signals``: read what reached runs from outside, the latest first."""

    tenant: Token
    kind: tuple[SignalKind, ...] = ()
    run_id: str | None = None
    """The run that it reached."""
    from_run: str | None = None
    name: str | None = None
    limit: PageSize = 50
    cursor: str | None = None


class SignalView(Record):
    """A signal as clients see it; payloads above 16 KiB are left out."""

    seq: int
    signal_id: str
    run_id: str
    kind: SignalKind
    name: str
    target: str = ""
    from_run: str | None = None
    sent_by: str | None = None
    payload: Json = None
    occurred_at: AwareDatetime


class SignalPage(Record):
    """Some signals; there are more if ``next_cursor`` is given."""

    items: tuple[SignalView, ...]
    next_cursor: str | None = None


# Sessions


class ListSessions(Record):
    """Verb ``list_sessions``: read sessions, the one with the latest run first."""

    tenant: Token
    name: str | None = None
    """What their latest run executed."""
    limit: PageSize = 50
    cursor: str | None = None


class SessionView(Record):
    """A session as clients see it."""

    tenant: str
    session_id: str
    name: str
    """What its latest run executes."""
    runs: int
    last_run_id: str
    created_at: AwareDatetime
    updated_at: AwareDatetime


class SessionPage(Record):
    """Some sessions; there are more if ``next_cursor`` is given."""

    items: tuple[SessionView, ...]
    next_cursor: str | None = None


class GetSession(Record):
    """Verb ``get_session``: read one session; refused as ``session_not_found``."""

    tenant: Token
    session_id: str


class SessionMessages(Record):
    """Verb ``session_messages``: read the messages of a session, oldest first."""

    tenant: Token
    session_id: str
    after: int = Field(default=0, ge=0)
    """Leave out messages up to this sequence."""
    limit: PageSize = 200


class MessageView(Record):
    """One message of a session; ``seq`` is that of the fact behind it."""

    seq: int
    run_id: str
    role: Literal["user", "assistant"]
    content: str
    created_at: AwareDatetime


class MessagePage(Record):
    """Some messages; there are more if ``next_after`` is given. A page may be short."""

    items: tuple[MessageView, ...]
    next_after: int | None = None


class DeleteSession(Record):
    """Verb ``delete_session``: hide a session and its messages.

    Its runs stay. A later run in it begins it anew. Refused as ``session_not_found``.
    """

    tenant: Token
    session_id: str


class SessionDeleted(Record):
    """The session is hidden."""

    session_id: str


# Status


class GetStatus(Record):
    """Verb ``get_status``: how far the archive is; answers ``ArchiveStatus``."""


class ArchiveStatus(Record):
    """How far the archive is."""

    last_seq: int
    """Projected up to here."""
    log_last_seq: int
    lag_messages: int
    rebuilding: bool = False
    rebuild_until: int | None = None
    """Where a rebuild is done."""
