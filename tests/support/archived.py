"""Compares an archive's tables with the fold of the log that they were projected from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from pydantic import JsonValue
from pydantic_core import to_json
from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.contracts.archive_reports import GetProfile
from penstock.contracts.facts import (
    RunEnded,
    RunInvoked,
    SignalReceived,
    StepKind,
    StepResult,
    read_fact,
)
from penstock.contracts.structs import plain
from penstock.contracts.subjects import parse_fact
from penstock.runs.endings import at_end
from penstock.runs.messages import user_text
from penstock.runs.profiles import profile_of_entries, provider_of
from penstock.runs.state import Entry, RunState, fold, new_state
from penstock.runs.views import RunView, run_view
from penstock_archive import tables
from penstock_archive.reports import Reports
from penstock_archive.rows import INLINE_BYTES, PREVIEW_CHARACTERS
from tests.support.histories import Message

Key = tuple[str, str]


def entries_of(log: Sequence[Message]) -> list[Entry]:
    """Read a log whose first message has sequence 1."""
    return [
        Entry(seq, parse_fact(subject), read_fact(body))
        for seq, (subject, body) in enumerate(log, 1)
    ]


def states_of(entries: Sequence[Entry]) -> dict[Key, RunState]:
    """Fold each run."""
    states: dict[Key, RunState] = {}
    for entry in entries:
        subject = entry.subject
        key = (subject.tenant, subject.run_id)
        state = states.get(key) or new_state(subject.tenant, subject.shard, subject.run_id)
        states[key] = fold(state, [entry])
    return states


async def rows_of(engine: AsyncEngine, table: Table) -> list[dict[str, Any]]:
    async with engine.connect() as connection:
        found = await connection.execute(select(table).order_by(*table.primary_key.columns))
        return [dict(row) for row in found.mappings()]


async def assert_archived(engine: AsyncEngine, log: Sequence[Message]) -> None:
    """Assert that all tables say what the log says, no more and no less."""
    entries = entries_of(log)
    states = {key: at_end(state) for key, state in states_of(entries).items()}
    stored = await rows_of(engine, tables.facts)
    assert [(row["seq"], row["subject"], row["body"].encode()) for row in stored] == [
        (seq, subject, body) for seq, (subject, body) in enumerate(log, 1)
    ]
    assert [row["occurred_at"] for row in stored] == [entry.fact.occurred_at for entry in entries]
    runs = {(row["tenant"], row["run_id"]): row for row in await rows_of(engine, tables.runs)}
    assert runs.keys() == states.keys()
    for key, row in runs.items():
        _assert_run(row, states[key])
    steps = await rows_of(engine, tables.steps)
    assert len(steps) == sum(len(state.steps) for state in states.values())
    for row in steps:
        _assert_step(row, states[row["tenant"], row["run_id"]])
    await _assert_traits(engine, entries)
    await _assert_profiles(engine, entries)
    await _assert_usage(engine, entries, states)
    await _assert_signals(engine, entries)
    await _assert_sessions(engine, entries)


def _assert_run(row: dict[str, Any], state: RunState) -> None:
    assert row["last_seq"] == state.last_seq
    assert row["updated_at"] == state.updated_at
    assert row["status"] == state.status
    view = run_view(state)
    if view is None:
        assert row["seq"] is None
        return
    assert row["created_at"] == view.created_at
    assert row["ended_at"] == view.ended_at
    for name in ("name", "kind", "version", "plan_digest", "trigger", "session_id"):
        assert row[name] == getattr(view, name), name
    tags = row["tags"]
    tags = json.loads(tags) if isinstance(tags, str) else tags
    assert (tags or {}) == {_clean(name): _clean(value) for name, value in view.tags.items()}
    assert _parsed(row["input"]) == _inline(view.input)
    assert _parsed(row["output"]) == _inline(view.output)
    assert _parsed(row["error"]) == _dumped(view.error)
    code = view.error.code if view.error is not None else None
    assert row["error_code"] == code
    assert row["parent_run_id"] == (view.parent.run_id if view.parent is not None else None)
    assert row["root_run_id"] == (view.parent.root_run_id if view.parent is not None else None)
    forked_from = view.forked_from
    assert row["forked_from"] == (forked_from.run_id if forked_from is not None else None)
    _assert_cost(row, view)


def _assert_cost(row: dict[str, Any], view: RunView) -> None:
    usage = view.usage
    assert row["input_tokens"] == usage.input_tokens
    assert row["output_tokens"] == usage.output_tokens
    assert row["cost_usd"] == pytest.approx(usage.cost_usd)
    assert row["unknown_price"] == usage.unknown_price
    assert row["model_calls"] == usage.model_calls
    assert row["steps"] == usage.steps


def _assert_step(row: dict[str, Any], state: RunState) -> None:
    step = state.steps[row["step_id"]]
    for name in ("kind", "queue", "node_id", "name", "decision", "attempt", "status", "model"):
        assert row[name] == getattr(step, name), name
    assert row["scheduled_at"] == step.decided_at
    assert row["started_at"] == step.started_at
    assert row["ended_at"] == step.ended_at
    if row["output_truncated"]:
        assert len(row["output"]) == PREVIEW_CHARACTERS
    else:
        assert _parsed(row["output"]) == step.output
    assert _parsed(row["error"]) == _dumped(step.error)
    assert _parsed(row["usage"]) == _dumped(step.usage)


async def _assert_traits(engine: AsyncEngine, entries: Sequence[Entry]) -> None:
    """Assert that tags, endings, errors and costs of runs lead to them."""
    invoked = {
        (entry.subject.tenant, entry.subject.run_id): entry
        for entry in entries
        if isinstance(entry.fact, RunInvoked)
    }
    found = set()
    for key, entry in invoked.items():
        assert isinstance(entry.fact, RunInvoked)
        for name, value in entry.fact.tags.items():
            found.add((key[0], _clean(f"tag.{name}"), _clean(value), entry.seq, key[1]))
    for entry in entries:
        key, fact = (entry.subject.tenant, entry.subject.run_id), entry.fact
        if not isinstance(fact, RunEnded) or key not in invoked:
            continue
        begun = invoked[key].seq
        if fact.status in ("failed", "cancelled"):
            found.add((key[0], "status", str(fact.status), begun, key[1]))
        if fact.error is not None:
            found.add((key[0], "error", _clean(fact.error.code), begun, key[1]))
        if fact.usage.cost_usd > 0:
            cost = f"{int(fact.usage.cost_usd * 1_000_000):020d}"
            found.add((key[0], "cost_usd", cost, begun, key[1]))
    assert {tuple(row.values()) for row in await rows_of(engine, tables.traits)} == found


async def _assert_profiles(engine: AsyncEngine, entries: Sequence[Entry]) -> None:
    """Assert that profiles follow from facts, at first and where they are stored."""
    reports = Reports(engine)
    for row in await rows_of(engine, tables.runs):
        if row["ended_at"] is None or row["seq"] is None:
            assert row["profile"] is None
            continue
        key = row["tenant"], row["run_id"]
        own = [entry for entry in entries if (entry.subject.tenant, entry.subject.run_id) == key]
        for _ in range(2):
            found = await reports.get_profile(GetProfile(tenant=key[0], run_id=key[1]))
            assert found.profile == profile_of_entries(own)


async def _assert_usage(
    engine: AsyncEngine, entries: Sequence[Entry], states: dict[Key, RunState]
) -> None:
    """Assert that each cost stands where it arose: that of a child run in the child's rows."""
    spent = {
        (*key, attempt): usage
        for key, state in states.items()
        for attempt, usage in state.usages.items()
        if state.steps[attempt.rpartition(".")[0]].kind is not StepKind.RUN
    }
    rows = await rows_of(engine, tables.usage)
    assert len(rows) == len(spent)
    facts = {entry.seq: entry.fact for entry in entries}
    for row in rows:
        usage = spent[row["tenant"], row["run_id"], f"{row['step_id']}.{row['attempt']}"]
        fact = facts[row["seq"]]
        assert isinstance(fact, StepResult)
        assert fact.usage == usage
        assert row["input_tokens"] == usage.input_tokens
        assert row["cost_usd"] == usage.cost_usd
        assert row["model"] == (fact.model or "")
        assert row["provider"] == provider_of(fact.model)
        assert row["occurred_at"] == fact.occurred_at


async def _assert_signals(engine: AsyncEngine, entries: Sequence[Entry]) -> None:
    sent = []
    for entry in entries:
        subject, fact = entry.subject, entry.fact
        if isinstance(fact, SignalReceived):
            said = (fact.kind, fact.name, fact.target, fact.from_run, fact.sent_by)
            keys = (entry.seq, subject.tenant, subject.run_id, subject.step_id)
            sent.append((*keys, *said, _inline(fact.payload), fact.occurred_at))
    names = (
        *("seq", "tenant", "run_id", "signal_id"),
        *("kind", "name", "target", "from_run", "sent_by"),
    )
    assert [
        (*(row[name] for name in names), _parsed(row["payload"]), row["occurred_at"])
        for row in await rows_of(engine, tables.signals)
    ] == sent


async def _assert_sessions(engine: AsyncEngine, entries: Sequence[Entry]) -> None:
    said: list[tuple[int, str, str, str, str]] = []
    sessions: dict[Key, tuple[datetime, datetime, str, int]] = {}
    session_of: dict[Key, str | None] = {}
    for entry in entries:
        tenant, run_id, fact = entry.subject.tenant, entry.subject.run_id, entry.fact
        if isinstance(fact, RunInvoked) and fact.session_id is not None:
            session_of[tenant, run_id] = session_id = fact.session_id
            created_at = sessions.get((tenant, session_id), (fact.occurred_at,))[0]
            sessions[tenant, session_id] = (created_at, fact.occurred_at, run_id, entry.seq)
            said.append((entry.seq, tenant, session_id, "user", user_text(fact.input)))
        elif isinstance(fact, RunEnded) and fact.error is None and fact.output is not None:
            asked_in = session_of.get((tenant, run_id))
            if asked_in is not None:
                text = user_text(fact.output)
                said.append((entry.seq, tenant, asked_in, "assistant", text))
    rows = await rows_of(engine, tables.messages)
    assert [
        (row["seq"], row["tenant"], row["session_id"], row["role"], row["content"]) for row in rows
    ] == [(*message[:4], _clean(message[4])) for message in said]
    assert {
        (row["tenant"], row["session_id"]): (
            row["created_at"],
            row["updated_at"],
            row["last_run_id"],
            row["last_seq"],
        )
        for row in await rows_of(engine, tables.sessions)
    } == sessions


def _parsed(text: str | None) -> Any:
    assert text is None or len(text) <= INLINE_BYTES
    return None if text is None else json.loads(text)


def _inline(value: JsonValue) -> JsonValue:
    return value if len(to_json(value)) <= INLINE_BYTES else None


def _dumped(model: Any) -> Any:
    return None if model is None else plain(model, defaults=False)


def _clean(text: str) -> str:
    return text.replace("\0", "\ufffd")
