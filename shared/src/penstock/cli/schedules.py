"""Commands about schedules: where they are, pausing, firing, ticks to come.

Only signatures stand here, as in ``app``: what they do is imported when they are called.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

schedules = typer.Typer(
    help="Inspect and control schedules.", no_args_is_help=True, rich_markup_mode=None
)


def add_schedules(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(schedules, name="schedules")


def _work() -> Any:
    """Import what does the commands' work."""
    return importlib.import_module("penstock.cli.timetable")


@schedules.command("list")
def list_all(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """List schedules with their next tick and the outcome of the last one."""
    _work().list_schedules(context.obj, limit=limit, as_json=as_json)


@schedules.command("show")
def show(
    context: typer.Context,
    name: Name,
    runs: Annotated[int, typer.Option(min=0, max=100, help="Number of latest runs.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a schedule, its state and its latest runs."""
    _work().show_schedule(context.obj, name, runs=runs, as_json=as_json)


@schedules.command("pause")
def pause(
    context: typer.Context,
    name: Name,
    reason: Annotated[str, typer.Option(help="Reason; stored with the schedule.")] = "",
) -> None:
    """Pause a schedule: skip its ticks until it is resumed."""
    _work().pause_schedule(context.obj, name, reason=reason)


@schedules.command("resume")
def resume(context: typer.Context, name: Name) -> None:
    """Resume a schedule; ticks during the pause stay skipped."""
    _work().resume_schedule(context.obj, name)


@schedules.command("trigger")
def trigger(
    context: typer.Context,
    name: Name,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="Repeated calls with the same key start one run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run of the schedule now; its ticks do not change."""
    _work().trigger_schedule(context.obj, name, key=key, as_json=as_json)


@schedules.command("next")
def show_next(
    context: typer.Context,
    name: Name,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="How many.")] = 5,
    after: Annotated[
        str | None, typer.Option(help="Not from now, from then on (RFC 3339).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the next ticks in UTC and in the time zone of the schedule."""
    _work().show_ticks(context.obj, name, count=count, after=after, as_json=as_json)
