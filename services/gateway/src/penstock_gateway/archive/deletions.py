"""Deleting for good, and bringing back into the log."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.archive import DeleteSession, SessionDeleted
from penstock.contracts.archive_maintenance import (
    Erased,
    EraseRun,
    EraseSession,
    EraseTenant,
    Restored,
    RestoreRun,
)
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.ids import is_run_id
from penstock_gateway.context import Admin, GatewayParts, Operator, PathToken
from penstock_gateway.runs.read import not_found

ERASE_SECONDS: Final = 300.0
"""A tenant may have many runs. The deletion continues if the request times out earlier."""

deletions: Final = APIRouter()


@deletions.post("/v1/runs/{run_id}/restore", tags=["runs"])
async def restore_run(gateway: GatewayParts, caller: Operator, run_id: PathToken) -> Restored:
    """Put the facts of an ended run back into the log that has lost them."""
    if not is_run_id(run_id):
        raise not_found(run_id)
    request = RestoreRun(tenant=caller.tenant, run_id=run_id)
    return await gateway.archive.ask(
        "restore_run", request, Restored, timeout_seconds=ERASE_SECONDS
    )


@deletions.delete("/v1/runs/{run_id}", tags=["runs"])
async def delete_run(gateway: GatewayParts, caller: Admin, run_id: PathToken) -> Erased:
    """Delete an ended run and its child runs for good; 409 while one of them is open."""
    if not is_run_id(run_id):
        raise not_found(run_id)
    request = EraseRun(tenant=caller.tenant, run_id=run_id)
    return await gateway.archive.ask("erase_run", request, Erased, timeout_seconds=ERASE_SECONDS)


@deletions.delete("/v1/sessions/{session_id}", tags=["sessions"])
@deletions.delete("/v1/conversations/{session_id}", tags=["older paths"])
async def delete_session(
    gateway: GatewayParts,
    caller: Operator,
    session_id: PathToken,
    keep_runs: Annotated[bool, Query(description="Forget the conversation alone")] = False,
) -> Erased:
    """Delete a session and all its runs for good; 409 while one of them is open."""
    if not keep_runs:
        caller.require("admin")
        erase = EraseSession(tenant=caller.tenant, session_id=session_id)
        return await gateway.archive.ask(
            "erase_session", erase, Erased, timeout_seconds=ERASE_SECONDS
        )
    hide = DeleteSession(tenant=caller.tenant, session_id=session_id)
    await gateway.archive.ask("delete_session", hide, SessionDeleted)
    pointers = Bucket(gateway.bus, subjects.SESSIONS)
    await pointers.delete(subjects.session_key(caller.tenant, session_id))
    return Erased(runs=0)


@deletions.delete("/v1/tenants/{tenant}/data", tags=["tenants"])
async def delete_tenant_data(gateway: GatewayParts, caller: Admin, tenant: PathToken) -> Erased:
    """Delete all runs and sessions of the caller's own tenant; 409 while a run is open."""
    if tenant != caller.tenant:
        raise RejectedError(
            "forbidden",
            "a key reaches only the data of its tenant",
            details=(finding("tenant", "another tenant", caller.tenant),),
        )
    return await gateway.archive.ask(
        "erase_tenant", EraseTenant(tenant=tenant), Erased, timeout_seconds=ERASE_SECONDS
    )
