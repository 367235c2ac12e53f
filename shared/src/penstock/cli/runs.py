"""``penstock runs``: list, show, follow and control runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from penstock.cli import bundles, forks, pending, signals
from penstock.cli.display import (
    compact,
    console,
    moment,
    print_done,
    print_facts,
    print_json,
    print_list,
    seconds_between,
    status_text,
    table,
)
from penstock.cli.failure import FAILED
from penstock.cli.gateway import LONG_SECONDS, gateway, send
from penstock.cli.inputs import read_pairs
from penstock.cli.lazy import group
from penstock.cli.options import (
    AsJson,
    DryRun,
    Limit,
    Reason,
    RunId,
    Session,
    Since,
    StepId,
    Tag,
    Until,
    find_run,
)
from penstock.cli.time_ranges import instant

if TYPE_CHECKING:
    from rich.text import Text

    from penstock.contracts.errors import ErrorInfo
    from penstock.contracts.json import Json
    from penstock.contracts.usage import Usage
    from penstock.runs.views import BudgetView, NodeRecordView, RunView, StepView

_LIST_WIDTH: Final = 92
"""Columns that a list of runs takes before the outcome."""
_OUTCOME: Final = 200

CONTROL: Final = "Control"
"""Heading of the commands that control runs."""

Sort = Literal["created", "ended"]

app = group()


@app.command("list")
def list_runs(  # noqa: PLR0913, PLR0917 - one parameter for each filter
    context: typer.Context,
    status: Annotated[
        list[str] | None, typer.Option(help="Only runs in this status; may be repeated.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only runs of this agent, workflow or network.")
    ] = None,
    since: Since = None,
    until: Until = None,
    session: Session = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only with NAME=VALUE; may be repeated.")
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="Only with this trigger: http, webhook, schedule, ...")
    ] = None,
    min_cost: Annotated[
        float | None, typer.Option(min=0, help="Only from this cost, in USD.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Only up to it, in USD.")] = None,
    parent: Annotated[
        str | None, typer.Option(help="Only child runs of this run.", callback=find_run)
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="Only this run and its descendants.", callback=find_run)
    ] = None,
    error: Annotated[
        str | None, typer.Option(help="Only runs whose error code contains this.")
    ] = None,
    sort: Annotated[Sort, typer.Option(help="By time of start, or of end (ended runs only).")] = (
        "created"
    ),
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="Reverse the order.")
    ] = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    with gateway(context) as client:
        found = list(
            client.runs(
                limit=limit,
                status=status or (),
                name=name,
                created_from=instant(since, option="--since"),
                created_before=instant(until, option="--until"),
                session_id=session,
                tag=tag or (),
                trigger=trigger or (),
                min_cost=min_cost,
                max_cost=max_cost,
                parent=parent,
                root=root,
                error=error,
                sort=sort,
                order="asc" if oldest_first else "desc",
            )
        )
    print_runs(found, as_json=as_json)


def print_runs(found: Sequence[RunView], *, as_json: bool = False) -> None:
    """Print a table of runs."""
    room = min(max(20, console().width - _LIST_WIDTH), _OUTCOME)
    columns: dict[str, Callable[[RunView], str | Text]] = {
        "run": lambda run: run.run_id,
        "status": lambda run: status_text(run.status),
        "name": lambda run: f"{run.name} v{run.version}",
        "trigger": lambda run: run.trigger,
        "created": lambda run: moment(run.created_at),
        "took": lambda run: seconds_between(run.created_at, run.ended_at),
        "outcome": lambda run: compact(_outcome(run.error, run.output), room),
    }
    print_list(found, columns, as_json=as_json)


def _outcome(error: ErrorInfo | None, output: Json) -> Json:
    return f"{error.code}: {error.message}" if error else output


@app.command()
def show(
    context: typer.Context,
    run_id: RunId,
    at: Annotated[
        int | None, typer.Option(min=1, help="Show the run as of this sequence of the log.")
    ] = None,
    node_records: Annotated[
        bool, typer.Option("--records", help="Include all node records.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run with its steps and pending requests."""
    with gateway(context) as client:
        run = client.get_all(run_id, at_seq=at, node_records=node_records)
    if as_json:
        print_json(run)
        return
    screen = console()
    screen.print(run.run_id, status_text(run.status), f"{run.name} v{run.version}")
    origin = run.forked_from
    facts = {
        "kind": run.kind,
        "trigger": run.trigger,
        "session": run.session_id,
        "created": moment(run.created_at),
        "took": seconds_between(run.created_at, run.ended_at),
        "input": compact(run.input),
        "output": compact(run.output),
        "error": compact(_outcome(run.error, None)),
        "cost": _cost(run.usage),
        "left": _left(run.budget),
        "parent": run.parent and run.parent.run_id,
        "from": origin and f"{origin.run_id} at {origin.at_seq} ({origin.mode})",
        "imported": run.imported and f"{run.imported.run_id} of {run.imported.tenant}",
        "children": ", ".join(child.run_id for child in run.children),
    }
    print_facts(screen, facts)
    if run.steps:
        titles = ("step", "kind", "name", "status", "attempt", "took", "outcome")
        screen.print(table(titles, map(_step_row, run.steps)))
    waiting = Counter(
        f"{step.kind}.{step.queue}" for step in run.steps if step.activity == "unserved"
    )
    for queue, count in waiting.items():
        screen.print(f"  no runner serves queue {queue}; waiting steps: {count}", style="yellow")
    for title, records in (("waits for", run.waiting_for), ("decided", run.node_records)):
        if records:
            columns = (title, "kind", "status", "until", "what")
            screen.print(table(columns, map(_record_row, records)))
    for record in run.waiting_for:
        if answer := pending.answer_command(run.run_id, record):
            screen.print(f"  to answer: {answer}")


def _step_row(step: StepView) -> tuple[str | Text, ...]:
    outcome = compact(_outcome(step.error, step.output), 80)
    return (
        step.step_id,
        step.kind,
        step.name,
        status_text(step.activity or step.status),
        str(step.attempt),
        seconds_between(step.started_at, step.ended_at),
        outcome or compact(step.progress or "", 80),
    )


def _record_row(record: NodeRecordView) -> tuple[str, str, Text, str, str]:
    request = record.request
    parts = (
        request and request.name,
        request and compact(request.arguments, 80),
        request and compact(request.message, 200),
        record.choice,
        compact(_outcome(record.error, record.output), 80),
    )
    what = " ".join(str(part) for part in parts if part)
    return (
        record.record_id,
        record.kind,
        status_text(record.status),
        moment(record.due_at),
        what,
    )


def _left(budget: BudgetView | None) -> str:
    if budget is None:
        return ""
    return ", ".join(
        f"{part.left:g} of {part.limit:g} {name}" for name, part in budget if part is not None
    )


def _cost(usage: Usage) -> str:
    if not usage.model_calls:
        return ""
    price = f"${usage.cost_usd:.6f}" + (" or more" if usage.unknown_price else "")
    tokens = f"{usage.input_tokens} + {usage.output_tokens} tokens"
    return f"{price}, {tokens}, {usage.model_calls} model calls"


@app.command()
def tail(
    context: typer.Context,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Id of the run, or its beginning.",
            show_default=False,
            callback=find_run,
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Instead of RUN: facts of all runs from the bus, such as 'run.>'."),
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Only events after the one with this id.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Stop after this many events.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow a run until it ends, or facts that match a subject."""
    if subject is not None and run_id is None:
        from penstock.cli.fold import tail_subject

        tail_subject(context.obj, subject, limit=limit, as_json=as_json)
    elif run_id is not None and subject is None:
        from penstock.cli.events import follow_run

        with gateway(context) as client:
            status = follow_run(client, run_id, after=after, limit=limit, as_json=as_json)
        if status in ("failed", "cancelled"):
            raise typer.Exit(FAILED)
    else:
        raise typer.BadParameter("give either a run or --subject")


def _add(act: Literal["cancel", "pause", "resume"], summary: str) -> None:
    """Add a command that controls one run."""

    @app.command(act, help=summary, rich_help_panel=CONTROL)
    def command(
        context: typer.Context, run_id: RunId, reason: Reason = "", as_json: AsJson = False
    ) -> None:
        with gateway(context) as client:
            control = {"cancel": client.cancel, "pause": client.pause, "resume": client.resume}
            run = control[act](run_id, reason=reason)
        # A request to cancel that counts is followed by its end: the run is still open.
        ended = " has ended before; nothing was cancelled:" if run.status.final else ""
        print_done(run, f"{run_id}{ended}", status_text(run.status), as_json=as_json)


_add("cancel", "Cancel a run.")
_add("pause", "Pause a run: running steps finish, no new step starts.")
_add("resume", "Resume a paused run.")


@app.command("cancel-step", rich_help_panel=CONTROL)
def cancel_step(
    context: typer.Context,
    run_id: RunId,
    step_id: StepId,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Cancel one step. Cancels its attempt, or its child run with all descendants."""
    with gateway(context) as client:
        client.cancel_step(run_id, step_id, reason=reason)
        run = client.get_all(run_id)
    step = next(step for step in run.steps if step.step_id == step_id)
    print_done(step, run_id, step_id, status_text(step.status), as_json=as_json)


@app.command("cancel-many", rich_help_panel=CONTROL)
def cancel_many(  # noqa: PLR0913, PLR0917 - one parameter for each filter
    context: typer.Context,
    status: Annotated[
        list[str] | None, typer.Option(help="Only in this status; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only runs of this definition.")] = None,
    session: Session = None,
    tag: Tag = None,
    before: Annotated[
        str | None, typer.Option(help="Only created before this time (RFC 3339).")
    ] = None,
    limit: Limit = 1000,
    dry_run: DryRun = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Without a filter: every open run.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Cancel all open runs that match the filters."""
    filters: dict[str, Json] = {
        "status": list(status or ()),
        "name": name,
        "session_id": session,
        "tag": dict(read_pairs(tag, option="--tag")),
        "created_before": before,
    }
    given = {field: value for field, value in filters.items() if value}
    if not given and not everything:
        raise typer.BadParameter("give a filter, or --all")
    from penstock.runs.replies import RunsCancelled

    body: Json = {**given, "limit": limit, "dry_run": dry_run, "reason": reason}
    path = "/v1/runs/cancel"
    done = send(context, RunsCancelled, "POST", path, body, timeout_seconds=LONG_SECONDS)
    if as_json:
        print_json(done)
        return
    screen = console()
    for run_id in done.asked:
        screen.print(run_id, "would be asked to stop" if dry_run else "asked to stop")
    for run_id in done.asked_before:
        screen.print(run_id, "was asked before", style="dim")
    for run_id in done.ended:
        screen.print(run_id, "has ended", style="dim")
    more = "; there are more" if done.more else ""
    screen.print(f"{done.matched} runs matched, {len(done.asked)} asked{more}")


@app.command()
def fold(
    context: typer.Context,
    run_id: RunId,
    until: Annotated[
        int | None, typer.Option(min=1, help="Stop at this sequence of the log.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fold the log of a run. Prints the state after each fact; starts nothing."""
    from penstock.cli.fold import fold_run

    fold_run(context.obj, run_id, until_seq=until, as_json=as_json)


for section, part in (
    (CONTROL, signals),
    ("Answers", pending),
    ("Repetitions", forks),
    ("Bundles", bundles),
):
    for added in part.app.registered_commands:
        added.rich_help_panel = section
    app.add_typer(part.app)
