"""Commands about what the archive knows: reports, keeping and deleting, and sinks.

Only signatures stand here; what they do is imported when they are called.
"""

from __future__ import annotations

import enum
import importlib
from typing import Annotated, Any

import typer


class Format(enum.StrEnum):
    """How a report is printed."""

    TABLE = "table"
    JSON = "json"


observability = typer.Typer(
    help="Archive status, cost and profile reports.", no_args_is_help=True, rich_markup_mode=None
)
history = typer.Typer(
    help="Rebuild the archive, restore or delete runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
sink = typer.Typer(
    help="Export ended runs to other systems.", no_args_is_help=True, rich_markup_mode=None
)

Since = Annotated[
    str | None, typer.Option(help="ISO time, or a time ago: 30m, 24h, 7d.", show_default=False)
]
Until = Annotated[
    str | None, typer.Option(help="The same; later runs are left out.", show_default=False)
]
Name = Annotated[
    str | None, typer.Option(help="Only of this agent or workflow.", show_default=False)
]
AsFormat = Annotated[Format, typer.Option("--format", help="Output format.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


def add_groups(app: typer.Typer) -> None:
    """Add the groups of commands to the command line."""
    app.add_typer(observability, name="observability")
    app.add_typer(history, name="history")
    app.add_typer(sink, name="sink")


def _work(name: str) -> Any:
    """Import what does a command's work."""
    return importlib.import_module(f"penstock.cli.{name}")


@observability.command()
def status(context: typer.Context, format: AsFormat = Format.TABLE) -> None:
    """Show the lag of the archive, and the runs and the cost of today."""
    _work("reports").show_status(context.obj, as_json=format is Format.JSON)


@observability.command("cost-report")
def cost_report(
    context: typer.Context,
    since: Since = None,
    until: Until = None,
    name: Name = None,
    format: AsFormat = Format.TABLE,
) -> None:
    """Show the cost of model calls by provider, model, agent and day; the highest stand out."""
    _work("reports").show_cost(
        context.obj, since=since, until=until, name=name, as_json=format is Format.JSON
    )


@observability.command("profile-report")
def profile_report(
    context: typer.Context,
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="One run; else the latest ones.", show_default=False),
    ] = None,
    since: Since = None,
    until: Until = None,
    name: Name = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="A share above it makes a bottleneck.")
    ] = 0.5,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="The latest so many.")] = 200,
    format: AsFormat = Format.TABLE,
) -> None:
    """Show where runs spend their time: slowest nodes and bottlenecks are highlighted."""
    reports = _work("reports")
    as_json = format is Format.JSON
    if run_id is not None:
        reports.show_run_profile(context.obj, run_id, threshold=threshold, as_json=as_json)
        return
    wanted = {"since": since, "until": until, "name": name}
    reports.show_profile(context.obj, wanted, threshold=threshold, runs=runs, as_json=as_json)


@history.command("status")
def history_status(context: typer.Context, format: AsFormat = Format.TABLE) -> None:
    """Show the lag of the archive behind the log."""
    _work("keeping").show_status(context.obj, as_json=format is Format.JSON)


@history.command()
def rebuild(
    context: typer.Context,
    wait: Annotated[bool, typer.Option(help="Wait for the result.")] = True,
) -> None:
    """Rebuild all tables from the log while services run; over the bus, not the gateway."""
    _work("keeping").rebuild(context.obj, wait=wait)


@history.command()
def restore(context: typer.Context, run_id: RunId) -> None:
    """Restore the facts of an ended run to the log after retention removed them."""
    _work("keeping").restore(context.obj, run_id)


@history.command("delete-run")
def delete_run(context: typer.Context, run_id: RunId, yes: Yes = False) -> None:
    """Delete an ended run and its child runs for good."""
    _work("keeping").delete(context.obj, f"/v1/runs/{run_id}", f"run {run_id}", sure=yes)


@history.command("delete-session")
def delete_session(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session.")],
    yes: Yes = False,
) -> None:
    """Delete a session and all its runs for good."""
    path = f"/v1/sessions/{session_id}"
    _work("keeping").delete(context.obj, path, f"session {session_id} and its runs", sure=yes)


@history.command("delete-tenant")
def delete_tenant(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant.")],
    yes: Yes = False,
) -> None:
    """Delete all runs and sessions of a tenant for good."""
    path = f"/v1/tenants/{tenant}/data"
    _work("keeping").delete(context.obj, path, f"all runs of tenant {tenant}", sure=yes)


@sink.command()
def mlflow(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="The tracking server.")
    ] = "http://127.0.0.1:5000",
    experiment: Annotated[
        str, typer.Option(envvar="MLFLOW_EXPERIMENT_NAME", help="Experiment name.")
    ] = "penstock",
    name: Annotated[str, typer.Option(help="Sinks with the same name share the runs.")] = "mlflow",
    only_tenant: Annotated[
        str | None, typer.Option(help="Only runs of this tenant.", show_default=False)
    ] = None,
) -> None:
    """Write each ended run to MLflow until Ctrl-C; reads the bus directly."""
    _work("sinks").run_mlflow(
        context.obj, url=url, experiment=experiment, name=name, only_tenant=only_tenant
    )
