"""Commands for runs that go on from others, bundles of runs, and dead letters.

Only signatures stand here; what they do is imported when they are called.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

dead = typer.Typer(
    help="Inspect, requeue or discard dead letters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Override = Annotated[
    list[str] | None,
    typer.Option(help="STEP=OUTPUT, JSON or text or @file; may be repeated.", show_default=False),
]
Tag = Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the new run; may be repeated.")]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", help="Such as max_steps=20; may be repeated.")
]
Key = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="Repeated calls with the same key start one run."),
]
Follow = Annotated[bool, typer.Option("--follow", help="Show its events as they come.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="The bundle.")]
Seqs = Annotated[
    list[int] | None, typer.Argument(metavar="[SEQ]...", help="Sequences of dead letters.")
]
Consumer = Annotated[str | None, typer.Option(help="Only of this consumer.", show_default=False)]
OfRun = Annotated[str | None, typer.Option("--run", help="Only of this run.", show_default=False)]
Code = Annotated[str | None, typer.Option(help="Only with this error code.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the matching ones.")]


def add_recovery(app: typer.Typer, runs: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (fork, retry, replay, fold, export, verify):
        runs.command()(command)
    runs.command("import")(import_run)
    app.add_typer(dead, name="dead")


def _work(name: str) -> Any:
    return importlib.import_module(f"penstock.cli.{name}")


def fork(  # noqa: PLR0913, PLR0917 - one parameter for each thing that may differ
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
    idempotency_key: Key = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Start a run that goes on from any point of another one, with other inputs if you like."""
    wanted = {"at_seq": from_seq, "version": version}
    given = {"override": override, "limit": limit, "tag": tag, "input": input_text}
    _work("forks").start(
        context.obj,
        run_id,
        "fork",
        wanted,
        given,
        key=idempotency_key,
        follow_run=follow,
        as_json=as_json,
    )


def retry(
    context: typer.Context,
    run_id: RunId,
    override: Override = None,
    limit: LimitOption = None,
    tag: Tag = None,
    idempotency_key: Key = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Start a failed or cancelled run again where it failed; what succeeded is taken over."""
    given = {"override": override, "limit": limit, "tag": tag}
    _work("forks").start(
        context.obj,
        run_id,
        "retry",
        {},
        given,
        key=idempotency_key,
        follow_run=follow,
        as_json=as_json,
    )


def replay(
    context: typer.Context,
    run_id: RunId,
    from_seq: Annotated[
        int | None,
        typer.Option("--from", min=1, help="Repeat the decisions after this sequence."),
    ] = None,
    override: Override = None,
    tag: Tag = None,
    idempotency_key: Key = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Play an ended run again by its recorded outcomes; only what an override changes is done."""
    given = {"override": override, "tag": tag}
    _work("forks").start(
        context.obj,
        run_id,
        "replay",
        {"from": from_seq},
        given,
        key=idempotency_key,
        follow_run=follow,
        as_json=as_json,
    )


def fold(
    context: typer.Context,
    run_id: RunId,
    until: Annotated[
        int | None, typer.Option(min=1, help="Stop at this sequence of the log.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fold a run's log again, fact by fact, and show the state after each; starts nothing."""
    _work("replay").fold_run(context.obj, run_id, until_seq=until, as_json=as_json)


def export(
    context: typer.Context,
    run_id: RunId,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file; - for standard output.")
    ] = "-",
) -> None:
    """Write a run as a bundle: its plan and all its facts, chained by hashes."""
    _work("bundles").export_run(context.obj, run_id, output)


def verify(context: typer.Context, file: File, as_json: AsJson = False) -> None:
    """Check every hash of a bundle; asks no server."""
    del context
    _work("bundles").verify_file(file, as_json=as_json)


def import_run(
    context: typer.Context,
    file: File,
    as_new: Annotated[bool, typer.Option("--as-new", help="Give the run a new id.")] = False,
    idempotency_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Put the run of a bundle into the log; checks every hash first."""
    _work("bundles").import_file(
        context.obj, file, as_new=as_new, key=idempotency_key, as_json=as_json
    )


@dead.command("list")
def list_dead(
    context: typer.Context,
    consumer: Consumer = None,
    run_id: OfRun = None,
    code: Code = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the oldest first."""
    wanted = {"consumer": consumer, "run_id": run_id, "code": code}
    _work("dead").list_letters(context.obj, wanted, limit=limit, as_json=as_json)


@dead.command("show")
def show_dead(
    context: typer.Context,
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="Sequence of the dead letter.")],
) -> None:
    """Show one dead letter with the body of its message."""
    _work("dead").show_letter(context.obj, seq)


@dead.command()
def requeue(  # noqa: PLR0913, PLR0917 - one parameter for each filter
    context: typer.Context,
    seqs: Seqs = None,
    consumer: Consumer = None,
    run_id: OfRun = None,
    code: Code = None,
    all_: All = False,
    limit: Limit = 1000,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Requeue dead letters: repeat their work."""
    wanted = {"consumer": consumer, "run_id": run_id, "code": code}
    _work("dead").apply(
        context.obj,
        "requeue",
        seqs or [],
        wanted,
        everything=all_,
        limit=limit,
        dry_run=dry_run,
        as_json=as_json,
    )


@dead.command()
def discard(  # noqa: PLR0913, PLR0917 - one parameter for each filter
    context: typer.Context,
    seqs: Seqs = None,
    consumer: Consumer = None,
    run_id: OfRun = None,
    code: Code = None,
    all_: All = False,
    limit: Limit = 1000,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Discard dead letters."""
    wanted = {"consumer": consumer, "run_id": run_id, "code": code}
    _work("dead").apply(
        context.obj,
        "discard",
        seqs or [],
        wanted,
        everything=all_,
        limit=limit,
        dry_run=dry_run,
        as_json=as_json,
    )
