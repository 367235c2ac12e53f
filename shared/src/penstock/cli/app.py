"""The command ``penstock``: its global options and the table of its commands."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from types import TracebackType
from typing import Annotated, Final

import typer
from typer.main import get_command

from penstock.cli.failure import FAILED, CommandError, print_error
from penstock.cli.lazy import Entry, LazyGroup
from penstock.cli.options import AsJson
from penstock.target import DEFAULT_DATA_DIR, find_target

DEFINITIONS: Final = "Definitions"
RUNS: Final = "Runs"
OPERATION: Final = "Operation"

COMMANDS: Final = {
    "dev": Entry("dev:dev", "Start a bus and all services on this machine, until Ctrl-C."),
    "version": Entry("app:version", "Print the version."),
    "apply": Entry(
        "definitions:apply",
        "Store and publish documents, all or none. Kinds: agents, tools, workflows, "
        "networks, webhooks, schedules.",
        DEFINITIONS,
    ),
    "definitions": Entry("stored:app", "List, show or delete definitions.", DEFINITIONS),
    "versions": Entry("definitions:versions", "List the versions of a definition.", DEFINITIONS),
    "publish": Entry("definitions:publish", "Publish a definition.", DEFINITIONS),
    "archive": Entry(
        "definitions:archive",
        "Archive a definition with all versions. Publishing restores it.",
        DEFINITIONS,
    ),
    "alias": Entry(
        "definitions:aliases", "Set, list or delete aliases of versions: NAME@ALIAS.", DEFINITIONS
    ),
    "invoke": Entry("invoke:invoke", "Start a run of an agent, workflow or network.", RUNS),
    "signal": Entry(
        "signals:signal", "Send an event to a run, or to those that wait for a key.", RUNS
    ),
    "runs": Entry("runs:app", "Inspect, follow, control and recover runs.", RUNS),
    "approvals": Entry("approvals:app", "List, approve or reject pending approvals.", RUNS),
    "schedules": Entry("schedules:app", "Inspect and control schedules.", RUNS),
    "runners": Entry("runners:runners", "List live runners.", OPERATION),
    "doctor": Entry(
        "doctor:doctor",
        "Check bus, services and databases. The exit code is 1 if a check fails.",
        OPERATION,
    ),
    "dead": Entry("dead:app", "Inspect, requeue or discard dead letters.", OPERATION),
    "observability": Entry("reports:app", "Archive status, cost and profile reports.", OPERATION),
    "history": Entry("restore:app", "Rebuild the archive, restore or delete runs.", OPERATION),
    "sink": Entry("sinks:app", "Export ended runs to other systems.", OPERATION),
    "keys": Entry("keys:app", "Create, list and revoke API keys.", OPERATION),
    "services": Entry("dev:services", "List or run single services of the local stack.", OPERATION),
}


class Commands(LazyGroup):
    """All commands."""

    table = COMMANDS


app = typer.Typer(
    name="penstock",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help="Durable agents, tools and workflows on NATS JetStream.")
def options(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="URL of the gateway; else PENSTOCK_URL.", show_default=False)
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(help=f"Data folder of a local stack; else {DEFAULT_DATA_DIR}."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="API key; else PENSTOCK_API_KEY.")] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="Tenant, for commands that use the bus; else PENSTOCK_TENANT."),
    ] = None,
) -> None:
    """Find the target; global options come before the command."""
    context.obj = find_target(url=url, data_dir=data_dir, api_key=api_key, tenant=tenant)


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    from penstock.cli.display import print_done

    found = installed("penstock")
    print_done({"version": found}, f"penstock {found}", as_json=as_json)


def _show_unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error that no command expects as one line."""
    if os.environ.get("PENSTOCK_DEBUG"):
        sys.__excepthook__(kind, error, trace)
    else:
        print_error(CommandError(f"{kind.__name__}: {error} (PENSTOCK_DEBUG=1 shows the trace)"))


def main() -> None:
    """Run the command line."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whatever started the process
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Signs that the terminal's encoding lacks are printed as `?`.
            stream.reconfigure(errors="replace")
    sys.excepthook = _show_unexpected
    try:
        get_command(app)()  # `app()` would install the hook of typer
    except CommandError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of the pipe (`| head`) has gone; Python's last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # such as a full disk behind standard output
        print_error(CommandError(str(error)))
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
