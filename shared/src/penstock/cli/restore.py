"""``penstock history``: rebuild the archive, restore or delete runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from penstock.cli.display import print_done
from penstock.cli.gateway import LONG_SECONDS, send
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, RunId, Yes, confirm

if TYPE_CHECKING:
    from penstock.cli.wire import Wire
    from penstock.contracts.archive import ArchiveStatus

_PROBE_SECONDS: Final = 0.5

app = group()


async def _status(wire: Wire) -> ArchiveStatus:
    from penstock import rpc
    from penstock.contracts.archive import ArchiveStatus, GetStatus

    return await rpc.call(wire.bus, "archive", "get_status", GetStatus(), ArchiveStatus)


def _line(status: ArchiveStatus) -> str:
    if status.rebuilding:
        return f"rebuilding: {status.last_seq} of {status.rebuild_until} facts"
    behind = f"{status.lag_messages} behind" if status.lag_messages else "up to date"
    return f"projected up to {status.last_seq} of {status.log_last_seq}: {behind}"


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the lag of the archive behind the log."""
    from penstock.cli.wire import on_wire

    found = on_wire(context.obj, _status)
    print_done(found, _line(found), as_json=as_json)


@app.command()
def rebuild(
    context: typer.Context,
    wait: Annotated[bool, typer.Option(help="Wait until the archive is up to date.")] = True,
    as_json: AsJson = False,
) -> None:
    """Rebuild the archive from the log while services run."""
    import asyncio

    from penstock import rpc
    from penstock.cli.wire import on_wire
    from penstock.contracts.archive import ArchiveStatus
    from penstock.contracts.archive_maintenance import Rebuild
    from penstock.contracts.errors import TransientError

    async def work(wire: Wire) -> None:
        status = await rpc.call(
            wire.bus, "archive", "rebuild", Rebuild(), ArchiveStatus, timeout_seconds=LONG_SECONDS
        )
        print_done(status, _line(status), as_json=as_json)
        while wait and (status.rebuilding or status.lag_messages):
            await asyncio.sleep(_PROBE_SECONDS)
            try:
                latest = await _status(wire)
            except TransientError:
                continue  # the projector was restarted; it continues where it was
            if latest != status:
                status = latest
                print_done(status, _line(status), as_json=as_json)

    on_wire(context.obj, work)


@app.command()
def restore(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """Restore the facts of an archived run to the log."""
    from penstock.contracts.archive_maintenance import Restored

    path = "/v1/runs/{}/restore"
    done = send(context, Restored, "POST", path, ids=[run_id], timeout_seconds=LONG_SECONDS)
    text = f"{run_id}: {done.restored} of {done.facts} facts were put back"
    print_done(done, text, as_json=as_json)


@app.command("delete-run")
def delete_run(
    context: typer.Context, run_id: RunId, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Delete an ended run and its child runs for good."""
    _delete(context, "/v1/runs/{}", run_id, f"run {run_id}", sure=yes, as_json=as_json)


@app.command("delete-session")
def delete_session(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a session and all its runs for good."""
    what = f"session {session_id} and its runs"
    _delete(context, "/v1/sessions/{}", session_id, what, sure=yes, as_json=as_json)


@app.command("delete-tenant")
def delete_tenant(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete all runs and sessions of a tenant for good."""
    what = f"all runs of tenant {tenant}"
    _delete(context, "/v1/tenants/{}/data", tenant, what, sure=yes, as_json=as_json)


def _delete(
    context: typer.Context, path: str, one: str, what: str, *, sure: bool, as_json: bool
) -> None:
    """Delete for good, after a confirmation.

    Raises:
        CommandError: It was not confirmed.
    """
    from penstock.contracts.archive_maintenance import Erased

    confirm(what, sure=sure)
    done = send(context, Erased, "DELETE", path, ids=[one], timeout_seconds=LONG_SECONDS)
    text = f"deleted {done.runs} runs, {done.objects} objects, {done.dead_letters} dead letters"
    print_done(done, text, as_json=as_json)
