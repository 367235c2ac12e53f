"""Requests to the archive and its replies; they travel in the envelope of ``contracts/rpc.py``.

The archive is behind the log by a fraction of a second, more where its database was away. Requests
name their tenant: whoever asks has checked that it may speak for it. Lists are newest first.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import AwareDatetime, Field

from penstock.contracts.facts import DefinitionKind, Record, RunStatus, Usage
from penstock.contracts.ids import Token
from penstock.contracts.rpc import PageSize
from penstock.contracts.views import RunView

RESTORED_HEADER: Final = "Penstock-Restored"
"""Stands on facts that were put back into the log from the archive: nobody acts on them."""

# Runs


class ListRuns(Record):
    """Verb ``list_runs``: read runs, the latest first; all filters that are given must match."""

    tenant: Token
    status: tuple[RunStatus, ...] = ()
    """Any of these; none given means all."""
    name: str | None = None
    kind: DefinitionKind | None = None
    session_id: str | None = None
    created_from: AwareDatetime | None = None
    created_before: AwareDatetime | None = None
    tags: dict[str, str] = {}
    """The run has all of these, with these values."""
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
    """Verb ``session_messages``: read what was said in a session, oldest first."""

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


# Usage


class UsageSummary(Record):
    """Verb ``usage_summary``: what model calls cost, by provider and model."""

    tenant: Token
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    """Not included."""
    name: str | None = None
    """Of one agent only."""


class UsageLine(Record):
    """What the calls of one model cost."""

    provider: str
    """Empty where the model's name says nothing of it."""
    model: str
    usage: Usage


class UsageReport(Record):
    """What model calls cost, the dearest first, and all together."""

    items: tuple[UsageLine, ...]
    total: Usage
