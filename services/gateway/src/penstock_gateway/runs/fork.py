"""Forks: new runs that continue from the recorded facts of another run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from msgspec import structs
from pydantic import JsonValue, ValidationError

from penstock import clock
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError, finding
from penstock.contracts.facts import (
    ForkedFrom,
    RunEnded,
    RunInvoked,
    RunStatus,
    Seed,
    Trigger,
)
from penstock.contracts.plan import PLAN, Plan
from penstock.contracts.versions import accepted_input
from penstock.runs.forks import FROM_OUTSIDE, seed_of
from penstock.runs.lineage import Lineage, changed_nodes
from penstock.runs.start import StartParams
from penstock.runs.state import Entry
from penstock_gateway.core.access import Caller
from penstock_gateway.gateway import Gateway
from penstock_gateway.runs.start import Started, new_run_id

Mode = Literal["fork", "retry", "replay"]

_ADVICE: Final = "`retry` starts the missing steps, `fork` continues from any sequence"


@dataclass(frozen=True, slots=True)
class ForkParams:
    """Parameters of a fork: what the new run does not take over from its source."""

    mode: Mode
    at_seq: int | None = None
    """Sequence at which the new run continues; a replay repeats later decisions."""
    overrides: Mapping[str, JsonValue] = field(default_factory=dict)
    changes: Mapping[str, JsonValue] = field(default_factory=dict)
    """Fields of ``RunInvoked`` that are replaced: ``input``, if it is."""
    selector: str | None = None
    """A version or an alias; ``None``: the source's."""
    limits: Mapping[str, JsonValue] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    request_digest: str | None = None


class Forks:
    """Forks runs of any tenant."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the process's parts."""
        self._runs = gateway.runs
        self._starter = gateway.starter
        self._plans = Bucket(gateway.bus, subjects.PLANS)

    async def fork(self, caller: Caller, source_id: str, params: ForkParams) -> Started:
        """Start a run that takes over the recorded facts of ``source_id``.

        Raises:
            RejectedError: ``run_not_found``, ``invalid_sequence``, ``unknown_step``,
                ``invalid_override``, ``outcome_unknown``, ``unknown_version``, ``plan_missing``,
                ``idempotency_key_reused``.
            ConflictError: ``run_not_ended``, ``run_succeeded``, ``not_replayable``.
            TransientError: The log did not answer.
        """
        tenant = caller.tenant
        if params.run_id is not None:
            earlier = await self._starter.earlier(tenant, params.run_id, params.request_digest)
            if earlier is not None:
                return earlier
        run_id = params.run_id or new_run_id()
        entries = await self._runs.entries(tenant, source_id)
        invoked = await self._invoked(caller, source_id, run_id, entries, params)
        return await self._starter.append(tenant, run_id, invoked)

    async def _invoked(
        self,
        caller: Caller,
        source_id: str,
        run_id: str,
        entries: Sequence[Entry],
        params: ForkParams,
    ) -> RunInvoked:
        source = next(entry.fact for entry in entries if isinstance(entry.fact, RunInvoked))
        _require_mode(source_id, entries, params)
        last = entries[-1].seq
        _require_sequence(source_id, entries, params)
        before = await self._plan(source.plan_digest)
        version, digest, plan = source.version, source.plan_digest, before
        drop: set[str] = set()
        reshaped: frozenset[str] = frozenset()
        if params.selector is not None:
            wanted = StartParams(
                tenant=caller.tenant,
                run_id=run_id,
                name=source.name,
                kind=source.kind,
                selector=params.selector,
                path="version",
            )
            published = await self._starter.version_of(wanted)
            version, digest = published.version, published.plan_digest
            plan = await self._plan(digest)
            changed, reshaped = changed_nodes(before, plan)
            drop |= changed
        given = source.input
        if "input" in params.changes:
            given = await asyncio.to_thread(accepted_input, plan, params.changes["input"])
            if given != source.input:
                drop |= Lineage(plan).readers(source.input, given)
        # In a thread: a long run takes a moment to be sorted out.
        seed = await asyncio.to_thread(self._seed, plan, entries, params, drop, reshaped)
        limits = structs.replace(source.limits, **dict(params.limits))
        return structs.replace(
            source,
            occurred_at=clock.now(),
            version=version,
            plan_digest=digest,
            input=given,
            limits=limits,
            trigger=Trigger.FORK,
            request_digest=params.request_digest,
            requested_by=caller.key_id,
            tags={**source.tags, **params.tags},
            parent=None,
            seed=seed,
            forked_from=ForkedFrom(
                run_id=source_id,
                at_seq=last if params.at_seq is None else params.at_seq,
                mode=params.mode,
            ),
        )

    def _seed(
        self,
        plan: Plan,
        entries: Sequence[Entry],
        params: ForkParams,
        drop: set[str],
        reshaped: frozenset[str],
    ) -> Seed:
        replay = params.mode == "replay"
        return seed_of(
            plan,
            entries,
            at_seq=None if replay else params.at_seq,
            decided_by=params.at_seq if replay else None,
            overrides=params.overrides,
            drop=drop,
            reshaped=reshaped,
            as_recorded=replay,
        )

    async def _plan(self, digest: str) -> Plan:
        entry = await self._plans.get(digest)
        if entry is None:
            raise RejectedError("plan_missing", f"no plan has the digest {digest}")
        try:
            return PLAN.validate_json(entry.value)
        except ValidationError as error:
            raise RejectedError("plan_missing", f"plan {digest} cannot be read") from error


def _require_mode(source_id: str, entries: Sequence[Entry], params: ForkParams) -> None:
    """Check that a run can be retried or replayed; forked it can always be."""
    if params.mode == "fork":
        return
    ended = next((entry.fact for entry in entries if isinstance(entry.fact, RunEnded)), None)
    if ended is None:
        raise ConflictError(
            "run_not_ended", f"run {source_id} has not ended: cancel it first, or fork it"
        )
    if params.mode == "retry" and ended.status is RunStatus.DONE:
        raise ConflictError(
            "run_succeeded",
            f"run {source_id} is done: there is nothing to retry; `replay` or `fork` it",
        )
    unchanged = not params.overrides and params.at_seq is None
    code = ended.error.code if ended.error is not None else ""
    if params.mode == "replay" and unchanged and code in FROM_OUTSIDE:
        raise ConflictError(
            "not_replayable",
            f"run {source_id} was ended from outside ({code}); a replay would continue it: "
            f"{_ADVICE}",
        )


def _require_sequence(source_id: str, entries: Sequence[Entry], params: ForkParams) -> None:
    first = next(entry.seq for entry in entries if isinstance(entry.fact, RunInvoked))
    last = entries[-1].seq
    if params.at_seq is None or first <= params.at_seq <= last:
        return
    raise RejectedError(
        "invalid_sequence",
        f"run {source_id} has nothing at sequence {params.at_seq}",
        details=(
            finding(
                "from" if params.mode == "replay" else "at_seq",
                f"got {params.at_seq}",
                f"{first} to {last}",
            ),
        ),
    )
