"""``penstock keys``: asked of the registry over the bus, so that the first key can be made.

Whoever reaches the bus is trusted already; the gateway hands out no keys to strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from penstock.cli.display import console, moment, print_json, table
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.wire import Wire, on_wire
from penstock.contracts.rpc import CreatedKey, CreateKey, KeyInfo, Keys, ListKeys, RevokeKey
from penstock.rpc import call
from penstock.target import Target

ReplyT = TypeVar("ReplyT", bound=BaseModel)


def create(target: Target, *, name: str, roles: Sequence[str], expires_days: int | None) -> None:
    """Make a key and print its secret.

    Raises:
        CommandError: A role is unknown, or the registry cannot be reached.
    """
    expires_at = None
    if expires_days is not None:
        expires_at = datetime.now(UTC) + timedelta(days=expires_days)
    try:
        request = CreateKey.model_validate(
            {"tenant": target.tenant, "name": name, "roles": roles, "expires_at": expires_at}
        )
    except ValidationError as error:
        raise CommandError(str(error.errors()[0]["msg"]), exit_code=MISUSED) from error
    made = _ask(target, "create_key", request, CreatedKey)
    screen = console()
    screen.print(f"[dim]{made.key.key_id} for tenant {made.key.tenant}; shown only now:[/]")
    screen.print(made.secret, markup=False)


def list_all(target: Target, *, revoked: bool, as_json: bool) -> None:
    """Show keys without secrets."""
    found = _ask(target, "list_keys", ListKeys(tenant=target.tenant, revoked=revoked), Keys)
    if as_json:
        print_json(found.model_dump(mode="json")["items"])
        return
    rows = [
        (
            key.key_id,
            key.name,
            ", ".join(key.roles),
            _time(key.created_at),
            _time(key.expires_at),
            _time(key.revoked_at),
        )
        for key in found.items
    ]
    console().print(table(("key", "name", "roles", "created", "expires", "revoked"), rows))


def revoke(target: Target, key_id: str) -> None:
    """Make a key worthless."""
    try:
        request = RevokeKey(tenant=target.tenant, key_id=key_id)
    except ValidationError as error:
        raise CommandError(str(error.errors()[0]["msg"]), exit_code=MISUSED) from error
    _ask(target, "revoke_key", request, KeyInfo)
    console().print(f"{key_id} revoked", markup=False)


def _ask(target: Target, verb: str, request: BaseModel, reply: type[ReplyT]) -> ReplyT:
    async def work(wire: Wire) -> ReplyT:
        return await call(wire.bus, "registry", verb, request, reply)

    return on_wire(target, work)


def _time(at: datetime | None) -> str:
    return moment(at.isoformat()) if at is not None else ""
