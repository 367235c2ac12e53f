"""``penstock keys``: API keys, managed over the bus, so that the first key can be created.

A process on the bus is trusted already; the gateway creates keys for administrators alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from penstock.cli.display import console, moment, print_done, print_json, print_list
from penstock.cli.lazy import group
from penstock.cli.options import AsJson

if TYPE_CHECKING:
    from pydantic import BaseModel

    from penstock.cli.wire import Wire
    from penstock.contracts.rpc import KeyInfo

RequestT = TypeVar("RequestT", bound="BaseModel")
ReplyT = TypeVar("ReplyT", bound="BaseModel")

app = group()


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of the key in lists.")] = "",
    role: Annotated[
        list[str] | None,
        typer.Option(help="admin, operator (default), viewer or runner; may be repeated."),
    ] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, help="Days until the key expires.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print its secret once."""
    from penstock.contracts.rpc import CreatedKey, CreateKey

    expires_at = datetime.now(UTC) + timedelta(days=expires_days) if expires_days else None
    fields = {"name": name, "roles": role or ["operator"], "expires_at": expires_at}
    created = _ask(context, "create_key", CreateKey, fields, CreatedKey)
    if as_json:
        print_json(created)
        return
    screen = console()
    head = f"{created.key.key_id} for tenant {created.key.tenant}; shown only now:"
    screen.print(head, style="dim")
    screen.print(created.secret)


@app.command("list")
def list_keys(
    context: typer.Context,
    revoked: Annotated[bool, typer.Option("--revoked", help="Include revoked keys.")] = False,
    as_json: AsJson = False,
) -> None:
    """List keys, without their secrets."""
    from penstock.contracts.rpc import Keys, ListKeys

    found = _ask(context, "list_keys", ListKeys, {"revoked": revoked}, Keys).items
    columns: dict[str, Callable[[KeyInfo], str]] = {
        "key": lambda key: key.key_id,
        "name": lambda key: key.name,
        "roles": lambda key: ", ".join(key.roles),
        "created": lambda key: moment(key.created_at),
        "expires": lambda key: moment(key.expires_at),
        "revoked": lambda key: moment(key.revoked_at),
    }
    print_list(found, columns, as_json=as_json)


@app.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key.")],
    as_json: AsJson = False,
) -> None:
    """Revoke an API key at once."""
    from penstock.contracts.rpc import KeyInfo, RevokeKey

    done = _ask(context, "revoke_key", RevokeKey, {"key_id": key_id}, KeyInfo)
    print_done(done, f"{key_id} revoked", as_json=as_json)


def _ask(
    context: typer.Context,
    verb: str,
    request: type[RequestT],
    fields: Mapping[str, object],
    reply: type[ReplyT],
) -> ReplyT:
    """Send a request of the tenant to the registry.

    Raises:
        CommandError: A field is invalid, or the registry cannot be reached.
    """
    from pydantic import ValidationError

    from penstock.cli.failure import MISUSED, CommandError
    from penstock.cli.wire import on_wire
    from penstock.rpc import call

    try:
        asked = request.model_validate({"tenant": context.obj.tenant, **fields})
    except ValidationError as error:
        raise CommandError(str(error.errors()[0]["msg"]), exit_code=MISUSED) from error

    async def work(wire: Wire) -> ReplyT:
        return await call(wire.bus, "registry", verb, asked, reply)

    return on_wire(context.obj, work)
