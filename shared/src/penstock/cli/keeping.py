"""``penstock history``: rebuild, restore, delete."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from penstock import rpc
from penstock.cli.api import Api
from penstock.cli.display import console, print_json
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.wire import Wire, on_wire
from penstock.contracts.archive import ArchiveStatus, GetStatus, Rebuild
from penstock.contracts.errors import TransientError
from penstock.target import Target

_LONG_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.5


async def _status(wire: Wire) -> ArchiveStatus:
    return await rpc.call(wire.bus, "archive", "get_status", GetStatus(), ArchiveStatus)


def _line(status: ArchiveStatus) -> str:
    if status.rebuilding:
        return f"rebuilding: {status.last_seq} of {status.rebuild_until} facts"
    behind = f"{status.lag_messages} behind" if status.lag_messages else "up to date"
    return f"projected up to {status.last_seq} of {status.log_last_seq}: {behind}"


def show_status(target: Target, *, as_json: bool) -> None:
    """Show how far the archive is; straight over the bus."""
    status = on_wire(target, _status)
    if as_json:
        print_json(status.model_dump(mode="json"))
    else:
        console().print(_line(status))


def rebuild(target: Target, *, wait: bool) -> None:
    """Make all tables anew, and show how far that is."""

    async def work(wire: Wire) -> ArchiveStatus:
        status = await rpc.call(
            wire.bus, "archive", "rebuild", Rebuild(), ArchiveStatus, timeout_seconds=_LONG_SECONDS
        )
        screen = console()
        screen.print(_line(status))
        while wait and (status.rebuilding or status.lag_messages):
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                latest = await _status(wire)
            except TransientError:
                continue  # the projector was restarted; it goes on where it was
            if latest != status:
                status = latest
                screen.print(_line(status))
        return status

    on_wire(target, work)


def restore(target: Target, run_id: str) -> None:
    """Put a run back into the log."""
    with Api(target) as api:
        done = api.call("POST", f"/v1/runs/{run_id}/restore", timeout_seconds=_LONG_SECONDS)
    console().print(f"{run_id}: {done['restored']} of {done['facts']} facts were put back")


def delete(target: Target, path: str, what: str, *, sure: bool) -> None:
    """Delete for good, after asking a person.

    Raises:
        CommandError: Nobody said that it is meant.
    """
    if not sure:
        if not sys.stdin.isatty():
            raise CommandError(f"deleting {what} needs --yes here", exit_code=MISUSED)
        sys.stdout.write(f"Delete {what} for good? [y/N] ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was deleted")
    with Api(target) as api:
        done = api.call("DELETE", path, timeout_seconds=_LONG_SECONDS)
    console().print(
        f"deleted {done['runs']} runs, {done['objects']} objects, "
        f"{done['dead_letters']} dead letters"
    )
