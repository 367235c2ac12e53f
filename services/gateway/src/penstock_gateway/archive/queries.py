"""Parameters of lists: those that are not known are refused by name, with what there is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.params import Depends as Dependency
from pydantic import BaseModel, ConfigDict, Field

from penstock.contracts.envelope import BoundedTime
from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.facts import DefinitionKind, RunStatus, StepKind, Trigger
from penstock.contracts.ids import Token
from penstock.runs.state import StepStatus
from penstock_gateway.core.preferences import refuse_unknown

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(description="The `next_cursor` of the page before.")]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Parameters(BaseModel):
    """Base of a list's parameters; ``known_only`` refuses others."""

    model_config = ConfigDict(frozen=True)


class RunQuery(Parameters):
    """Which runs are wanted; all filters that are given must match."""

    status: list[RunStatus] = []
    id_prefix: str | None = Field(
        default=None, pattern="^[0-9A-HJKMNP-TV-Z]{1,26}$", description="First characters of its id"
    )
    name: Token | None = None
    kind: DefinitionKind | None = None
    session_id: Token | None = None
    trigger: list[Trigger] = []
    created_from: BoundedTime | None = None
    created_before: BoundedTime | None = None
    ended_from: BoundedTime | None = None
    ended_before: BoundedTime | None = None
    tag: list[str] = Field(default=[], description="`name=value`; the run has all of them")
    min_cost: Cost | None = Field(default=None, description="In USD, included")
    max_cost: Cost | None = Field(default=None, description="In USD, included")
    parent: Token | None = Field(default=None, description="Runs that this run has started")
    root: Token | None = Field(default=None, description="This run and all its descendants")
    forked_from: Token | None = None
    error: str | None = Field(default=None, max_length=100, description="Part of an error's code")
    sort: str = Field(
        default="created", pattern="^(created|ended)$", description="By `ended`: ended runs alone"
    )
    order: str = Field(default="desc", pattern="^(desc|asc)$")
    limit: int = Field(default=50, ge=1, le=1000)
    cursor: str | None = Field(default=None, description="The `next_cursor` of the page before")


class StepQuery(Parameters):
    """Which step executions are wanted; all filters that are given must match."""

    run_id: Token | None = None
    status: list[StepStatus] = []
    kind: list[StepKind] = []
    name: Token | None = None
    node_id: Token | None = None
    scheduled_from: BoundedTime | None = None
    scheduled_before: BoundedTime | None = None
    limit: int = Field(default=50, ge=1, le=1000)
    cursor: str | None = Field(default=None, description="The `next_cursor` of the page before")


class SignalQuery(Parameters):
    """Which messages between runs are wanted; all filters that are given must match."""

    run_id: Token | None = Field(default=None, description="The run that it reached")
    from_run: Token | None = None
    name: str | None = Field(default=None, max_length=200)
    limit: int = Field(default=50, ge=1, le=1000)
    cursor: str | None = Field(default=None, description="The `next_cursor` of the page before")


class SpanQuery(Parameters):
    """A span of time, and whose."""

    since: BoundedTime | None = None
    until: BoundedTime | None = Field(default=None, description="Not included")
    name: Token | None = None


class ProfileQuery(SpanQuery):
    """Which ended runs are reported on, and from which share on a node is a bottleneck."""

    threshold: float = Field(default=0.5, ge=0, le=1, description="Strictly above it")
    runs: int = Field(default=200, ge=1, le=1000, description="The latest so many")


def known_only(model: type[BaseModel]) -> Dependency:
    """Return the dependency that refuses parameters which ``model`` does not have."""

    async def check(request: Request) -> None:
        refuse_unknown(request.query_params, model.model_fields)

    checked: Callable[[Request], Awaitable[None]] = check
    dependency: Dependency = Depends(checked)
    return dependency


def read_tag(text: str) -> tuple[str, str]:
    """Take apart ``name=value``; ``name:value`` is understood as well.

    Raises:
        RejectedError: ``invalid_request``.
    """
    at = min((text.find(sign) for sign in "=:" if sign in text), default=-1)
    if at <= 0:
        raise RejectedError(
            "invalid_request",
            "a tag is given as name=value",
            details=(finding("query.tag", f"got {text[:80]!r}", "name=value"),),
        )
    return text[:at], text[at + 1 :]
