"""``penstock invoke``: start a run, and follow or await it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.display import compact, console, print_json, status_text
from penstock.cli.gateway import gateway
from penstock.cli.inputs import read_pairs, read_start_input, read_values
from penstock.cli.options import AsJson, Follow, StartKey, Tag

if TYPE_CHECKING:
    from penstock.runs.views import RunView


def invoke(  # noqa: PLR0913, PLR0917 - one parameter for each option
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME, NAME@VERSION or NAME@ALIAS.")],
    input_value: Annotated[
        str | None,
        typer.Option("--input", "-i", help="JSON, text, @file, or @- for standard input."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Input that is text, also if it looks like JSON or @file.")
    ] = None,
    follow: Follow = False,
    wait: Annotated[
        int | None, typer.Option(min=1, help="Wait up to this many seconds for the end.")
    ] = None,
    session: Annotated[
        str | None, typer.Option(help="Continue the conversation of this session.")
    ] = None,
    idempotency_key: StartKey = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Priority in queues; higher runs first.")
    ] = None,
    tag: Tag = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="Limit such as max_tokens=1000; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run; the exit code is 1 if its end was awaited and is not ``done``."""
    value = read_start_input(input_value, text)
    tags = read_pairs(tag, option="--tag")
    limits = read_values(limit, option="--limit")
    from penstock.cli.events import exit_code, follow_run, interrupted

    with gateway(context) as client:
        run = client.start(
            name,
            value,
            session_id=session,
            tags=tags,
            limits=limits,
            priority=priority,
            idempotency_key=idempotency_key,
        )
        if follow or wait:
            typer.echo(run.run_id, err=True)  # before its events or its end, which may be late
        if follow:
            raise typer.Exit(exit_code(follow_run(client, run.run_id, as_json=as_json)))
        if wait:
            try:
                run = client.wait(run.run_id, wait)
            except KeyboardInterrupt:
                raise interrupted(run.run_id) from None
    if as_json:
        print_json(run)
    else:
        _print_run(run)
    if wait:
        raise typer.Exit(exit_code(run.status))


def _print_run(run: RunView) -> None:
    screen = console()
    screen.print(run.run_id, status_text(run.status))
    if run.error is not None:
        screen.print(f"{run.error.code}: {run.error.message}", style="red")
    elif run.status == "done" and isinstance(run.output, str):
        screen.print(compact(run.output, 4000))
    elif run.status == "done":
        print_json(run.output)
