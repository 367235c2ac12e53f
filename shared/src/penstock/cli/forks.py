"""``penstock runs fork``, ``retry`` and ``replay``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.display import console, print_json, status_text
from penstock.cli.failure import FAILED
from penstock.cli.gateway import gateway
from penstock.cli.inputs import read_input, read_pairs, read_values
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, Follow, RunId, StartKey, Tag

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.client.calls import Changes
    from penstock.runs.views import RunView

Override = Annotated[
    list[str] | None,
    typer.Option(help="STEP=OUTPUT as JSON, text or @file; may be repeated.", show_default=False),
]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", help="Limit such as max_steps=20; may be repeated.")
]

app = group()


@app.command()
def fork(  # noqa: PLR0913, PLR0917 - one parameter for each difference
    context: typer.Context,
    run_id: RunId,
    from_seq: Annotated[
        int | None, typer.Option("--from", min=1, help="Continue from this sequence of the log.")
    ] = None,
    override: Override = None,
    input_text: Annotated[
        str | None,
        typer.Option("--input", "-i", help="Another input: JSON, text or @file."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Another version, or an alias.")] = None,
    limit: LimitOption = None,
    tag: Tag = None,
    idempotency_key: StartKey = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Start a run that continues from a point of another one."""
    changes = _changes(override, limit, tag, idempotency_key)
    if input_text is not None:
        changes["input"] = read_input(input_text)
    chosen = int(version) if version is not None and version.isdigit() else version
    with gateway(context) as client:
        run = client.fork(run_id, at_seq=from_seq, version=chosen, **changes)
        _finish(client, run, follow=follow, as_json=as_json)


@app.command()
def retry(
    context: typer.Context,
    run_id: RunId,
    override: Override = None,
    limit: LimitOption = None,
    tag: Tag = None,
    idempotency_key: StartKey = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Start a failed or cancelled run again. Only failed steps and later ones are executed."""
    with gateway(context) as client:
        run = client.retry(run_id, **_changes(override, limit, tag, idempotency_key))
        _finish(client, run, follow=follow, as_json=as_json)


@app.command()
def replay(
    context: typer.Context,
    run_id: RunId,
    from_seq: Annotated[
        int | None,
        typer.Option("--from", min=1, help="Repeat the decisions after this sequence."),
    ] = None,
    override: Override = None,
    tag: Tag = None,
    idempotency_key: StartKey = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Repeat an ended run with its recorded outcomes. Only what an override changes is executed."""
    with gateway(context) as client:
        changes = _changes(override, None, tag, idempotency_key)
        run = client.replay(run_id, from_seq=from_seq, **changes)
        _finish(client, run, follow=follow, as_json=as_json)


def _changes(
    override: list[str] | None, limit: list[str] | None, tag: list[str] | None, key: str | None
) -> Changes:
    return {
        "overrides": read_values(override, option="--override") or None,
        "limits": read_values(limit, option="--limit") or None,
        "tags": read_pairs(tag, option="--tag") or None,
        "idempotency_key": key,
    }


def _finish(client: Client, run: RunView, *, follow: bool, as_json: bool) -> None:
    """Print the new run, or its events until its end."""
    if follow:
        from penstock.cli.events import follow_run

        if follow_run(client, run.run_id, as_json=as_json) in ("failed", "cancelled"):
            raise typer.Exit(FAILED)
    elif as_json:
        print_json(run)
    else:
        kept = sum(step.status == "succeeded" for step in run.steps)
        console().print(run.run_id, status_text(run.status), f"{kept} outcomes taken over")
