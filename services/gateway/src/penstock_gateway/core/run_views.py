"""Runs as clients see them, made of the facts at hand rather than of the whole log."""

from __future__ import annotations

from penstock.contracts.facts import RunEnded, RunInvoked, RunStatus
from penstock.runs.views import RunView


def begun_view(tenant: str, run_id: str, seq: int, invoked: RunInvoked) -> RunView:
    """Return a run of which only its beginning is known."""
    return RunView(
        run_id=run_id,
        tenant=tenant,
        name=invoked.name,
        kind=invoked.kind,
        version=invoked.version,
        plan_digest=invoked.plan_digest,
        status=RunStatus.CREATED,
        trigger=invoked.trigger,
        session_id=invoked.session_id,
        input=invoked.input,
        tags=invoked.tags,
        created_at=invoked.occurred_at,
        updated_at=invoked.occurred_at,
        last_seq=seq,
        parent=invoked.parent,
        forked_from=invoked.forked_from,
        priority=invoked.priority,
        limits=invoked.limits,
    )


def ended_view(tenant: str, run_id: str, seq: int, invoked: RunInvoked, ended: RunEnded) -> RunView:
    """Return a run of which its beginning and its end are known, without its steps."""
    return RunView(
        run_id=run_id,
        tenant=tenant,
        name=invoked.name,
        kind=invoked.kind,
        version=invoked.version,
        plan_digest=invoked.plan_digest,
        status=ended.status,
        trigger=invoked.trigger,
        session_id=invoked.session_id,
        input=invoked.input,
        output=ended.output,
        error=ended.error,
        usage=ended.usage,
        tags=invoked.tags,
        created_at=invoked.occurred_at,
        updated_at=ended.occurred_at,
        ended_at=ended.occurred_at,
        last_seq=seq,
        parent=invoked.parent,
        forked_from=invoked.forked_from,
        priority=invoked.priority,
        limits=invoked.limits,
    )
