"""``penstock dead``: dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from penstock.cli.display import compact, console, moment, print_json, print_list
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.gateway import LONG_SECONDS, gateway, send
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, DryRun, Limit, find_run

if TYPE_CHECKING:
    from penstock.contracts.json import Json
    from penstock.runs.replies import DeadLetterView

Seqs = Annotated[
    list[int] | None, typer.Argument(metavar="[SEQ]...", help="Sequences of dead letters.")
]
Consumer = Annotated[
    str | None, typer.Option(help="Only letters of this consumer.", show_default=False)
]
OfRun = Annotated[
    str | None,
    typer.Option("--run", help="Only letters of this run.", show_default=False, callback=find_run),
]
Code = Annotated[
    str | None, typer.Option(help="Only letters with this error code.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Without a filter: all dead letters.")]

Act = Literal["requeue", "discard"]
DONE: Final = {"requeue": "requeued", "discard": "discarded"}

app = group()


@app.command("list")
def list_letters(
    context: typer.Context,
    consumer: Consumer = None,
    run_id: OfRun = None,
    code: Code = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the oldest first."""
    from penstock.client import Call, Items
    from penstock.runs.replies import DeadLetterView

    params = {"consumer": consumer, "run_id": run_id, "code": code}
    call = Call(Items[DeadLetterView], "GET", "/v1/dead-letters", params=params, limit=limit)
    with gateway(context) as client:
        found = list(client.pages(call))
    columns: dict[str, Callable[[DeadLetterView], str]] = {
        "seq": lambda one: str(one.seq),
        "at": lambda one: moment(one.occurred_at),
        "consumer": lambda one: one.consumer,
        "run": lambda one: one.run_id,
        "deliveries": lambda one: str(one.deliveries),
        "requeue": lambda one: one.remedy,
        "error": lambda one: compact(f"{one.error.code}: {one.error.message}", 200),
    }
    print_list(found, columns, as_json=as_json)


@app.command()
def show(
    context: typer.Context,
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="Sequence of the dead letter.")],
    as_json: AsJson = False,  # noqa: ARG001 - a dead letter is shown as JSON in any case
) -> None:
    """Show one dead letter with the body of its message."""
    from penstock.runs.replies import DeadLetterView

    print_json(send(context, DeadLetterView, "GET", f"/v1/dead-letters/{seq}"))


def _add(act: Act, summary: str) -> None:
    """Add a command that acts on letters."""

    @app.command(act, help=summary)
    def command(  # noqa: PLR0913, PLR0917 - one parameter for each filter
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
        given = {"consumer": consumer, "run_id": run_id, "code": code}
        filters: dict[str, Json] = {name: value for name, value in given.items() if value}
        if sum((bool(seqs), bool(filters), all_)) != 1:
            raise CommandError("give sequences, or filters, or --all", exit_code=MISUSED)
        if seqs and dry_run:
            raise CommandError("--dry-run needs filters or --all", exit_code=MISUSED)
        if seqs:
            _one_by_one(context, act, seqs, as_json=as_json)
        else:
            body: Json = {"filter": filters, "limit": limit, "dry_run": dry_run}
            _many(context, act, body, as_json=as_json)


_add("requeue", "Requeue dead letters: repeat their work.")
_add("discard", "Discard dead letters.")


def _one_by_one(context: typer.Context, act: Act, seqs: list[int], *, as_json: bool) -> None:
    from penstock.runs.replies import DeadLetterView

    paths = [f"/v1/dead-letters/{seq}/{act}" for seq in seqs]
    done = [send(context, DeadLetterView, "POST", path).seq for path in paths]
    if as_json:
        print_json({"done": done})
    else:
        console().print(f"{len(done)} letters {DONE[act]}")


def _many(context: typer.Context, act: Act, body: Json, *, as_json: bool) -> None:
    """Act on all letters that match a filter.

    Raises:
        CommandError: Some letters could not be requeued.
    """
    from penstock.runs.replies import DeadLettersDone

    path = f"/v1/dead-letters/{act}"
    result = send(context, DeadLettersDone, "POST", path, body, timeout_seconds=LONG_SECONDS)
    if as_json:
        print_json(result)
    else:
        screen = console()
        screen.print(
            f"{len(result.done)} letters {'would be ' if result.dry_run else ''}{DONE[act]}"
        )
        for refused in result.refused:
            error = refused.error
            screen.print(f"  {refused.seq}: {error.code}: {error.message}")
        if result.more:
            screen.print("there are more: repeat the command")
    if result.refused:
        raise CommandError(f"{len(result.refused)} letters stay")
