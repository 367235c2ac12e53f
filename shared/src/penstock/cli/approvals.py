"""``penstock approvals``: list, show and answer pending approvals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from penstock.cli.display import (
    compact,
    console,
    moment,
    print_done,
    print_facts,
    print_json,
    print_list,
    status_text,
)
from penstock.cli.gateway import gateway
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, Digest, Limit, Reason, RunId, find_run

if TYPE_CHECKING:
    from rich.text import Text

    from penstock.runs.replies import ApprovalView

RecordId = Annotated[str, typer.Argument(metavar="RECORD", help="Id of the pending request.")]

app = group()


@app.command("list")
def list_approvals(
    context: typer.Context,
    status: Annotated[
        str, typer.Option(help="open; with --run also approved, rejected, expired, closed, all.")
    ] = "open",
    role: Annotated[
        str | None, typer.Option(help="Only approvals that this role may answer.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--run", help="Only approvals of this run.", callback=find_run)
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List open approvals, the oldest first."""
    with gateway(context) as client:
        found = list(client.approvals(status=status, role=role, run_id=run_id, limit=limit))
    columns: dict[str, Callable[[ApprovalView], str | Text]] = {
        "run": lambda one: one.run_id,
        "record": lambda one: one.record_id,
        "status": lambda one: status_text(one.status),
        "role": lambda one: one.role or "",
        "asked": lambda one: moment(one.asked_at),
        "expires": lambda one: moment(one.expires_at),
        "what": lambda one: f"{_call(one)} {one.message}".strip(),
    }
    print_list(found, columns, as_json=as_json)


def _call(one: ApprovalView) -> str:
    return f"{one.tool}({compact(one.arguments, 120)})" if one.tool else ""


@app.command()
def show(
    context: typer.Context, run_id: RunId, record_id: RecordId, as_json: AsJson = False
) -> None:
    """Show one approval with the exact arguments of the call."""
    with gateway(context) as client:
        one = client.approval(run_id, record_id)
    if as_json:
        print_json(one)
        return
    screen = console()
    screen.print(one.run_id, one.record_id, status_text(one.status))
    decided = one.decided
    answer = (decided.decision, decided.by, decided.reason) if decided else ()
    facts = {
        "asks": one.tool or one.step_id,
        "message": one.message,
        "role": one.role,
        "digest": one.digest,
        "asked": moment(one.asked_at),
        "expires": moment(one.expires_at),
        "decided": " ".join(part for part in answer if part),
    }
    print_facts(screen, facts)
    print_json(one.arguments)


def _add(act: Literal["approve", "reject"]) -> None:
    """Add a command that answers an approval."""

    @app.command(act, help=f"{act.capitalize()} a pending request.")
    def command(
        context: typer.Context,
        run_id: RunId,
        record_id: RecordId,
        digest: Digest = None,
        reason: Reason = "",
        as_json: AsJson = False,
    ) -> None:
        with gateway(context) as client:
            answer = client.approve if act == "approve" else client.reject
            one = answer(run_id, record_id, digest=digest, reason=reason)
        by = f"by {(one.decided and one.decided.by) or ''}"
        print_done(one, run_id, record_id, status_text(one.status), by, as_json=as_json)


_add("approve")
_add("reject")
