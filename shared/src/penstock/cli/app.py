"""The command ``penstock``: names, options and help of everything that it can do.

Only signatures stand here. Each command imports its module when it is called, so that
``penstock --help`` starts no HTTP client, no NATS client and no terminal library.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from penstock.cli import control, definitions, observability, recovery, schedules
from penstock.cli.failure import CommandError, tell
from penstock.target import DEFAULT_DATA_DIR, Target, find_target

app = typer.Typer(
    name="penstock",
    help="Durable agents, tools and workflows on NATS JetStream.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: Typer's rich one takes 0.25 s to import Markdown, Pygments and the rest.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
runs = typer.Typer(
    help="Inspect, follow, control and recover runs.", no_args_is_help=True, rich_markup_mode=None
)
keys = typer.Typer(
    help="Create, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None
)
services = typer.Typer(
    help="Inspect or run single services of the local stack.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(runs, name="runs")
app.add_typer(keys, name="keys")
app.add_typer(services, name="services")
observability.add_groups(app)
control.add_control(app, runs)
recovery.add_recovery(app, runs)
definitions.add_definitions(app)
schedules.add_schedules(app)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number.")]


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="The gateway; else PENSTOCK_URL.", show_default=False)
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(help=f"Folder of a local stack; else {DEFAULT_DATA_DIR}."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="API key; else PENSTOCK_API_KEY.")] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="Tenant of commands that use the bus directly; else PENSTOCK_TENANT."),
    ] = None,
) -> None:
    """Global options come before the command."""
    context.obj = find_target(url=url, data_dir=data_dir, api_key=api_key, tenant=tenant)


@app.command()
def dev(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP; 0: any free.")] = 8080,
    nats_port: Annotated[int, typer.Option(min=0, max=65535, help="Bus; 0: any free.")] = 4222,
    data_dir: Annotated[str | None, typer.Option(help="Data folder.")] = None,
    durable: Annotated[
        bool, typer.Option("--durable", help="Flush each message to disk before its ack.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address of the gateway.")] = "127.0.0.1",
    auth: Annotated[
        bool, typer.Option("--auth", help="Ask for API keys (see `penstock keys create`).")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the services' logs here.")
    ] = False,
) -> None:
    """Start a bus and all services on this machine, until Ctrl-C."""
    from penstock.cli.dev import run_stack
    from penstock.stack import StackOptions

    target: Target = context.obj
    run_stack(
        StackOptions(
            data_dir=data_dir or str(target.data_dir),
            host=host,
            port=port,
            nats_port=nats_port,
            durable=durable,
            auth=auth,
            verbose=verbose,
        )
    )


@app.command()
def apply(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="The same as --file.", show_default=False),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", help="YAML file, folder of them, or - for standard input."),
    ] = None,
    publish: Annotated[bool, typer.Option(help="Also publish them.")] = True,
) -> None:
    """Store agents, tools, workflows, networks, webhooks and schedules, all or none."""
    from penstock.cli.apply import apply_files

    apply_files(context.obj, [*(sources or ()), *(files or ())], publish=publish)


@app.command()
def invoke(  # noqa: PLR0913, PLR0917 - one parameter for each option
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Agent or workflow.")],
    input_text: Annotated[
        str,
        typer.Option("--input", "-i", help="JSON, or text, or @file, or @- for standard input."),
    ] = "null",
    follow: Annotated[bool, typer.Option("--follow", help="Show its events as they come.")] = False,
    wait: Annotated[
        int | None, typer.Option(min=1, help="Wait up to this many seconds for the end.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Continue this conversation.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Repeated calls with the same key start one run.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Priority in queues; higher runs first.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="Such as max_tokens=1000; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run of an agent, a workflow or a network: NAME, NAME@VERSION or NAME@ALIAS."""
    from penstock.cli.invoke import InvokeOptions, invoke_name

    chosen = InvokeOptions(
        input_text=input_text,
        follow=follow,
        wait_seconds=wait,
        session_id=session,
        idempotency_key=idempotency_key,
        as_json=as_json,
        priority=priority,
        tags=tuple(tag or ()),
        limits=tuple(limit or ()),
    )
    invoke_name(context.obj, name, chosen)


@runs.command("list")
def list_runs(  # noqa: PLR0913, PLR0917 - one parameter for each filter
    context: typer.Context,
    status: Annotated[
        list[str] | None, typer.Option(help="Only runs in this status; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only of this agent or workflow.")] = None,
    since: observability.Since = None,
    until: observability.Until = None,
    session: Annotated[str | None, typer.Option(help="Only of this session.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only with NAME=VALUE; may be repeated.")
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="Only with this trigger: http, webhook, schedule, ...")
    ] = None,
    min_cost: Annotated[float | None, typer.Option(min=0, help="In USD.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="In USD.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only started by this run.")] = None,
    root: Annotated[str | None, typer.Option(help="This run and all its descendants.")] = None,
    error: Annotated[str | None, typer.Option(help="Part of the error's code.")] = None,
    sort: Annotated[str, typer.Option(help="created, or ended (ended runs alone).")] = "created",
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="Reverse the order.")
    ] = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    from penstock.cli.runs import list_runs as run

    wanted = {
        "status": status,
        "name": name,
        "session_id": session,
        "tag": tag,
        "trigger": trigger,
        "min_cost": min_cost,
        "max_cost": max_cost,
        "parent": parent,
        "root": root,
        "error": error,
        "sort": sort,
        "order": "asc" if oldest_first else None,
    }
    run(context.obj, wanted, since=since, until=until, limit=limit, as_json=as_json)


@runs.command()
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
    from penstock.cli.runs import show_run

    show_run(context.obj, run_id, at_seq=at, node_records=node_records, as_json=as_json)


@runs.command()
def tail(
    context: typer.Context,
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Id of the run.", show_default=False)
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Instead: facts of all runs straight from the bus, such as 'run.>'."),
    ] = None,
    after: Annotated[str, typer.Option(help="Only events after this one.")] = "0",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Stop after this many.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow one run until it ends, or all facts that match a subject."""
    if (run_id is None) == (subject is None):
        raise typer.BadParameter("give either a run or --subject")
    if subject is not None:
        from penstock.cli.replay import tail_subject

        tail_subject(context.obj, subject, limit=limit, as_json=as_json)
    elif run_id is not None:
        from penstock.cli.runs import tail_run

        tail_run(context.obj, run_id, after=after, limit=limit, as_json=as_json)


@runs.command()
def cancel(
    context: typer.Context,
    run_id: RunId,
    reason: Annotated[str, typer.Option(help="Reason; stored with the run.")] = "",
) -> None:
    """Cancel a run."""
    from penstock.cli.runs import cancel_run

    cancel_run(context.obj, run_id, reason=reason)


@app.command()
def runners(context: typer.Context, as_json: AsJson = False) -> None:
    """List live runners."""
    from penstock.cli.runs import list_runners

    list_runners(context.obj, as_json=as_json)


@keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Display name.")] = "",
    role: Annotated[
        list[str] | None, typer.Option(help="admin, operator, viewer or runner.")
    ] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, help="Days until the key expires.")
    ] = None,
) -> None:
    """Create an API key and print its secret once."""
    from penstock.cli.keys import create

    create(context.obj, name=name, roles=role or ["operator"], expires_days=expires_days)


@keys.command("list")
def list_keys(
    context: typer.Context,
    revoked: Annotated[bool, typer.Option("--revoked", help="Revoked ones as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """List keys, without their secrets."""
    from penstock.cli.keys import list_all

    list_all(context.obj, revoked=revoked, as_json=as_json)


@keys.command("revoke")
def revoke_key(
    context: typer.Context, key_id: Annotated[str, typer.Argument(metavar="KEY")]
) -> None:
    """Revoke an API key at once."""
    from penstock.cli.keys import revoke

    revoke(context.obj, key_id)


@app.command()
def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Check bus, services and databases; exit code 1 if one fails."""
    from penstock.cli.doctor import examine

    examine(context.obj, as_json=as_json)


@services.command("list")
def list_services(context: typer.Context, as_json: AsJson = False) -> None:
    """List the processes of the local stack."""
    from penstock.cli.dev import list_processes

    list_processes(context.obj, as_json=as_json)


@services.command("run")
def run_service(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="gateway, registry, engine, projector, ...")],
) -> None:
    """Run one more replica of a service, beside the local stack, in the foreground."""
    from penstock.cli.dev import run_replica

    run_replica(context.obj, name)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"penstock {installed('penstock')}")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except CommandError as error:
        tell(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read us (`| head`) has seen enough; Python's last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
