"""Rebuilding the tables, restoring a run's log, and deleting for good: on real servers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Table, text
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock import rpc
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.archive import (
    ArchiveStatus,
    DeleteSession,
    GetRun,
    GetStatus,
    SessionDeleted,
)
from penstock.contracts.archive_maintenance import (
    Erased,
    EraseRun,
    EraseSession,
    EraseTenant,
    Rebuild,
    Restored,
    RestoreRun,
)
from penstock.contracts.errors import ConflictError, ErrorInfo, RejectedError, TransientError
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    ParentRef,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    StepKind,
    StepResult,
    StepScheduled,
    fact_bytes,
)
from penstock.contracts.ids import run_id_from_key, shard_of
from penstock.contracts.messages import DeadLetter, DeltaBatch, TimerDue
from penstock.contracts.structs import encode
from penstock.contracts.usage import Usage
from penstock.runs.state import Entry, fold, new_state
from penstock.runs.views import RunView, run_view
from penstock_archive import tables
from penstock_archive.settings import ArchiveSettings
from tests.integration.archive.test_projector import assert_eventually_archived, projecting, publish
from tests.support.archived import rows_of
from tests.support.histories import Message, random_log
from tests.support.waiting import eventually

DERIVED = (tables.runs, tables.steps, tables.sessions, tables.messages, tables.usage)
ALL = (*DERIVED, tables.facts, tables.signals, tables.claims)
CANARY = "canary-7b1e55ed"
TENANT = "acme"


async def ask(bus: Bus, verb: str, request: BaseModel, reply: type[Any]) -> Any:
    return await rpc.call(bus, "archive", verb, request, reply, timeout_seconds=30)


async def contents(
    engine: AsyncEngine, wanted: Sequence[Table] = ALL
) -> dict[str, list[dict[str, Any]]]:
    return {table.name: await rows_of(engine, table) for table in wanted}


async def status(bus: Bus) -> ArchiveStatus:
    found: ArchiveStatus = await ask(bus, "get_status", GetStatus(), ArchiveStatus)
    return found


async def settled(bus: Bus) -> bool:
    try:
        found = await status(bus)
    except TransientError:
        return False
    return not found.rebuilding and found.lag_messages == 0


def run_of(name: str) -> tuple[str, str]:
    """Return a run's id and the stem of its subjects."""
    run_id = run_id_from_key(TENANT, name)
    return run_id, subjects.run_prefix(TENANT, shard_of(run_id, 8), run_id)


def create_run(
    name: str,
    *,
    session_id: str | None = None,
    parent: str | None = None,
    said: str = "hello",
    ended: bool = True,
    at: datetime | None = None,
) -> list[Message]:
    """The log of a run of one step."""
    at = at or datetime.now(UTC)
    _, prefix = run_of(name)
    of = run_of(parent)[0] if parent is not None else None
    facts: list[tuple[str, RunFact]] = [
        (
            subjects.invoke(prefix),
            RunInvoked(
                occurred_at=at,
                name="research",
                kind=DefinitionKind.AGENT,
                version=1,
                plan_digest="d",
                input=said,
                session_id=session_id,
                parent=None
                if of is None
                else ParentRef(run_id=of, shard=0, step_id="s", attempt=1, root_run_id=of, depth=1),
            ),
        ),
        (
            subjects.out(prefix, 1, subjects.step_suffix("agent", "default", "main-1", 1)),
            StepScheduled(
                occurred_at=at + timedelta(milliseconds=10),
                decision=Decision(cause_seq=1),
                node_id="main",
                name="research",
                input=said,
                expires_at=at,
            ),
        ),
        (
            subjects.result(prefix, "main-1", 1),
            StepResult(
                occurred_at=at + timedelta(milliseconds=100),
                started_at=at + timedelta(milliseconds=20),
                kind=StepKind.AGENT,
                name="research",
                status="succeeded",
                output=said,
                usage=Usage(input_tokens=1, output_tokens=1, cost_usd=0.25, model_calls=1),
                model="openai/gpt-5-mini",
            ),
        ),
    ]
    if ended:
        facts.append(
            (
                subjects.out(prefix, 2, subjects.END_SUFFIX),
                RunEnded(
                    occurred_at=at + timedelta(milliseconds=110),
                    decision=Decision(cause_seq=3),
                    status=RunStatus.DONE,
                    output=said,
                    usage=Usage(input_tokens=1, output_tokens=1, cost_usd=0.25, model_calls=1),
                ),
            )
        )
    return [(subject, fact_bytes(fact)) for subject, fact in facts]


async def publish_packed(bus: Bus, log: Sequence[Message], threshold: int = 131_072) -> None:
    """Publish as the writer does: large bodies become objects."""
    claims = Claims(bus, threshold)
    await publish(bus, [(subject, await claims.pack(body)) for subject, body in log])


async def log_of(bus: Bus, name: str) -> list[Entry]:
    run_id, _ = run_of(name)
    reader = LogReader(bus, Claims(bus, 131_072))
    return await reader.read_run(TENANT, shard_of(run_id, 8), run_id)


async def forget(bus: Bus, name: str) -> None:
    """Let the stream lose a run, as its age would."""
    run_id, _ = run_of(name)
    wanted = subjects.run_filter(TENANT, shard_of(run_id, 8), run_id)
    await bus.api(f"STREAM.PURGE.{subjects.RUNS}", {"filter": wanted})


@asynccontextmanager
async def archive(bus: Bus, settings: ArchiveSettings) -> AsyncIterator[None]:
    """Run the projector; what was published is projected when the block begins."""
    async with projecting(settings):
        await eventually(lambda: settled(bus), within=40)
        yield


# -- rebuilding --------------------------------------------------------------------------------


async def test_rebuild_of_all_tables_gives_the_same_rows(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(21), 60)
    await publish(bus, log)
    async with archive(bus, settings):
        await assert_eventually_archived(engine, log)
        before = await contents(engine)
        async with engine.begin() as connection:
            # What a rebuild is for: rows that are wrong, and rows that are missing.
            await connection.execute(text("UPDATE runs SET status = 'nonsense'"))
            await connection.execute(text("UPDATE facts SET body = '{}' WHERE seq % 3 = 0"))
            await connection.execute(text("DELETE FROM steps"))
            await connection.execute(text("DELETE FROM facts WHERE seq % 7 = 0"))
        begun = await ask(bus, "rebuild", Rebuild(), ArchiveStatus)
        assert begun.rebuild_until == len(log)
        later = random_log(random.Random(22), 3)
        await publish(bus, [item for item in later if item[0] not in dict(log)])
        await eventually(lambda: settled(bus), within=60)
        after = await contents(engine)
        for name, rows in before.items():
            assert after[name][: len(rows)] == rows or name in ("sessions", "runs", "steps"), name
        for row in before["runs"]:
            assert row in after["runs"]


async def test_rebuild_killed_half_way_goes_on_and_keeps_what_the_log_has_lost(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = random_log(random.Random(23), 60)
    await publish(bus, log)
    async with archive(bus, settings):
        await assert_eventually_archived(engine, log)
        session = next(row["session_id"] for row in await rows_of(engine, tables.sessions))
        tenant = next(row["tenant"] for row in await rows_of(engine, tables.sessions))
        await ask(
            bus, "delete_session", DeleteSession(tenant=tenant, session_id=session), SessionDeleted
        )
        before = await contents(engine)
    # The log loses its first half, as its age would have it, and some more in between.
    await bus.api(f"STREAM.PURGE.{subjects.RUNS}", {"seq": len(log) // 2})
    gone = log[-5][0]
    await bus.api(f"STREAM.PURGE.{subjects.RUNS}", {"filter": gone})
    small = settings.model_copy(update={"projector_batch_size": 7})
    async with projecting(small):
        await eventually(lambda: settled(bus), within=40)
        await ask(bus, "rebuild", Rebuild(), ArchiveStatus)

        async def half_way() -> bool:
            rows = await rows_of(engine, tables.projection)
            return 0 < rows[0]["last_seq"] < len(log) or not (await status(bus)).rebuilding

        await eventually(half_way, within=30, every=0)
    async with projecting(settings):
        await eventually(lambda: settled(bus))
        assert await contents(engine) == before


# -- restoring ---------------------------------------------------------------------------------


async def test_restored_run_has_its_facts_again_and_the_archive_stays_as_it_was(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = [*create_run("A", said="x" * 200_000), *create_run("B")]
    await publish_packed(bus, log)
    async with archive(bus, settings):
        before = await contents(engine)
        old = await log_of(bus, "A")
        await forget(bus, "A")
        assert await log_of(bus, "A") == []
        asked = RestoreRun(tenant=TENANT, run_id=run_of("A")[0])
        done: Restored = await ask(bus, "restore_run", asked, Restored)
        assert (done.facts, done.restored) == (4, 4)
        again: Restored = await ask(bus, "restore_run", asked, Restored)
        assert (again.facts, again.restored) == (4, 0)
        entries = await log_of(bus, "A")
        assert entries[0].subject.event == "end"
        assert entries[-1].subject.event == "invoke"
        shown, known = (run_view(_state("A", found)) for found in (entries, old))
        assert shown is not None
        assert known is not None
        assert shown == known.model_copy(update={"last_seq": shown.last_seq})
        await eventually(lambda: settled(bus), within=40)
        assert await contents(engine) == before
        await ask(bus, "rebuild", Rebuild(), ArchiveStatus)
        await eventually(lambda: settled(bus), within=40)
        after = await contents(engine)
        assert {name: after[name] for name in after if name != "claims"} == {
            name: before[name] for name in before if name != "claims"
        }


def _state(name: str, entries: Sequence[Entry]) -> Any:
    run_id, _ = run_of(name)
    return fold(new_state(TENANT, shard_of(run_id, 8), run_id), entries)


async def test_restore_of_an_open_or_unknown_run_is_refused(
    bus: Bus, settings: ArchiveSettings
) -> None:
    await publish(bus, create_run("OPEN", ended=False))
    async with archive(bus, settings):
        with pytest.raises(ConflictError, match="run_not_ended"):
            await ask(
                bus, "restore_run", RestoreRun(tenant=TENANT, run_id=run_of("OPEN")[0]), Restored
            )
        with pytest.raises(RejectedError, match="run_not_found"):
            await ask(
                bus, "restore_run", RestoreRun(tenant="beta", run_id=run_of("OPEN")[0]), Restored
            )


# -- deleting ----------------------------------------------------------------------------------


async def plant(bus: Bus, name: str, *, session_id: str | None = None) -> None:
    """Leave a canary wherever a run leaves anything."""
    run_id, _ = run_of(name)
    shard = shard_of(run_id, 8)
    await publish_packed(bus, create_run(name, session_id=session_id, said=CANARY))
    child = create_run(f"{name}-child", parent=name, said=CANARY + "x" * 200_000)
    await publish_packed(bus, child)
    deltas = encode(DeltaBatch(first=0, texts=(CANARY,)))
    await bus.request(subjects.delta(TENANT, shard, run_id, "main-1", 1), deltas)
    later = datetime.now(UTC) + timedelta(days=2)
    await bus.request(
        subjects.timer_set(TENANT, shard, run_id, CANARY),
        encode(TimerDue(due_at=later)),
        headers={
            "Nats-Schedule": "@at " + later.isoformat(timespec="milliseconds")[:-6] + "Z",
            "Nats-Schedule-Target": subjects.timer_due(TENANT, shard, run_id, CANARY),
        },
    )
    if session_id is not None:
        await Bucket(bus, subjects.SESSIONS).put(
            subjects.session_key(TENANT, session_id),
            f'{{"run_id": "{run_id}", "note": "{CANARY}"}}'.encode(),
        )
    letter = DeadLetter(
        stream=subjects.RUNS,
        stream_seq=1,
        subject=subjects.invoke(run_of(name)[1]),
        consumer="engine_0",
        deliveries=20,
        error=ErrorInfo(code="boom", message=CANARY),
        body=CANARY,
        occurred_at=datetime.now(UTC),
    )
    await bus.request(subjects.dead(subjects.RUNS, "engine_0"), encode(letter))


async def places_with(bus: Bus, engine: AsyncEngine, needle: str) -> set[str]:
    """Return every stream, bucket, object store and table in which a text is found."""
    found = set()
    reader = LogReader(bus, Claims(bus, 131_072))
    for stream in (await bus.api("STREAM.NAMES"))["streams"]:
        async for page in reader.pages(stream, ">"):
            for message in page:
                if needle.encode() in message.body or needle in message.subject:
                    found.add(stream)
    for table in tables.METADATA.sorted_tables:
        if any(needle in str(row) for row in await rows_of(engine, table)):
            found.add(table.name)
    return found


async def test_canary_is_found_everywhere_before_a_deletion_and_nowhere_after(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    await plant(bus, "A", session_id="s1")
    kept = create_run("KEPT", session_id="s2", said="y" * 200_000)
    await publish_packed(bus, kept)
    async with archive(bus, settings):
        before = await places_with(bus, engine, CANARY)
        assert before >= {
            subjects.RUNS,
            subjects.DELTAS,
            subjects.TIMERS,
            subjects.DEAD,
            f"KV_{subjects.SESSIONS}",
            f"OBJ_{subjects.ARTIFACTS}",
            *("facts", "runs", "steps", "messages"),
        }
        asked = EraseRun(tenant=TENANT, run_id=run_of("A")[0])
        erased: Erased = await ask(bus, "erase_run", asked, Erased)
        assert erased.runs == 2
        assert erased.dead_letters == 1
        assert erased.objects == 4
        assert await places_with(bus, engine, CANARY) == set()
        for name in ("A", "A-child"):
            where = await places_with(bus, engine, run_of(name)[0])
            assert where == {"tombstones"}, name
        with pytest.raises(RejectedError, match="run_not_found"):
            await ask(bus, "erase_run", asked, Erased)
        assert len(await log_of(bus, "KEPT")) == len(kept)
        assert len(await rows_of(engine, tables.claims)) == len(kept)
        view = await ask(bus, "get_run", GetRun(tenant=TENANT, run_id=run_of("KEPT")[0]), RunView)
        assert view.status is RunStatus.DONE


async def test_deleted_run_stays_deleted_whatever_is_said_of_it_later(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    log = create_run("A", said=CANARY)
    await publish(bus, log)
    run_id, prefix = run_of("A")
    async with archive(bus, settings):
        await ask(bus, "erase_run", EraseRun(tenant=TENANT, run_id=run_id), Erased)
        # A runner that was away for long, and a rebuild.
        await publish(bus, [(subjects.result(prefix, "late-1", 1), log[2][1])])
        await ask(bus, "rebuild", Rebuild(), ArchiveStatus)
        await eventually(lambda: settled(bus), within=40)

        async def nothing() -> bool:
            return await places_with(bus, engine, CANARY) == set()

        await eventually(nothing)
        assert await rows_of(engine, tables.runs) == []
        # The same id asked for again, as the same idempotency key does, is another run.
        await publish(bus, create_run("A", said="anew"))
        await eventually(lambda: settled(bus), within=40)

        async def there() -> bool:
            return [row["run_id"] for row in await rows_of(engine, tables.runs)] == [run_id]

        await eventually(there)
        assert await rows_of(engine, tables.tombstones) == []
        assert len(await log_of(bus, "A")) == 4


async def test_deletion_of_an_open_run_or_its_parent_is_refused(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    await publish(bus, create_run("PARENT", session_id="s1"))
    await publish(bus, create_run("CHILD", parent="PARENT", ended=False))
    async with archive(bus, settings):
        for request, verb in (
            (EraseRun(tenant=TENANT, run_id=run_of("PARENT")[0]), "erase_run"),
            (EraseRun(tenant=TENANT, run_id=run_of("CHILD")[0]), "erase_run"),
            (EraseSession(tenant=TENANT, session_id="s1"), "erase_session"),
            (EraseTenant(tenant=TENANT), "erase_tenant"),
        ):
            with pytest.raises(ConflictError, match="run_not_ended"):
                await ask(bus, verb, request, Erased)
        assert len(await rows_of(engine, tables.runs)) == 2


async def test_deletion_of_a_session_takes_all_its_runs_and_no_other(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    await plant(bus, "A", session_id="s1")
    await plant(bus, "B", session_id="s1")
    await publish(bus, create_run("C", session_id="s2"))
    async with archive(bus, settings):
        erased = await ask(
            bus, "erase_session", EraseSession(tenant=TENANT, session_id="s1"), Erased
        )
        assert erased.runs == 4
        assert await places_with(bus, engine, CANARY) == set()
        assert await places_with(bus, engine, "s1") <= {"KV_sessions"}, "the marker's key"
        assert [row["session_id"] for row in await rows_of(engine, tables.sessions)] == ["s2"]
        with pytest.raises(RejectedError, match="session_not_found"):
            await ask(bus, "erase_session", EraseSession(tenant=TENANT, session_id="s1"), Erased)


async def test_deletion_of_one_run_leaves_its_session_with_the_others(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    first = create_run("A", session_id="s1")
    await publish(bus, [*first, *create_run("B", session_id="s1")])
    async with archive(bus, settings):
        await ask(bus, "erase_run", EraseRun(tenant=TENANT, run_id=run_of("B")[0]), Erased)
        (session,) = await rows_of(engine, tables.sessions)
        assert session["last_run_id"] == run_of("A")[0]
        assert session["last_seq"] == 1
        before = await contents(engine)
        await ask(bus, "rebuild", Rebuild(), ArchiveStatus)
        await eventually(lambda: settled(bus), within=40)
        assert await contents(engine) == before


async def test_deletion_of_a_tenant_leaves_nothing_of_it_and_all_of_others(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    await plant(bus, "A", session_id="s1")
    await plant(bus, "B")
    other = [(subject.replace("acme", "beta"), body) for subject, body in create_run("C")]
    await publish(bus, other)
    async with archive(bus, settings):
        erased = await ask(bus, "erase_tenant", EraseTenant(tenant=TENANT), Erased)
        assert erased.runs == 4
        assert await places_with(bus, engine, CANARY) == set()
        assert await places_with(bus, engine, TENANT) == {"tombstones"}
        assert [row["tenant"] for row in await rows_of(engine, tables.runs)] == ["beta"]


async def test_deletion_cut_short_is_finished_after_the_next_start(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    await plant(bus, "A")
    async with archive(bus, settings):
        last_seq = (await status(bus)).last_seq
    # As if the process had died right after its transaction: the tables are clean, the bus is not.
    async with engine.begin() as connection:
        for name in ("A", "A-child"):
            for table in ("facts", "runs", "steps", "messages", "usage", "signals", "claims"):
                await connection.execute(
                    text(f"DELETE FROM {table} WHERE run_id = :run_id"), {"run_id": run_of(name)[0]}
                )
            await connection.execute(
                tables.tombstones.insert().values(
                    tenant=TENANT,
                    run_id=run_of(name)[0],
                    seq=last_seq,
                    deleted_at=datetime.now(UTC),
                )
            )
    assert await places_with(bus, engine, CANARY) != set()
    async with projecting(settings):

        async def nothing() -> bool:
            return await places_with(bus, engine, CANARY) == set()

        await eventually(nothing)


async def test_retention_deletes_old_runs_and_no_others(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine
) -> None:
    old = datetime.now(UTC) - timedelta(days=40)
    await publish(bus, create_run("OLD", said=CANARY, at=old))
    await publish(bus, [*create_run("NEW"), *create_run("OPEN", at=old, ended=False)])
    async with archive(bus, settings):
        assert len(await rows_of(engine, tables.runs)) == 3
    keeping = settings.model_copy(update={"archive_keep_days": 30.0})
    async with projecting(keeping):

        async def nothing() -> bool:
            return await places_with(bus, engine, CANARY) == set()

        await eventually(nothing)
        left = {row["run_id"] for row in await rows_of(engine, tables.runs)}
        assert left == {run_of("NEW")[0], run_of("OPEN")[0]}
