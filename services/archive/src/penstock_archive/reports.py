"""Step executions and signals as lists, and reports of cost and time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    func,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.contracts.archive import (
    ListSignals,
    ListSteps,
    SignalPage,
    SignalView,
    StepExecution,
    StepPage,
)
from penstock.contracts.archive_reports import (
    CostLine,
    CostReport,
    CostReportView,
    GetProfile,
    NodeReport,
    ProfileOfRun,
    ProfileReport,
    ProfileReportView,
    UsageReport,
    UsageSummary,
)
from penstock.contracts.errors import InvariantError, RejectedError
from penstock.contracts.structs import decode, encode
from penstock.contracts.usage import Usage
from penstock.db import session_factory, session_scope
from penstock.runs.profiles import ModelCost, NodeProfile, RunProfile, profile_of_entries
from penstock_archive import cursors
from penstock_archive.columns import read_error, read_usage, read_value
from penstock_archive.instants import to_micros
from penstock_archive.projection import read_entry
from penstock_archive.tables import facts, runs, signals, steps, usage

_STEPS = "steps"
_SIGNALS = "signals"
STORED_FACTS = 100
"""Profiles of runs of more facts are stored once they were asked for."""
_RUNS_AT_ONCE = 20
"""Runs whose facts are read together."""
_PROFILED = ("run.invoked", "step.scheduled", "step.result", "run.state", "run.ended")
"""Types of the facts that a profile follows from."""


class Reports:
    """The archive's verbs about steps, signals, cost and time."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Ask over an engine that the caller disposes of."""
        self._factory = session_factory(engine)

    async def list_steps(self, request: ListSteps) -> StepPage:
        """Return step executions, the latest first."""
        conditions = [steps.c.tenant == request.tenant]
        for column, value in (
            (steps.c.run_id, request.run_id),
            (steps.c.name, request.name),
            (steps.c.node_id, request.node_id),
        ):
            if value is not None:
                conditions.append(column == value)
        if request.status:
            conditions.append(steps.c.status.in_(request.status))
        if request.kind:
            conditions.append(steps.c.kind.in_([kind.value for kind in request.kind]))
        at = steps.c.scheduled_at
        if request.scheduled_from is not None:
            conditions.append(at >= request.scheduled_from)
        if request.scheduled_before is not None:
            conditions.append(at < request.scheduled_before)
        if request.cursor is not None:
            micros, run_id, step_id = cursors.unpack(request.cursor, _STEPS, int, str, str)
            place = cursors.moment(micros, request.cursor)
            within = or_(
                steps.c.run_id < run_id, and_(steps.c.run_id == run_id, steps.c.step_id < step_id)
            )
            conditions.append(or_(at < place, and_(at == place, within)))
        found = await self._read(
            select(steps)
            .where(*conditions)
            .order_by(at.desc(), steps.c.run_id.desc(), steps.c.step_id.desc())
            .limit(request.limit + 1)
        )
        shown = found[: request.limit]
        last = shown[-1] if len(found) > request.limit else None
        return StepPage(
            items=tuple(_step(row) for row in shown),
            next_cursor=None
            if last is None
            else cursors.pack(_STEPS, to_micros(last.scheduled_at), last.run_id, last.step_id),
        )

    async def list_signals(self, request: ListSignals) -> SignalPage:
        """Return what reached runs from outside, the latest first."""
        conditions = [signals.c.tenant == request.tenant]
        for column, value in (
            (signals.c.run_id, request.run_id),
            (signals.c.from_run, request.from_run),
            (signals.c.name, request.name),
        ):
            if value is not None:
                conditions.append(column == value)
        if request.kind:
            conditions.append(signals.c.kind.in_(request.kind))
        if request.cursor is not None:
            (place,) = cursors.unpack(request.cursor, _SIGNALS, int)
            conditions.append(signals.c.seq < place)
        found = await self._read(
            select(signals)
            .where(*conditions)
            .order_by(signals.c.seq.desc())
            .limit(request.limit + 1)
        )
        shown = found[: request.limit]
        return SignalPage(
            items=tuple(_signal(row) for row in shown),
            next_cursor=(
                cursors.pack(_SIGNALS, shown[-1].seq) if len(found) > request.limit else None
            ),
        )

    async def usage_summary(self, request: UsageSummary) -> UsageReport:
        """Return the cost of model calls, the dearest model first."""
        rows = await self._read(
            select(usage.c.provider, usage.c.model, *_sums())
            .where(*_chosen(request))
            .group_by(usage.c.provider, usage.c.model)
            .order_by(func.sum(usage.c.cost_usd).desc(), usage.c.provider, usage.c.model)
        )
        items = tuple(
            ModelCost(provider=row.provider, model=row.model, usage=_usage(row)) for row in rows
        )
        return UsageReport(items=items, total=_total(line.usage for line in items))

    async def cost_report(self, request: CostReport) -> CostReportView:
        """Return what model calls cost, grouped in four ways."""
        conditions = [*_chosen(request), usage.c.model_calls > 0]
        async with session_scope(self._factory, read_only=True) as session:
            postgres = session.get_bind().dialect.name == "postgresql"
            at = usage.c.occurred_at
            seconds = type_coerce(at, BigInteger) // 1_000_000
            day = (
                func.to_char(func.timezone("UTC", at), "YYYY-MM-DD")
                if postgres
                else func.strftime("%Y-%m-%d", seconds, "unixepoch")
            ).label("day")
            grouped = (
                select(usage.c.provider, usage.c.model, usage.c.name, day, *_sums())
                .where(*conditions)
                .group_by(usage.c.provider, usage.c.model, usage.c.name, day)
            )
            rows = (await session.execute(grouped)).all()
            counted = select(func.count(usage.c.run_id.distinct())).where(*conditions)
            run_count = (await session.execute(counted)).scalar_one()
        total = _total(_usage(row) for row in rows)
        providers = _lines(rows, lambda row: row.provider, total)
        dearest = providers[0] if providers and providers[0].usage.cost_usd > 0 else None
        days = _lines(rows, lambda row: row.day, total)
        return CostReportView(
            total=total,
            runs=run_count,
            providers=providers,
            models=_lines(rows, lambda row: row.model, total),
            agents=_lines(rows, lambda row: row.name, total),
            days=tuple(sorted(days, key=lambda line: line.key, reverse=True)),
            most_expensive_provider=dearest.key if dearest is not None else None,
            unknown_prices=tuple(sorted({row.model for row in rows if row.unknown_prices})),
        )

    async def profile_report(self, request: ProfileReport) -> ProfileReportView:
        """Return where the latest ended runs spent their time."""
        query = _ended_runs(request.tenant)
        if request.name is not None:
            query = query.where(runs.c.name == request.name)
        if request.since is not None:
            query = query.where(runs.c.ended_at >= request.since)
        if request.until is not None:
            query = query.where(runs.c.ended_at < request.until)
        query = query.order_by(runs.c.ended_at.desc(), runs.c.seq.desc()).limit(request.runs)
        ended = await self._read(query)
        profiles = await self._profiles(request.tenant, ended)
        found = [(row.name, profiles[row.run_id]) for row in ended]
        of_node: dict[tuple[str, str], list[NodeProfile]] = defaultdict(list)
        for name, profile in found:
            for node in profile.nodes:
                of_node[name, node.node_id].append(node)
        nodes = sorted(
            (_node(*key, own, request.threshold) for key, own in of_node.items()),
            key=lambda node: (-node.mean_ms, node.name, node.node_id),
        )
        walls = [profile.wall_ms for _, profile in found]
        return ProfileReportView(
            runs=len(found),
            threshold=request.threshold,
            mean_wall_ms=sum(walls) / len(walls) if walls else 0.0,
            nodes=tuple(nodes),
            slowest=f"{nodes[0].name}/{nodes[0].node_id}" if nodes else None,
            bottlenecks=tuple(
                f"{node.name}/{node.node_id}"
                for node in nodes
                if node.mean_share > request.threshold
            ),
        )

    async def get_profile(self, request: GetProfile) -> ProfileOfRun:
        """Return the profile of an ended run.

        Raises:
            RejectedError: ``run_not_found``.
        """
        found = await self._read(_ended_runs(request.tenant).where(runs.c.run_id == request.run_id))
        if not found:
            raise RejectedError("run_not_found", f"there is no ended run {request.run_id[:64]}")
        row = found[0]
        profile = (await self._profiles(request.tenant, found))[row.run_id]
        return ProfileOfRun(
            run_id=request.run_id, name=row.name, status=row.status, profile=profile
        )

    async def _profiles(self, tenant: str, ended: Sequence[Row[Any]]) -> dict[str, RunProfile]:
        """Return the profiles of runs, from their facts where they are not stored."""
        profiles = {
            row.run_id: decode(RunProfile, row.profile) for row in ended if row.profile is not None
        }
        missing = [row for row in ended if row.profile is None]
        for begin in range(0, len(missing), _RUNS_AT_ONCE):
            part = missing[begin : begin + _RUNS_AT_ONCE]
            found = await self._read(
                select(facts.c.run_id, facts.c.seq, facts.c.subject, facts.c.body)
                .where(facts.c.tenant == tenant, facts.c.run_id.in_([row.run_id for row in part]))
                .where(facts.c.type.in_(_PROFILED))
                .order_by(facts.c.seq)
            )
            own: dict[str, list[Row[Any]]] = defaultdict(list)
            for fact in found:
                own[fact.run_id].append(fact)
            for row in part:
                profile = await asyncio.to_thread(_profile, own[row.run_id])
                profiles[row.run_id] = profile
                if len(own[row.run_id]) > STORED_FACTS:
                    await self._store(tenant, row, profile)
        return profiles

    async def _store(self, tenant: str, row: Row[Any], profile: RunProfile) -> None:
        """Store a run's profile, unless a later fact has changed the run; that deletes it."""
        async with session_scope(self._factory) as session:
            await session.execute(
                update(runs)
                .where(runs.c.tenant == tenant, runs.c.run_id == row.run_id)
                .where(runs.c.last_seq == row.last_seq)
                .values(profile=encode(profile).decode())
            )

    async def _read(self, query: Select[Any]) -> Sequence[Row[Any]]:
        async with session_scope(self._factory, read_only=True) as session:
            found: Sequence[Row[Any]] = (await session.execute(query)).all()
            return found


def _profile(rows: Sequence[Row[Any]]) -> RunProfile:
    profile = profile_of_entries(read_entry(row.seq, row.subject, row.body) for row in rows)
    if profile is None:
        raise InvariantError("not_invoked", "the run's first fact is not in the archive")
    return profile


def _ended_runs(tenant: str) -> Select[Any]:
    return select(
        runs.c.run_id,
        runs.c.last_seq,
        runs.c.name,
        runs.c.status,
        runs.c.created_at,
        runs.c.ended_at,
        runs.c.profile,
    ).where(runs.c.tenant == tenant, runs.c.ended_at.is_not(None), runs.c.seq.is_not(None))


def _chosen(request: UsageSummary | CostReport) -> Iterator[ColumnElement[bool]]:
    yield usage.c.tenant == request.tenant
    if request.name is not None:
        yield usage.c.name == request.name
    if request.since is not None:
        yield usage.c.occurred_at >= request.since
    if request.until is not None:
        yield usage.c.occurred_at < request.until


def _sums() -> tuple[ColumnElement[Any], ...]:
    return (
        func.sum(usage.c.input_tokens).label("input_tokens"),
        func.sum(usage.c.output_tokens).label("output_tokens"),
        func.sum(usage.c.cost_usd).label("cost_usd"),
        func.count().filter(usage.c.unknown_price).label("unknown_prices"),
        func.sum(usage.c.model_calls).label("model_calls"),
        func.sum(usage.c.steps).label("steps"),
    )


def _usage(row: Row[Any]) -> Usage:
    return Usage(
        input_tokens=int(row.input_tokens),
        output_tokens=int(row.output_tokens),
        cost_usd=row.cost_usd,
        unknown_price=row.unknown_prices > 0,
        model_calls=int(row.model_calls),
        steps=int(row.steps),
    )


def _total(usages: Iterable[Usage]) -> Usage:
    total = Usage()
    for one in usages:
        total = total.plus(one)
    return total


def _lines(
    rows: Sequence[Row[Any]], key_of: Callable[[Row[Any]], str], total: Usage
) -> tuple[CostLine, ...]:
    groups: dict[str, Usage] = {}
    for row in rows:
        key = key_of(row)
        groups[key] = groups.get(key, Usage()).plus(_usage(row))
    whole = total.cost_usd
    return tuple(
        CostLine(key=key, usage=spent, share=spent.cost_usd / whole if whole > 0 else 0.0)
        for key, spent in sorted(groups.items(), key=lambda item: (-item[1].cost_usd, item[0]))
    )


def _node(name: str, node_id: str, nodes: Sequence[NodeProfile], threshold: float) -> NodeReport:
    count = len(nodes)
    return NodeReport(
        name=name,
        node_id=node_id,
        runs=count,
        mean_ms=sum(node.duration_ms for node in nodes) / count,
        longest_ms=max(node.duration_ms for node in nodes),
        mean_wait_ms=sum(node.queue_wait_ms for node in nodes) / count,
        mean_share=sum(node.share for node in nodes) / count,
        cost_usd=sum(node.cost_usd for node in nodes),
        bottleneck_in=sum(node.share > threshold for node in nodes),
    )


def _step(row: Row[Any]) -> StepExecution:
    started, ended = row.started_at, row.ended_at
    return StepExecution(
        run_id=row.run_id,
        step_id=row.step_id,
        node_id=row.node_id,
        kind=row.kind,
        name=row.name,
        queue=row.queue,
        status=row.status,
        attempt=row.attempt,
        scheduled_at=row.scheduled_at,
        started_at=started,
        ended_at=ended,
        output=None if row.output_truncated else read_value(row.output or None, row.run_id),
        error=read_error(row.error, row.run_id),
        usage=read_usage(row.usage, row.run_id),
        model=row.model,
        queue_wait_ms=_between_ms(row.scheduled_at, started),
        duration_ms=_between_ms(started, ended),
    )


def _between_ms(begin: Any, end: Any) -> float | None:
    if begin is None or end is None:
        return None
    return max(0, to_micros(end) - to_micros(begin)) / 1000


def _signal(row: Row[Any]) -> SignalView:
    return SignalView(
        seq=row.seq,
        signal_id=row.signal_id,
        run_id=row.run_id,
        kind=row.kind,
        name=row.name,
        target=row.target,
        from_run=row.from_run,
        sent_by=row.sent_by,
        payload=read_value(row.payload, row.run_id),
        occurred_at=row.occurred_at,
    )
