"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
StepId = Annotated[str, typer.Argument(metavar="STEP", help="Id of the step.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number.")]
Reason = Annotated[str, typer.Option(help="Reason; stored with the run.")]
Digest = Annotated[str | None, typer.Option(help="Digest of the request, as the list shows it.")]
Payload = Annotated[
    str, typer.Option("--payload", "-p", help="JSON, or text, or @file, or @- for standard input.")
]
Output = Annotated[str, typer.Option("--output", "-o", help="JSON, or text, or @file, or @-.")]
SendKey = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="Repeated calls with the same key send it once."),
]
StartKey = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="Repeated calls with the same key start one run."),
]
Follow = Annotated[bool, typer.Option("--follow", help="Print events while they happen.")]
Tag = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")]
Session = Annotated[str | None, typer.Option(help="Only of this session.")]
Since = Annotated[
    str | None, typer.Option(help="ISO time, or a time ago: 30m, 24h, 7d.", show_default=False)
]
Until = Annotated[
    str | None, typer.Option(help="The same; later runs are left out.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the matching ones.")]
