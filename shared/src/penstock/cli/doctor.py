"""``penstock doctor``: print the findings of all examinations."""

from __future__ import annotations

import typer

from penstock.cli.display import console, print_json, status_text, table
from penstock.cli.failure import FAILED
from penstock.cli.options import AsJson


def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Run all examinations and print their findings; exit code 1 if one fails."""
    from penstock.cli.examinations import examine

    findings = examine(context.obj)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        rows = [(status_text(level), area, text) for level, area, text in findings]
        console().print(table(("", "what", "finding"), rows))
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(FAILED)
