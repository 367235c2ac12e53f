"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from penstock.cli.failure import MISUSED, CommandError, Finding

CANDIDATES: Final = 5
SHORTEST: Final = 4
"""Fewer characters are shared by all runs of months."""


def find_run(context: typer.Context, run_id: str | None) -> str | None:
    """Return the id of the run that has these first characters, four at least; else the text.

    Raises:
        CommandError: There are several; it lists them.
    """
    from penstock.contracts.ids import is_run_id

    first = (run_id or "").upper()
    if is_run_id(first):
        return first
    if len(first) < SHORTEST or not is_run_id(first.ljust(26, "0")):
        return run_id
    from penstock.cli.gateway import gateway

    with gateway(context) as client:
        found = list(client.runs(id_prefix=first, limit=CANDIDATES + 1))
    if len(found) < 2:
        return found[0].run_id if found else run_id
    shown = tuple(Finding(run.run_id, f"{run.name} {run.status}") for run in found[:CANDIDATES])
    count = f"more than {CANDIDATES}" if len(found) > CANDIDATES else len(found)
    raise CommandError(
        f"{count} runs have ids that begin with {first}", findings=shown, exit_code=MISUSED
    )


RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Id of the run, or its beginning.", callback=find_run),
]
StepId = Annotated[str, typer.Argument(metavar="STEP", help="Id of the step.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Limit = Annotated[
    int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number of items.")
]
Reason = Annotated[str, typer.Option(help="Reason; stored with the run.")]
Digest = Annotated[str | None, typer.Option(help="Digest of the request; others are refused.")]
Payload = Annotated[
    str, typer.Option("--payload", "-p", help="JSON, text, @file, or @- for standard input.")
]
Output = Annotated[
    str, typer.Option("--output", "-o", help="JSON, text, @file, or @- for standard input.")
]
SendKey = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="Repeated calls with the same key send it once."),
]
StartKey = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="Repeated calls with the same key start one run."),
]
Follow = Annotated[bool, typer.Option("--follow", help="Print events while they happen.")]
Tag = Annotated[list[str] | None, typer.Option(help="Tag as NAME=VALUE; may be repeated.")]
Session = Annotated[str | None, typer.Option(help="Only runs of this session.")]
Since = Annotated[
    str | None,
    typer.Option(help="From this ISO time on, or a time ago: 24h, 7d.", show_default=False),
]
Until = Annotated[
    str | None, typer.Option(help="Until this time, in the same form.", show_default=False)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what matches.")]


def confirm(what: str, *, sure: bool) -> None:
    """Ask whether to delete something, unless the caller is sure.

    Raises:
        CommandError: The answer was no, or there is no terminal to ask on.
    """
    if sure:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"deleting {what} needs --yes here", exit_code=MISUSED)
    sys.stdout.write(f"Delete {what} for good? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was deleted")
