"""Filters that match few runs: their traits name the runs, so that not all runs are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select

from penstock.contracts.archive import ListRuns
from penstock_archive import cursors, traits
from penstock_archive.tables import runs
from penstock_archive.tables import traits as table

FEW: Final = 1000
"""Most runs that a page is looked for among; where a filter matches more, all runs are read."""


class Narrow(NamedTuple):
    """A filter by traits."""

    queries: tuple[Select[Any], ...]
    """They give the sequences of all runs that match it, or ``FEW`` + 1 of them each."""
    in_order: bool
    """Whether those come in the order of the list, from behind its cursor on."""


def narrow(request: ListRuns) -> Iterator[Narrow]:
    """Yield those filters of a request that traits can answer."""
    for name, value in request.tags.items():
        yield _with(request, traits.tag(name), table.c.value == traits.text(value), exact=True)
    if request.status and traits.ENDINGS.issuperset(request.status):
        values = [status.value for status in request.status]
        yield _with(request, "status", table.c.value.in_(values), exact=len(values) == 1)
    if request.error and traits.text(request.error) == request.error:
        yield _with(request, "error", table.c.value.contains(request.error, autoescape=True))
    if request.min_cost_usd is not None and request.min_cost_usd > 0:
        dear = _with(request, "cost_usd", table.c.value >= traits.cost(request.min_cost_usd))
        still_open = select(runs.c.seq).where(
            # The index of open runs is the one to read, not that of the tenant's runs.
            func.coalesce(runs.c.tenant, "") == request.tenant,
            runs.c.ended_at.is_(None),
            runs.c.seq.is_not(None),
            runs.c.cost_usd >= request.min_cost_usd,
        )
        yield Narrow((*dear.queries, still_open.limit(FEW + 1)), in_order=False)


def _with(
    request: ListRuns, trait: str, condition: ColumnElement[bool], *, exact: bool = False
) -> Narrow:
    query = select(table.c.seq).where(
        table.c.tenant == request.tenant, table.c.trait == trait, condition
    )
    in_order = exact and request.sort == "created"
    if in_order:
        query = by_place(query, request, table.c.seq)
    return Narrow((query.limit(FEW + 1),), in_order)


def by_place(query: Select[Any], request: ListRuns, seq: ColumnElement[Any]) -> Select[Any]:
    """Sort by the place in the log, from behind the cursor on."""
    down = request.order == "desc"
    if request.cursor is not None:
        (place,) = cursors.unpack(request.cursor, f"{request.sort}.{request.order}", int)
        query = query.where(seq < place if down else seq > place)
    return query.order_by(seq.desc() if down else seq)
