"""``penstock signal`` and ``penstock runs message``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.display import console, print_json
from penstock.cli.gateway import gateway, send
from penstock.cli.inputs import read_input
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, Payload, SendKey, find_run

if TYPE_CHECKING:
    from penstock.contracts.json import Json
    from penstock.runs.replies import SentSignal

app = group()

First = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run, or its beginning.")]
Second = Annotated[
    str | None,
    typer.Argument(metavar="NAME", show_default=False, help="Name of the event or message."),
]


def signal(
    context: typer.Context,
    run_id: First,
    name: Second = None,
    payload: Payload = "null",
    correlation: Annotated[
        str | None,
        typer.Option(help="Instead of RUN: all runs that wait for this correlation key."),
    ] = None,
    idempotency_key: SendKey = None,
    as_json: AsJson = False,
) -> None:
    """Send an event; with a correlation key, the only argument is its name."""
    run, event = _target(context, run_id, name, correlation, "--correlation")
    value = read_input(payload, option="--payload")
    with gateway(context) as client:
        if run is not None:
            sent = client.signal(run, event, value, idempotency_key=idempotency_key)
            _print_sent([sent], sent if as_json else None)
        elif correlation is not None:
            found = client.signal_waiting(
                correlation, event, value, idempotency_key=idempotency_key
            )
            _print_sent(found.items, found if as_json else None)


@app.command()
def message(
    context: typer.Context,
    run_id: First,
    name: Second = None,
    payload: Payload = "null",
    session: Annotated[
        str | None, typer.Option(help="Instead of RUN: the latest run of this session.")
    ] = None,
    sender: Annotated[
        str | None, typer.Option("--from", help="The run that sends it.", callback=find_run)
    ] = None,
    idempotency_key: SendKey = None,
    as_json: AsJson = False,
) -> None:
    """Send a message to a run, or to the latest one of a session."""
    from penstock.runs.replies import SentSignal

    run, title = _target(context, run_id, name, session, "--session")
    place, target = ("runs", run) if run is not None else ("sessions", session or "")
    body: dict[str, Json] = {"name": title, "payload": read_input(payload, option="--payload")}
    if sender is not None:
        body["from_run"] = sender
    headers = {"Idempotency-Key": idempotency_key}
    path = f"/v1/{place}/{{}}/messages"
    sent = send(context, SentSignal, "POST", path, body, ids=[target], headers=headers)
    _print_sent([sent], sent if as_json else None)


def _target(
    context: typer.Context, first: str, second: str | None, instead: str | None, option: str
) -> tuple[str | None, str]:
    """Return run and name; with the option, the only argument is the name."""
    if (second is None) == (instead is None):
        raise typer.BadParameter(f"give RUN and NAME, or NAME and {option}")
    return (find_run(context, first), second) if second is not None else (None, first)


def _print_sent(sent: Sequence[SentSignal], raw: object) -> None:
    if raw is not None:
        print_json(raw)
        return
    for one in sent:
        result = "was there already" if one.repeated else "sent"
        console().print(one.run_id, one.name, result, f"sequence {one.seq}")
