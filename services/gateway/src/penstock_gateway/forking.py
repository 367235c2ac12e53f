"""Forking runs: from a recorded run to a new one that goes on from there, once only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from msgspec import structs
from pydantic import JsonValue, ValidationError

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorDetail, RejectedError, TransientError
from penstock.contracts.facts import (
    ForkedFrom,
    RunEnded,
    RunInvoked,
    RunStatus,
    Seed,
    Trigger,
    fact_bytes,
)
from penstock.contracts.ids import shard_of
from penstock.contracts.plan import PLAN, Plan, PublishedVersion
from penstock.contracts.versions import check_input
from penstock.runids import new_run_id
from penstock.runs.forks import FROM_OUTSIDE, seed_of
from penstock.runs.lineage import Lineage, changed_nodes
from penstock.runs.state import Entry
from penstock_gateway.core.access import Caller
from penstock_gateway.gateway import Gateway
from penstock_gateway.metrics import RUNS_REPLAYED, RUNS_STARTED
from penstock_gateway.starts import Ask

Mode = Literal["fork", "retry", "replay"]

_ADVICE: Final = "`retry` starts the missing steps, `fork` continues from any sequence"


@dataclass(frozen=True, slots=True)
class ForkAsk:
    """What of a run is to be another thing in the new one."""

    mode: Mode
    at_seq: int | None = None
    """Where the new run goes on; in a replay, what was decided later is decided anew."""
    overrides: Mapping[str, JsonValue] = field(default_factory=dict)
    changes: Mapping[str, JsonValue] = field(default_factory=dict)
    """Fields of ``RunInvoked`` that are replaced: ``input``, if it is."""
    selector: str | None = None
    """A version or an alias; ``None``: the source's."""
    limits: Mapping[str, JsonValue] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    request_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Forked:
    """The new run, by this request or (``replayed``) an earlier one like it."""

    run_id: str
    seq: int
    replayed: bool = False


class Forks:
    """Forks runs of any tenant."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the process's parts."""
        self._writer = gateway.writer
        self._reader = gateway.reader
        self._runs = gateway.runs
        self._starter = gateway.starter
        self._shards = gateway.settings.shards
        self._plans = Bucket(gateway.bus, subjects.PLANS)

    async def fork(self, caller: Caller, source_id: str, ask: ForkAsk) -> Forked:
        """State that a run is asked for that takes over what ``source_id`` has recorded.

        Raises:
            RejectedError: ``run_not_found``, ``invalid_sequence``, ``unknown_step``,
                ``invalid_override``, ``outcome_unknown``, ``unknown_version``, ``plan_missing``,
                ``idempotency_key_reused``.
            ConflictError: ``run_not_ended``, ``run_succeeded``, ``not_replayable``.
            TransientError: The log did not answer.
        """
        run_id = ask.run_id or new_run_id()
        prefix = subjects.run_prefix(caller.tenant, shard_of(run_id, self._shards), run_id)
        if ask.run_id is not None:
            earlier = await self._earlier(run_id, prefix, ask)
            if earlier is not None:
                return earlier
        entries = await self._runs.entries(caller.tenant, source_id)
        invoked = await self._invoked(caller, source_id, entries, ask)
        try:
            seq = await self._writer.append(subjects.invoke(prefix), fact_bytes(invoked))
        except ConflictError:
            found = await self._earlier(run_id, prefix, ask)
            if found is None:
                raise TransientError(
                    "start_unclear", f"run {run_id} was refused as a duplicate and cannot be read"
                ) from None
            return found
        RUNS_STARTED.inc()
        return Forked(run_id, seq)

    async def _earlier(self, run_id: str, prefix: str, ask: ForkAsk) -> Forked | None:
        entry = await self._reader.read_fact(subjects.invoke(prefix))
        if entry is None or not isinstance(entry.fact, RunInvoked):
            return None
        if entry.fact.request_digest != ask.request_digest:
            raise RejectedError(
                "idempotency_key_reused",
                f"the same key started run {run_id} with another request",
                details=(
                    ErrorDetail(
                        path="Idempotency-Key",
                        message="used before with another body",
                        allowed="the same body, or a new key",
                    ),
                ),
            )
        RUNS_REPLAYED.inc()
        return Forked(run_id, entry.seq, replayed=True)

    async def _invoked(
        self, caller: Caller, source_id: str, entries: Sequence[Entry], ask: ForkAsk
    ) -> RunInvoked:
        source = next(entry.fact for entry in entries if isinstance(entry.fact, RunInvoked))
        _require_mode(source_id, entries, ask)
        last = entries[-1].seq
        _require_sequence(source_id, entries, ask)
        before = await self._plan(source.plan_digest)
        version, digest, plan = source.version, source.plan_digest, before
        drop: set[str] = set()
        reshaped: frozenset[str] = frozenset()
        if ask.selector is not None:
            wanted = Ask(
                tenant=caller.tenant,
                name=source.name,
                input=None,
                kind=source.kind,
                selector=ask.selector,
                path="version",
            )
            published = await self._starter.version_of(wanted)
            version, digest = published.version, published.plan_digest
            plan = await self._plan(digest)
            changed, reshaped = changed_nodes(before, plan)
            drop |= changed
        given = ask.changes.get("input", source.input)
        if given != source.input:
            drop |= Lineage(plan).readers(source.input, given)
            await self._check_input(source, plan, given)
        # In a thread: a long run takes a moment to be sorted out.
        seed = await asyncio.to_thread(self._seed, plan, entries, ask, drop, reshaped)
        limits = structs.replace(source.limits, **dict(ask.limits))
        return RunInvoked(
            occurred_at=datetime.now(UTC),
            name=source.name,
            kind=source.kind,
            version=version,
            plan_digest=digest,
            input=given,
            session_id=source.session_id,
            history=source.history,
            limits=limits,
            trigger=Trigger.FORK,
            request_digest=ask.request_digest,
            requested_by=caller.key_id,
            tags={**source.tags, **ask.tags},
            seed=seed,
            forked_from=ForkedFrom(
                run_id=source_id, at_seq=last if ask.at_seq is None else ask.at_seq, mode=ask.mode
            ),
            priority=source.priority,
        )

    @staticmethod
    async def _check_input(source: RunInvoked, plan: Plan, given: JsonValue) -> None:
        if plan.input_schema is not None:
            version = PublishedVersion(
                name=source.name,
                kind=source.kind,
                version=source.version,
                plan_digest=source.plan_digest,
                input_schema=plan.input_schema,
            )
            await asyncio.to_thread(check_input, version, given)

    def _seed(
        self,
        plan: Plan,
        entries: Sequence[Entry],
        ask: ForkAsk,
        drop: set[str],
        reshaped: frozenset[str],
    ) -> Seed:
        replay = ask.mode == "replay"
        return seed_of(
            plan,
            entries,
            at_seq=None if replay else ask.at_seq,
            decided_by=ask.at_seq if replay else None,
            overrides=ask.overrides,
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


def _require_mode(source_id: str, entries: Sequence[Entry], ask: ForkAsk) -> None:
    """Check that a run can be retried or replayed; forked it can always be."""
    if ask.mode == "fork":
        return
    ended = next((entry.fact for entry in entries if isinstance(entry.fact, RunEnded)), None)
    if ended is None:
        raise ConflictError(
            "run_not_ended", f"run {source_id} has not ended: cancel it first, or fork it"
        )
    if ask.mode == "retry" and ended.status is RunStatus.DONE:
        raise ConflictError(
            "run_succeeded",
            f"run {source_id} is done: there is nothing to retry; `replay` or `fork` it",
        )
    unchanged = not ask.overrides and ask.at_seq is None
    code = ended.error.code if ended.error is not None else ""
    if ask.mode == "replay" and unchanged and code in FROM_OUTSIDE:
        raise ConflictError(
            "not_replayable",
            f"run {source_id} was ended from outside ({code}); a replay would continue it: "
            f"{_ADVICE}",
        )


def _require_sequence(source_id: str, entries: Sequence[Entry], ask: ForkAsk) -> None:
    first = next(entry.seq for entry in entries if isinstance(entry.fact, RunInvoked))
    last = entries[-1].seq
    if ask.at_seq is None or first <= ask.at_seq <= last:
        return
    raise RejectedError(
        "invalid_sequence",
        f"run {source_id} has nothing at sequence {ask.at_seq}",
        details=(
            ErrorDetail(
                path="from" if ask.mode == "replay" else "at_seq",
                message=f"got {ask.at_seq}",
                allowed=f"{first} to {last}",
            ),
        ),
    )
