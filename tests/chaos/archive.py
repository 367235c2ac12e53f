"""The archive under chaos: how far it is, and whether in the end it says what the log says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncpg import PostgresError
from pydantic_core import from_json
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from penstock.bus.reader import Stored
from penstock.db import async_url
from penstock.runs.endings import at_end
from penstock.runs.state import Entry, RunState, fold, new_state
from penstock.runs.views import run_view
from penstock_archive import tables


class Archive:
    """A reader of the archive's tables, beside the projector and its queries."""

    def __init__(self, url: str) -> None:
        """Prepare; each look has a connection of its own, since the database may come and go."""
        self._engine: AsyncEngine = create_async_engine(async_url(url), poolclass=NullPool)

    async def close(self) -> None:
        """Forget it."""
        await self._engine.dispose()

    async def position(self) -> int:
        """Return the sequence that is reached, -1 while the database does not answer."""
        try:
            async with self._engine.connect() as connection:
                found = await connection.execute(select(tables.projection.c.last_seq))
                return int(found.scalar() or 0)
        except (DBAPIError, PostgresError, OSError):
            return -1

    async def facts(self) -> list[tuple[int, str, str]]:
        """Return sequence, subject and body of every fact, in order."""
        columns = (tables.facts.c.seq, tables.facts.c.subject, tables.facts.c.body)
        async with self._engine.connect() as connection:
            found = await connection.execute(select(*columns).order_by(tables.facts.c.seq))
            return [(row[0], row[1], row[2]) for row in found]

    async def runs(self) -> dict[str, dict[str, Any]]:
        """Return the row of every run."""
        return {row["run_id"]: row for row in await self._rows(tables.runs)}

    async def steps(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the row of every step, by run and step."""
        return {(row["run_id"], row["step_id"]): row for row in await self._rows(tables.steps)}

    async def _rows(self, table: Any) -> list[dict[str, Any]]:
        async with self._engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(select(table))).mappings()]


def folded(entries: Sequence[Entry]) -> RunState:
    """Fold one run's facts."""
    subject = entries[0].subject
    return fold(new_state(subject.tenant, subject.shard, subject.run_id), list(entries))


def differences(
    state: RunState,
    run: dict[str, Any] | None,
    steps: dict[tuple[str, str], dict[str, Any]],
) -> list[str]:
    """Return in what a run's rows differ from the fold of its log."""
    state = at_end(state)
    view = run_view(state)
    if run is None or view is None:
        return ["the archive does not know the run"]
    wanted: dict[str, Any] = {
        "status": state.status,
        "last_seq": state.last_seq,
        "updated_at": state.updated_at,
        "created_at": view.created_at,
        "ended_at": view.ended_at,
        "name": view.name,
        "plan_digest": view.plan_digest,
        "output": view.output,
        "input": view.input,
    }
    found = {name: run[name] for name in wanted}
    for name in ("output", "input"):
        found[name] = None if found[name] is None else from_json(found[name])
    wrong = [
        f"{name} is {found[name]!r}, folded {value!r}"
        for name, value in wanted.items()
        if found[name] != value
    ]
    for step_id, step in state.steps.items():
        row = steps.get((state.run_id, step_id))
        if row is None:
            wrong.append(f"step {step_id} is missing")
            continue
        wrong += [
            f"{step_id}.{name} is {row[name]!r}, folded {getattr(step, name)!r}"
            for name in ("status", "attempt", "decision", "kind", "queue", "ended_at")
            if row[name] != getattr(step, name)
        ]
    return wrong


def missing_facts(facts: Sequence[tuple[int, str, str]], log: dict[str, list[Stored]]) -> list[str]:
    """Return where the archived facts differ from the log's, both ways."""
    stored = {
        (message.seq, message.subject, message.body.decode())
        for messages in log.values()
        for message in messages
    }
    archived = set(facts)
    return [
        *(f"not archived: {seq} {subject}" for seq, subject, _ in sorted(stored - archived)),
        *(f"not in the log: {seq} {subject}" for seq, subject, _ in sorted(archived - stored)),
    ]
