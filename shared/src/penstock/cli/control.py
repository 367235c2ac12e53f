"""Commands that control runs: signals, approvals, client tools, pause, cancelling many.

Only signatures stand here, as in ``app``: what they do is imported when they are called.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
StepId = Annotated[str, typer.Argument(metavar="STEP", help="Id of the step.")]
RecordId = Annotated[str, typer.Argument(metavar="RECORD", help="Id of the pending request.")]
First = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
Second = Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)]
Payload = Annotated[
    str, typer.Option("--payload", "-p", help="JSON, or text, or @file, or @- for standard input.")
]
Key = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="Repeated calls with the same key send it once."),
]
Reason = Annotated[str, typer.Option(help="Reason; stored with the run.")]
Digest = Annotated[str | None, typer.Option(help="Digest of the request, as the list shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

signals = typer.Typer(rich_markup_mode=None)
control = typer.Typer(rich_markup_mode=None)
approvals = typer.Typer(
    help="List, approve or reject pending approvals.", no_args_is_help=True, rich_markup_mode=None
)


def add_control(app: typer.Typer, runs: typer.Typer) -> None:
    """Add the commands.

    Args:
        app: The command line.
        runs: Its group about runs.
    """
    app.add_typer(signals)
    app.add_typer(approvals, name="approvals")
    runs.add_typer(control)


def _work(name: str) -> Any:
    """Import what does a command's work."""
    return importlib.import_module(f"penstock.cli.{name}")


@signals.command("signal")
def signal(
    context: typer.Context,
    run_id: First,
    name: Second = None,
    payload: Payload = "null",
    correlation: Annotated[
        str | None,
        typer.Option(help="Instead of RUN: all runs that wait for this key."),
    ] = None,
    idempotency_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Send an event to a run, or to those that wait for a key."""
    send_event = _work("signals").send_event
    run, event = _target(run_id, name, correlation, "--correlation")
    send_event(context.obj, run, correlation, event, payload, key=idempotency_key, as_json=as_json)


@control.command("message")
def message(
    context: typer.Context,
    run_id: First,
    name: Second = None,
    payload: Payload = "null",
    session: Annotated[
        str | None, typer.Option(help="Instead of RUN: the latest run of this session.")
    ] = None,
    sender: Annotated[str | None, typer.Option("--from", help="The run that sends it.")] = None,
    idempotency_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Send a message to a run, or to the latest one of a session."""
    send_message = _work("signals").send_message
    run, title = _target(run_id, name, session, "--session")
    place = f"/v1/runs/{run}" if run is not None else f"/v1/sessions/{session}"
    send_message(
        context.obj, place, title, payload, sender=sender, key=idempotency_key, as_json=as_json
    )


def _target(
    first: str, second: str | None, instead: str | None, option: str
) -> tuple[str | None, str]:
    """Tell run and name apart: with the option, the only argument is the name."""
    if (second is None) == (instead is None):
        raise typer.BadParameter(f"give RUN and NAME, or NAME and {option}")
    return (first, second) if second is not None else (None, first)


@control.command("pause")
def pause(context: typer.Context, run_id: RunId, reason: Reason = "") -> None:
    """Pause a run: running steps finish, no new step starts."""
    hold = _work("holding").hold
    hold(context.obj, run_id, "pause", reason=reason)


@control.command("resume")
def resume(context: typer.Context, run_id: RunId, reason: Reason = "") -> None:
    """Resume a paused run."""
    hold = _work("holding").hold
    hold(context.obj, run_id, "resume", reason=reason)


@control.command("cancel-step")
def cancel_step(
    context: typer.Context, run_id: RunId, step_id: StepId, reason: Reason = ""
) -> None:
    """Cancel one step: its attempt, or its child run with all descendants."""
    run = _work("holding").cancel_step
    run(context.obj, run_id, step_id, reason=reason)


@control.command("cancel-many")
def cancel_many(  # noqa: PLR0913, PLR0917 - one parameter for each filter
    context: typer.Context,
    status: Annotated[
        list[str] | None, typer.Option(help="created, running, waiting or paused.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only of this definition.")] = None,
    session: Annotated[str | None, typer.Option(help="Only of this session.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag: NAME=VALUE.")] = None,
    before: Annotated[
        str | None, typer.Option(help="Only created before this time (RFC 3339).")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the matching runs.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Without a filter: every open run.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Cancel all open runs that match a filter."""
    run = _work("holding").cancel_many
    filters = {
        "status": status,
        "name": name,
        "session_id": session,
        "tag": tag,
        "created_before": before,
    }
    given = {field: value for field, value in filters.items() if value}
    if not given and not everything:
        raise typer.BadParameter("give a filter, or --all")
    run(context.obj, given, limit=limit, dry_run=dry_run, reason=reason, as_json=as_json)


@control.command("tool-calls")
def tool_calls(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """List the pending client tool calls of a run."""
    list_calls = _work("questions").list_calls
    list_calls(context.obj, run_id, as_json=as_json)


@control.command("tool-result")
def tool_result(
    context: typer.Context,
    run_id: RunId,
    step_id: StepId,
    output: Annotated[
        str, typer.Option("--output", "-o", help="JSON, or text, or @file, or @-.")
    ] = "null",
    error: Annotated[str | None, typer.Option(help="Fail the call with this error.")] = None,
    wait: Annotated[
        int | None, typer.Option(min=1, help="Seconds to wait for the end or the next call.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit the result of a client tool call."""
    send_result = _work("questions").send_result
    send_result(context.obj, run_id, step_id, output, error=error, wait=wait, as_json=as_json)


@control.command("unknown")
def unknown(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """List steps with an unknown outcome, which wait for a resolution."""
    list_unknown = _work("questions").list_unknown
    list_unknown(context.obj, run_id, as_json=as_json)


@control.command("resolve")
def resolve(
    context: typer.Context,
    run_id: RunId,
    step_id: StepId,
    action: Annotated[str, typer.Argument(metavar="retry|succeed|fail")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="With succeed: JSON, text, @file or @-.")
    ] = None,
    digest: Digest = None,
    reason: Reason = "",
) -> None:
    """Resolve the unknown outcome of a lost attempt."""
    run = _work("questions").resolve
    run(context.obj, run_id, step_id, action, output=output, digest=digest, reason=reason)


@approvals.command("list")
def list_approvals(
    context: typer.Context,
    status: Annotated[
        str, typer.Option(help="open; of one run also approved, rejected, expired, closed, all.")
    ] = "open",
    role: Annotated[str | None, typer.Option(help="Only those that this role may answer.")] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Only of this run.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 100,
    as_json: AsJson = False,
) -> None:
    """List open approvals, the oldest first."""
    run = _work("questions").list_approvals
    run(context.obj, status=status, role=role, run_id=run_id, limit=limit, as_json=as_json)


@approvals.command("show")
def show_approval(
    context: typer.Context, run_id: RunId, record_id: RecordId, as_json: AsJson = False
) -> None:
    """Show one approval with the exact arguments of the call."""
    run = _work("questions").show_approval
    run(context.obj, run_id, record_id, as_json=as_json)


@approvals.command("approve")
def approve(
    context: typer.Context,
    run_id: RunId,
    record_id: RecordId,
    digest: Digest = None,
    reason: Reason = "",
) -> None:
    """Approve a pending request."""
    decide = _work("questions").decide
    decide(context.obj, run_id, record_id, "approve", digest=digest, reason=reason)


@approvals.command("reject")
def reject(
    context: typer.Context,
    run_id: RunId,
    record_id: RecordId,
    digest: Digest = None,
    reason: Reason = "",
) -> None:
    """Reject a pending request."""
    decide = _work("questions").decide
    decide(context.obj, run_id, record_id, "reject", digest=digest, reason=reason)
