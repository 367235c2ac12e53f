"""Bundles of runs over HTTP: export and import."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from penstock.contracts.ids import run_id_from_key
from penstock.runs.bundles import MEDIA_TYPE, Bundle, BundleReader
from penstock.runs.replies import RunImported
from penstock_gateway.context import GatewayParts, Operator, Viewer
from penstock_gateway.core.preferences import idempotency_key
from penstock_gateway.runs.bundle import Bundles

RunId = Annotated[str, Path(description="The run")]

bundles: Final = APIRouter(tags=["runs"])


@bundles.get(
    "/v1/runs/{run_id}/export",
    response_class=Response,
    responses={200: {"description": "The bundle", "content": {MEDIA_TYPE: {}}}},
)
async def export_run(gateway: GatewayParts, caller: Viewer, run_id: RunId) -> StreamingResponse:
    """Stream a run as a bundle: its plan and all its facts, chained by hashes."""
    lines = await Bundles(gateway).export(caller.tenant, run_id)
    return StreamingResponse(
        lines,
        media_type=MEDIA_TYPE,
        headers={"content-disposition": f'attachment; filename="{run_id}.ndjson"'},
    )


@bundles.post(
    "/v1/runs/import",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {MEDIA_TYPE: {}}}},
)
async def import_run(
    request: Request,
    gateway: GatewayParts,
    caller: Operator,
    response: Response,
    as_new: Annotated[bool, Query(description="Give the run an id of its own")] = False,
    idempotency_key_: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> RunImported:
    """Put the run of a bundle into the log. 201, or 200 if all of it was there.

    Every hash is checked first. An ended run stays as it was and nothing of it is done again; a
    run that had not ended needs `as_new` and goes on from what was recorded.
    """
    bundle = await _read(request)
    key = idempotency_key(None if idempotency_key_ is None else idempotency_key_.encode("latin-1"))
    run_id = None if key is None else run_id_from_key(caller.tenant, key)
    done = await Bundles(gateway).load(caller.tenant, bundle, as_new=as_new, run_id=run_id)
    response.headers["location"] = f"/v1/runs/{done.run_id}"
    if not done.stored:
        response.status_code = 200
    return RunImported(run_id=done.run_id, facts=done.facts, stored=done.stored, hash=bundle.hash)


async def _read(request: Request) -> Bundle:
    """Read a bundle as it comes in, so that a wrong line ends it."""
    reader, rest = BundleReader(), b""
    async for part in request.stream():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            reader.add(line)
    reader.add(rest)
    return reader.finish()
