"""Routes of runs that continue from others: fork, retry, replay."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Final

from fastapi import APIRouter, Path, Response
from pydantic import ConfigDict, Field, JsonValue

from penstock.contracts.envelope import StreamSequence, VersionNumber
from penstock.contracts.ids import Token, run_id_from_key
from penstock.runs.views import RunView
from penstock_gateway.context import GatewayParts, IdempotencyKey, Operator
from penstock_gateway.core.access import Caller
from penstock_gateway.core.requests import Input, Limits, Tag
from penstock_gateway.gateway import Gateway
from penstock_gateway.openapi import DONE_BEFORE
from penstock_gateway.runs.fork import ForkParams, Forks, Mode

RunId = Annotated[str, Path(description="The source run")]
Overrides = Annotated[dict[Token, JsonValue], Field(max_length=1000)]
"""Outputs by step or node instance, instead of the recorded ones."""

forks: Final = APIRouter(tags=["runs"])


class RetryRun(Input):
    """Differences of the new run from its source."""

    overrides: Overrides = {}
    limits: Limits = Limits()
    """Absent limits stay as in the source."""
    tags: dict[Tag, Tag] = Field(default_factory=dict, max_length=32)
    """Added to the source's."""


class ForkRun(RetryRun):
    """The sequence to continue from, and differences of the new run."""

    at_seq: StreamSequence | None = None
    """Sequence of the log; later facts do not count. Absent: all facts count."""
    input: JsonValue = None
    """Another input; steps that read its changed parts are executed again."""
    version: VersionNumber | Token | None = None
    """Another version or an alias; steps that it defines otherwise are executed again."""


class ReplayRun(Input):
    """The sequence and the overrides of a replay."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False)

    from_: StreamSequence | None = Field(default=None, alias="from")
    """Sequence of the log; later decisions are made again."""
    overrides: Overrides = {}
    tags: dict[Tag, Tag] = Field(default_factory=dict, max_length=32)


def _params(
    caller: Caller,
    run_id: str,
    mode: Mode,
    body: ForkRun | RetryRun | ReplayRun,
    key: str | None,
) -> ForkParams:
    form = body.model_dump_json(exclude_unset=True)
    fork = body if isinstance(body, ForkRun) else ForkRun()
    at_seq = body.from_ if isinstance(body, ReplayRun) else fork.at_seq
    limits = {} if isinstance(body, ReplayRun) else body.limits.model_dump(exclude_unset=True)
    return ForkParams(
        mode=mode,
        at_seq=at_seq,
        overrides=body.overrides,
        changes={"input": fork.input} if "input" in fork.model_fields_set else {},
        selector=None if fork.version is None else str(fork.version),
        limits=limits,
        tags=body.tags,
        run_id=None if key is None else run_id_from_key(caller.tenant, key),
        request_digest=(
            None if key is None else sha256(f"{mode} {run_id} {form}".encode()).hexdigest()
        ),
    )


async def _answer(
    gateway: Gateway, caller: Caller, run_id: str, params: ForkParams, response: Response
) -> RunView:
    forked = await Forks(gateway).fork(caller, run_id, params)
    response.headers["location"] = f"/v1/runs/{forked.run_id}"
    if forked.replayed:
        response.headers["idempotent-replayed"] = "true"
    state = await gateway.runs.state(caller.tenant, forked.run_id, at_least_seq=forked.seq)
    if state.ended is not None:
        response.status_code = 200
    return await gateway.runs.view_of(state)


@forks.post("/v1/runs/{run_id}/fork", status_code=202, responses=DONE_BEFORE)
async def fork_run(
    gateway: GatewayParts,
    caller: Operator,
    run_id: RunId,
    response: Response,
    key: IdempotencyKey,
    body: ForkRun | None = None,
) -> RunView:
    """Start a run that continues from any sequence of another one.

    Recorded outcomes up to there are reused and cost nothing; steps that depend on an override,
    on a changed part of the input or on a changed definition are executed again.
    """
    params = _params(caller, run_id, "fork", body or ForkRun(), key)
    return await _answer(gateway, caller, run_id, params, response)


@forks.post("/v1/runs/{run_id}/retry", status_code=202, responses=DONE_BEFORE)
async def retry_run(
    gateway: GatewayParts,
    caller: Operator,
    run_id: RunId,
    response: Response,
    key: IdempotencyKey,
    body: RetryRun | None = None,
) -> RunView:
    """Start a run that continues a failed or cancelled one at its failed steps.

    All that succeeded is taken over; what failed, was stopped or was undone is done again.
    """
    params = _params(caller, run_id, "retry", body or RetryRun(), key)
    return await _answer(gateway, caller, run_id, params, response)


@forks.post("/v1/runs/{run_id}/replay", status_code=202, responses=DONE_BEFORE)
async def replay_run(
    gateway: GatewayParts,
    caller: Operator,
    run_id: RunId,
    response: Response,
    key: IdempotencyKey,
    body: ReplayRun | None = None,
) -> RunView:
    """Start a run that repeats an ended one with its recorded outcomes, failures included.

    Nothing is spent, except on what depends on an override or was decided after `from`.
    """
    params = _params(caller, run_id, "replay", body or ReplayRun(), key)
    return await _answer(gateway, caller, run_id, params, response)
