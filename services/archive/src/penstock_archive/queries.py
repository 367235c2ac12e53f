"""Queries of the archive, by SQLAlchemy Core on either database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from penstock.contracts.archive import (
    ArchivedFact,
    DeleteSession,
    FactPage,
    GetRun,
    GetSession,
    ListRuns,
    ListSessions,
    MessagePage,
    MessageView,
    OpenRun,
    OpenRunPage,
    OpenRuns,
    RunFacts,
    RunPage,
    SessionDeleted,
    SessionMessages,
    SessionPage,
    SessionView,
)
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import RunInvoked
from penstock.contracts.structs import decode
from penstock.contracts.usage import Usage
from penstock.db import session_factory, session_scope
from penstock.runs.state import fold, new_state
from penstock.runs.views import RunView, run_view
from penstock_archive import cursors
from penstock_archive.columns import read, read_error, read_value
from penstock_archive.instants import to_micros
from penstock_archive.narrowing import FEW, by_place, narrow
from penstock_archive.projection import read_entry
from penstock_archive.tables import (
    facts,
    messages,
    projection,
    runs,
    sessions,
)

PAGE_BYTES: Final = 524_288
"""Of facts or messages in one reply, so that it fits into one message of the bus."""

PackBody = Callable[[bytes], Awaitable[bytes]]
"""Turns a body that is too large for the bus into a claim (``Claims.pack``)."""


class Queries:
    """The archive's verbs."""

    def __init__(self, engine: AsyncEngine, pack: PackBody) -> None:
        """Ask over an engine that the caller disposes of.

        Args:
            engine: Of the archive's database.
            pack: See ``PackBody``.
        """
        self._factory = session_factory(engine)
        self._postgres = engine.dialect.name == "postgresql"
        self._pack = pack

    # -- runs --------------------------------------------------------------------------------

    async def list_runs(self, request: ListRuns) -> RunPage:
        """Return runs in order of time."""
        conditions = [runs.c.tenant == request.tenant, runs.c.seq.is_not(None)]
        conditions += _equal(
            (runs.c.name, request.name),
            (runs.c.kind, request.kind),
            (runs.c.session_id, request.session_id),
            (runs.c.parent_run_id, request.parent_run_id),
            (runs.c.forked_from, request.forked_from),
        )
        if request.status:
            conditions.append(runs.c.status.in_([status.value for status in request.status]))
        if request.trigger:
            conditions.append(runs.c.trigger.in_([trigger.value for trigger in request.trigger]))
        if (first := request.id_prefix) is not None:
            # Z is the last letter of ids; other signs stand elsewhere in some collations.
            conditions.append(runs.c.run_id.between(first, first.ljust(26, "Z")))
        conditions += _between(runs.c.created_at, request.created_from, request.created_before)
        conditions += _between(runs.c.ended_at, request.ended_from, request.ended_before)
        if request.min_cost_usd is not None:
            conditions.append(runs.c.cost_usd >= request.min_cost_usd)
        if request.max_cost_usd is not None:
            conditions.append(runs.c.cost_usd <= request.max_cost_usd)
        if request.root_run_id is not None:
            root = request.root_run_id
            conditions.append(or_(runs.c.root_run_id == root, runs.c.run_id == root))
        if request.error is not None:
            conditions.append(runs.c.error_code.contains(request.error, autoescape=True))
        conditions += [self._has_tag(name, value) for name, value in request.tags.items()]
        query, sort = select(runs).where(*conditions), f"{request.sort}.{request.order}"
        query = _ordered(query, request, sort).limit(request.limit + 1)
        found = await self._narrowed(query, request)
        if found is None:
            found = await self._read(query)
        shown = found[: request.limit]
        origins = await self._origins(shown)
        items: list[RunView] = []
        size = 0
        for row in shown:
            texts = (row.input, row.output, row.error)
            size += 1_000 + sum(len(text.encode()) for text in texts if text is not None)
            if items and size > PAGE_BYTES:
                break
            items.append(_run(row, origins.get(row.seq)))
        more = len(found) > len(items)
        return RunPage(
            items=tuple(items),
            next_cursor=_place(shown[len(items) - 1], request, sort) if more else None,
        )

    async def _narrowed(self, query: Select[Any], request: ListRuns) -> Sequence[Row[Any]] | None:
        """Read a page among the few runs that a filter matches; ``None``: all must be read."""
        for filtered in narrow(request):
            seqs = [row.seq for one in filtered.queries for row in await self._read(one)]
            if not seqs:
                return []
            if len(seqs) <= FEW or filtered.in_order:
                found = await self._read(query.where(runs.c.seq.in_(seqs)))
                if len(seqs) <= FEW or len(found) > request.limit:
                    return found
        return None

    async def _origins(self, rows: Iterable[Row[Any]]) -> dict[int, RunInvoked]:
        """Return the first facts of child runs and forks, by their sequences."""
        seqs = [row.seq for row in rows if row.parent_run_id or row.forked_from]
        if not seqs:
            return {}
        found = await self._read(
            select(facts.c.seq, facts.c.run_id, facts.c.body).where(facts.c.seq.in_(seqs))
        )
        facts_read = {
            row.seq: read(row.body, lambda body: decode(RunInvoked, body), row.run_id)
            for row in found
        }
        return {seq: fact for seq, fact in facts_read.items() if fact is not None}

    async def get_run(self, request: GetRun) -> RunView:
        """Return one run with its steps.

        Raises:
            RejectedError: ``run_not_found``.
        """
        rows = await self._read(
            select(facts.c.seq, facts.c.subject, facts.c.body)
            .where(facts.c.run_id == request.run_id, facts.c.tenant == request.tenant)
            .order_by(facts.c.seq)
        )
        entries = [read_entry(row.seq, row.subject, row.body) for row in rows]
        if entries:
            first = entries[0].subject
            state = fold(new_state(first.tenant, first.shard, first.run_id), entries)
            if (view := run_view(state)) is not None:
                return view
        raise RejectedError("run_not_found", f"there is no run {request.run_id}")

    async def run_facts(self, request: RunFacts) -> FactPage:
        """Return a run's facts in the order of the log."""
        found = await self._read(
            select(facts.c.seq, facts.c.subject, facts.c.body)
            .where(
                facts.c.run_id == request.run_id,
                facts.c.tenant == request.tenant,
                facts.c.seq > request.after,
            )
            .order_by(facts.c.seq)
            .limit(request.limit + 1)
        )
        items: list[ArchivedFact] = []
        size = 0
        for row in found[: request.limit]:
            body = (await self._pack(row.body.encode())).decode()
            size += 2 * len(body)  # inside JSON every quotation mark takes two
            if items and size > PAGE_BYTES:
                break
            items.append(ArchivedFact(seq=row.seq, subject=row.subject, body=body))
        more = len(found) > len(items)
        return FactPage(items=tuple(items), next_after=items[-1].seq if more else None)

    async def open_runs(self, request: OpenRuns) -> OpenRunPage:
        """Return runs that have not ended, the oldest first."""
        found = await self._read(
            select(runs.c.tenant, runs.c.run_id, runs.c.seq)
            .where(
                runs.c.ended_at.is_(None),
                runs.c.seq > request.after,
                runs.c.created_at < request.created_before,
            )
            .order_by(runs.c.seq)
            .limit(request.limit + 1)
        )
        shown = found[: request.limit]
        return OpenRunPage(
            items=tuple(OpenRun(tenant=row.tenant, run_id=row.run_id) for row in shown),
            next_after=shown[-1].seq if len(found) > request.limit else None,
        )

    # -- sessions ----------------------------------------------------------------------------

    async def list_sessions(self, request: ListSessions) -> SessionPage:
        """Return sessions, the one with the latest run first."""
        query = _sessions().where(sessions.c.tenant == request.tenant)
        query = query.where(*_equal((sessions.c.name, request.name)))
        if request.cursor is not None:
            (place,) = cursors.unpack(request.cursor, "sessions", int)
            query = query.where(sessions.c.last_seq < place)
        query = query.order_by(sessions.c.last_seq.desc()).limit(request.limit + 1)
        found = await self._read(query)
        shown = found[: request.limit]
        return SessionPage(
            items=tuple(_session(row) for row in shown),
            next_cursor=(
                cursors.pack("sessions", shown[-1].last_seq) if len(found) > request.limit else None
            ),
        )

    async def get_session(self, request: GetSession) -> SessionView:
        """Return one session.

        Raises:
            RejectedError: ``session_not_found``.
        """
        return _session(await self._session(request.tenant, request.session_id))

    async def session_messages(self, request: SessionMessages) -> MessagePage:
        """Return the messages of a session, oldest first.

        Raises:
            RejectedError: ``session_not_found``.
        """
        session = await self._session(request.tenant, request.session_id)
        found = await self._read(
            select(messages)
            .where(
                messages.c.tenant == request.tenant,
                messages.c.session_id == request.session_id,
                messages.c.seq > max(request.after, session.deleted_seq or 0),
            )
            .order_by(messages.c.seq)
            .limit(request.limit + 1)
        )
        items: list[MessageView] = []
        size = 0
        for row in found[: request.limit]:
            size += 2 * len(row.content.encode())
            if items and size > PAGE_BYTES:
                break
            items.append(
                MessageView(
                    seq=row.seq,
                    run_id=row.run_id,
                    role=row.role,
                    content=row.content,
                    created_at=row.occurred_at,
                )
            )
        more = len(found) > len(items)
        return MessagePage(items=tuple(items), next_after=items[-1].seq if more else None)

    async def delete_session(self, request: DeleteSession) -> SessionDeleted:
        """Hide a session and its messages.

        Raises:
            RejectedError: ``session_not_found``.
        """
        projected = select(func.max(projection.c.last_seq)).scalar_subquery()
        async with session_scope(self._factory) as session:
            found = await session.execute(
                update(sessions)
                .where(
                    sessions.c.tenant == request.tenant,
                    sessions.c.session_id == request.session_id,
                    _visible(),
                )
                .values(deleted_seq=projected)
                .returning(sessions.c.session_id)
            )
            if found.first() is None:
                raise _no_session(request.session_id)
        return SessionDeleted(session_id=request.session_id)

    async def _session(self, tenant: str, session_id: str) -> Row[Any]:
        found = await self._read(
            _sessions().where(sessions.c.tenant == tenant, sessions.c.session_id == session_id)
        )
        if not found:
            raise _no_session(session_id)
        return found[0]

    # -- the database ------------------------------------------------------------------------

    async def _read(self, query: Select[Any]) -> Sequence[Row[Any]]:
        session: AsyncSession
        async with session_scope(self._factory, read_only=True) as session:
            found: Sequence[Row[Any]] = (await session.execute(query)).all()
            return found

    def _has_tag(self, name: str, value: str) -> ColumnElement[bool]:
        if self._postgres:
            return type_coerce(runs.c.tags, JSONB).contains({name: value})
        tag = func.json_each(runs.c.tags).table_valued("key", "value")
        return select(1).where(tag.c.key == name, tag.c.value == value).correlate(runs).exists()


def _equal(*pairs: tuple[ColumnElement[Any], Any]) -> Iterable[ColumnElement[bool]]:
    return [column == value for column, value in pairs if value is not None]


def _between(
    column: ColumnElement[Any], begin: datetime | None, before: datetime | None
) -> Iterable[ColumnElement[bool]]:
    if begin is not None:
        yield column >= begin
    if before is not None:
        yield column < before


def _ordered(query: Select[Any], request: ListRuns, sort: str) -> Select[Any]:
    """Sort runs, from behind the cursor on: by their place in the log, or by when they ended."""
    down = request.order == "desc"
    seq = runs.c.seq
    if request.sort == "created":
        return by_place(query, request, seq)
    ended = runs.c.ended_at
    query = query.where(ended.is_not(None))
    if request.cursor is not None:
        micros, place = cursors.unpack(request.cursor, sort, int, int)
        at = cursors.moment(micros, request.cursor)
        beyond = ended < at if down else ended > at
        query = query.where(or_(beyond, and_(ended == at, seq < place if down else seq > place)))
    return query.order_by(*((ended.desc(), seq.desc()) if down else (ended, seq)))


def _place(row: Row[Any], request: ListRuns, sort: str) -> str:
    if request.sort == "created":
        return cursors.pack(sort, row.seq)
    return cursors.pack(sort, to_micros(row.ended_at), row.seq)


def _visible() -> ColumnElement[bool]:
    """Hide deleted sessions, until a later run."""
    return or_(sessions.c.deleted_seq.is_(None), sessions.c.last_seq > sessions.c.deleted_seq)


def _sessions() -> Select[Any]:
    count = (
        select(func.count())
        .where(
            and_(
                runs.c.tenant == sessions.c.tenant,
                runs.c.session_id == sessions.c.session_id,
                runs.c.seq > func.coalesce(sessions.c.deleted_seq, 0),
            )
        )
        .scalar_subquery()
    )
    return select(sessions, count.label("runs")).where(_visible())


def _session(row: Row[Any]) -> SessionView:
    return SessionView(
        tenant=row.tenant,
        session_id=row.session_id,
        name=row.name,
        runs=row.runs,
        last_run_id=row.last_run_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


_SHOWN: Final = (
    *("run_id", "tenant", "name", "kind", "version", "plan_digest", "status", "trigger"),
    *("session_id", "created_at", "updated_at", "ended_at", "last_seq"),
)
"""Columns that are fields of a view, with the same values."""


def _run(row: Row[Any], origin: RunInvoked | None) -> RunView:
    tags = row.tags
    return RunView.model_validate(
        {
            **{name: getattr(row, name) for name in _SHOWN},
            "input": read_value(row.input, row.run_id),
            "output": read_value(row.output, row.run_id),
            "error": read_error(row.error, row.run_id),
            "usage": Usage(**{name: getattr(row, name) for name in Usage.__struct_fields__}),
            "tags": (read_value(tags, row.run_id) if isinstance(tags, str) else tags) or {},
            "parent": origin.parent if origin is not None else None,
            "forked_from": origin.forked_from if origin is not None else None,
        }
    )


def _no_session(session_id: str) -> RejectedError:
    return RejectedError("session_not_found", f"there is no session {session_id[:80]!r}")
