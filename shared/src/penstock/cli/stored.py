"""``penstock definitions``: list, show and delete stored definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.definitions import KINDS, Kind, Name, OfKind, definition_path
from penstock.cli.display import moment, print_done, print_json, print_list, status_text
from penstock.cli.gateway import gateway, send
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, Limit, Yes, confirm

if TYPE_CHECKING:
    from rich.text import Text

    from penstock.contracts.rpc import Definition

app = group()


@app.command("list")
def list_definitions(
    context: typer.Context,
    kind: Annotated[Kind | None, typer.Option(help="Only this kind.")] = None,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """List definitions by kind and name; the limit holds for each kind."""
    from penstock.client import Call
    from penstock.client.calls import Items
    from penstock.contracts.rpc import Definition

    found: list[Definition] = []
    with gateway(context) as client:
        for one in (kind,) if kind else KINDS:
            found += client.pages(Call(Items[Definition], "GET", f"/v1/{one}s", limit=limit))
    columns: dict[str, Callable[[Definition], str | Text]] = {
        "kind": lambda one: one.kind,
        "name": lambda one: one.name,
        "version": lambda one: f"v{one.published_version}" if one.published_version else "",
        "status": lambda one: status_text(one.status),
        "updated": lambda one: moment(one.updated_at),
        "description": lambda one: one.description,
    }
    print_list(found, columns, as_json=as_json)


@app.command()
def show(context: typer.Context, name: Name, kind: OfKind = None, as_json: AsJson = False) -> None:
    """Print a definition's document; with --json, its state as well."""
    from penstock.contracts.rpc import Definition

    found = send(context, Definition, "GET", definition_path(context, name, kind))
    print_json(found if as_json else found.document)


@app.command()
def delete(
    context: typer.Context,
    name: Name,
    kind: OfKind = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a definition that no other one uses; runs cannot start it any more."""
    from penstock.contracts.facts import Record

    path = definition_path(context, name, kind)
    confirm(f"definition {name}", sure=yes)
    send(context, Record, "DELETE", path)
    print_done({"deleted": name}, f"{name} is deleted", as_json=as_json)
