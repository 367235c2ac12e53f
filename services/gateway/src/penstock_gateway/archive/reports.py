"""Reports of cost and time, and how far the archive is."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Query

from penstock.contracts.archive import ArchiveStatus, GetStatus
from penstock.contracts.archive_reports import (
    CostReport,
    CostReportView,
    ProfileOfRun,
    ProfileReport,
    ProfileReportView,
)
from penstock.runs.profiles import profile_of_entries
from penstock.runs.state import fold, new_state
from penstock_gateway.archive.queries import ProfileQuery, SpanQuery, known_only
from penstock_gateway.context import GatewayParts, PathToken, Viewer
from penstock_gateway.runs.read import aside, not_found

REPORT_SECONDS: Final = 30.0

reports: Final = APIRouter(tags=["reports"])


@reports.get("/v1/reports/cost", dependencies=[known_only(SpanQuery)])
async def cost_report(
    gateway: GatewayParts, caller: Viewer, query: Annotated[SpanQuery, Query()]
) -> CostReportView:
    """Return what model calls cost, by provider, model, agent and day."""
    request = CostReport(tenant=caller.tenant, **query.model_dump())
    return await gateway.archive.ask(
        "cost_report", request, CostReportView, timeout_seconds=REPORT_SECONDS
    )


@reports.get("/v1/reports/profile", dependencies=[known_only(ProfileQuery)])
async def profile_report(
    gateway: GatewayParts, caller: Viewer, query: Annotated[ProfileQuery, Query()]
) -> ProfileReportView:
    """Return where the latest ended runs spent their time, and what held them up."""
    request = ProfileReport(tenant=caller.tenant, **query.model_dump())
    return await gateway.archive.ask(
        "profile_report", request, ProfileReportView, timeout_seconds=REPORT_SECONDS
    )


@reports.get("/v1/runs/{run_id}/profile")
async def run_profile(
    gateway: GatewayParts,
    caller: Viewer,
    run_id: PathToken,
    threshold: Annotated[float, Query(ge=0, le=1)] = 0.5,
) -> ProfileOfRun:
    """Return the duration and the cost of each part of a run, from its log; also while it runs."""
    entries = await gateway.runs.entries(caller.tenant, run_id)
    profile = await aside(len(entries), partial(profile_of_entries, entries, threshold=threshold))
    if profile is None:
        raise not_found(run_id)
    begin = entries[0].subject
    empty = new_state(begin.tenant, begin.shard, begin.run_id)
    state = await aside(len(entries), partial(fold, empty, entries))
    name = state.request.name
    return ProfileOfRun(run_id=run_id, name=name, status=state.status, profile=profile)


@reports.get("/v1/archive")
async def archive_status(gateway: GatewayParts, _caller: Viewer) -> ArchiveStatus:
    """Return how far the archive is behind the log."""
    return await gateway.archive.ask("get_status", GetStatus(), ArchiveStatus)
