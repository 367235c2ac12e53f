"""What can be asked of the archive, on both databases."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock import rpc
from penstock.bus import topology
from penstock.bus.connection import connect
from penstock.contracts import subjects
from penstock.contracts.archive import (
    DeleteSession,
    GetRun,
    GetSession,
    ListRuns,
    ListSessions,
    ListSignals,
    ListSteps,
    RunFacts,
    RunPage,
    SessionMessages,
)
from penstock.contracts.archive_reports import CostReport, GetProfile, ProfileReport, UsageSummary
from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    RunEnded,
    RunFact,
    RunInvoked,
    RunStatus,
    SignalKind,
    SignalReceived,
    StepKind,
    StepResult,
    StepScheduled,
    fact_bytes,
)
from penstock.contracts.usage import Usage
from penstock.db import create_engine
from penstock.embedded import NatsServer
from penstock.runs.state import Entry, fold, new_state
from penstock.runs.views import RunView, run_view
from penstock_archive import migrations, narrowing, tables
from penstock_archive import queries as archive_queries
from penstock_archive.drivers import open_store
from penstock_archive.migrate import migrate
from penstock_archive.projection import Projection, address, read_fact
from penstock_archive.queries import PAGE_BYTES, Queries
from penstock_archive.reports import Reports
from penstock_archive.settings import ArchiveSettings
from penstock_archive.store import REVISION, VERSION_TABLE, Store
from tests.integration.archive.test_projector import assert_eventually_archived, projecting, publish
from tests.support.archived import entries_of, rows_of, states_of
from tests.support.histories import START, Message, random_log


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    await migrate(database_url)
    engine = create_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def store(engine: AsyncEngine, database_url: str) -> AsyncIterator[Store]:
    store = open_store(database_url)
    await store.begin(subjects.RUNS, "now")
    yield store
    await store.close()


async def pack(body: bytes) -> bytes:
    return body if len(body) < 100_000 else b'{"type":"claim"}'


@pytest.fixture
def queries(engine: AsyncEngine) -> Queries:
    return Queries(engine, pack)


@pytest.fixture
def reports(engine: AsyncEngine) -> Reports:
    return Reports(engine)


async def archive(store: Store, log: Sequence[Message]) -> None:
    """Project a whole log, in a few batches, after what is projected already."""
    position = await store.position(subjects.RUNS)
    assert position is not None
    projection = Projection(store.instant)
    reached = position.last_seq
    received = [address(reached + n, subject, body) for n, (subject, body) in enumerate(log, 1)]
    for begin in range(0, len(received), 50):
        part = received[begin : begin + 50]
        missing = projection.missing(part)
        projection.load(missing, await store.load(missing, position.last_seq))
        batch = projection.build(part, part[-1].seq)
        await store.commit(subjects.RUNS, batch, after=position)
        projection.committed(batch)
        position = position._replace(last_seq=batch.last_seq)


def message(subject: str, fact: RunFact) -> Message:
    return subject, fact_bytes(fact)


def create_run(
    run_id: str,
    *,
    tenant: str = "acme",
    name: str = "research",
    session_id: str | None = None,
    minute: int = 0,
    tags: dict[str, str] | None = None,
    question: str = "why?",
    answer: str | None = "because",
    usage: Usage | None = None,
    model: str = "openai/gpt-5-mini",
) -> list[Message]:
    """The log of a run of one turn; without an answer it goes on."""
    at = START + timedelta(minutes=minute)
    prefix = subjects.run_prefix(tenant, 1, run_id)
    log = [
        message(
            subjects.invoke(prefix),
            RunInvoked(
                occurred_at=at,
                name=name,
                kind=DefinitionKind.AGENT,
                version=1,
                plan_digest="d",
                input=question,
                session_id=session_id,
                tags=tags or {},
            ),
        ),
        message(
            subjects.out(prefix, 1, subjects.step_suffix("agent", "default", "main-1", 1)),
            StepScheduled(
                occurred_at=at,
                decision=Decision(cause_seq=1),
                node_id="main",
                name=name,
                expires_at=at,
            ),
        ),
    ]
    if answer is None:
        return log
    spent = usage or Usage(input_tokens=10, output_tokens=2, cost_usd=0.5, model_calls=1)
    return [
        *log,
        message(
            subjects.result(prefix, "main-1", 1),
            StepResult(
                occurred_at=at,
                started_at=at,
                kind=StepKind.AGENT,
                name=name,
                status="succeeded",
                output={"action": "respond", "text": answer},
                usage=spent,
                model=model,
            ),
        ),
        message(
            subjects.out(prefix, 2, subjects.END_SUFFIX),
            RunEnded(
                occurred_at=at,
                decision=Decision(cause_seq=3),
                status=RunStatus.DONE,
                output=answer,
                usage=spent,
            ),
        ),
    ]


async def test_migrations_make_the_tables_that_the_code_knows(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
        )
        return list(compare_metadata(context, tables.METADATA))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_migration_finds_the_traits_of_runs_that_are_there(
    store: Store, engine: AsyncEngine, database_url: str
) -> None:
    await archive(store, random_log(random.Random(5), 60))
    before = await rows_of(engine, tables.traits)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE traits")
        await connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '0001'")

    await migrate(database_url)

    assert len({row["trait"].partition(".")[0] for row in before}) == 4
    assert await rows_of(engine, tables.traits) == before


def test_latest_migration_is_the_one_that_the_store_expects() -> None:
    folder = Path(next(iter(migrations.__path__)))
    assert ScriptDirectory(str(folder)).get_current_head() == REVISION


async def test_store_with_tables_knows_their_revision(store: Store) -> None:
    assert await store.revision() == REVISION


async def test_list_runs_pages_through_all_newest_first(store: Store, queries: Queries) -> None:
    log = [item for n in range(7) for item in create_run(f"RUN{n}")]
    await archive(store, [*log, *create_run("OTHER", tenant="beta")])
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await queries.list_runs(ListRuns(tenant="acme", limit=3, cursor=cursor))
        seen += [run.run_id for run in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.items) == 3
    assert seen == [f"RUN{n}" for n in reversed(range(7))]


async def test_page_of_large_runs_is_shorter_and_none_is_lost(
    store: Store, queries: Queries
) -> None:
    text = "\u00e4" * 7_000
    log = [item for n in range(60) for item in create_run(f"RUN{n:02}", question=text, answer=text)]
    await archive(store, log)
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor is not None:
        page = await queries.list_runs(ListRuns(tenant="acme", limit=60, cursor=cursor))
        assert len(page.model_dump_json().encode()) < 1_000_000
        seen += [run.run_id for run in page.items]
        cursor, pages = page.next_cursor, pages + 1
    assert seen == [f"RUN{n:02}" for n in reversed(range(60))]
    assert pages > 1


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"status": (RunStatus.RUNNING,)}, ["C"]),
        ({"status": (RunStatus.RUNNING, RunStatus.DONE)}, ["C", "B", "A"]),
        ({"status": (RunStatus.FAILED,)}, []),
        ({"name": "report"}, ["B"]),
        ({"id_prefix": "B"}, ["B"]),
        ({"id_prefix": "BA"}, []),
        ({"kind": DefinitionKind.AGENT}, ["C", "B", "A"]),
        ({"kind": DefinitionKind.WORKFLOW}, []),
        ({"session_id": "s1"}, ["B", "A"]),
        ({"session_id": "s1", "name": "research"}, ["A"]),
        ({"created_from": START + timedelta(minutes=10)}, ["C", "B"]),
        ({"created_before": START + timedelta(minutes=10)}, ["A"]),
        ({"tags": {"team": "x"}}, ["C", "A"]),
        ({"tags": {"team": "x", 'odd ".$ name': "ü"}}, ["C"]),
        ({"tags": {"nobody": "x"}}, []),
        ({"tags": {"team": "%"}}, []),
        ({"trigger": ("http",)}, ["C", "B", "A"]),
        ({"trigger": ("webhook", "cli")}, []),
        ({"min_cost_usd": 0.5}, ["B", "A"]),
        ({"min_cost_usd": 0.5, "max_cost_usd": 0.4}, []),
        ({"max_cost_usd": 0.0}, ["C"]),
        ({"parent_run_id": "A"}, []),
        ({"root_run_id": "A"}, ["A"]),
        ({"error": "o"}, []),
        ({"sort": "ended"}, ["B", "A"]),
        ({"sort": "ended", "order": "asc"}, ["A", "B"]),
        ({"order": "asc"}, ["A", "B", "C"]),
        ({"ended_from": START + timedelta(minutes=10)}, ["B"]),
        ({"ended_before": START + timedelta(minutes=10)}, ["A"]),
    ],
)
async def test_list_runs_with_a_filter_finds_what_matches(
    store: Store, queries: Queries, wanted: dict[str, object], found: list[str]
) -> None:
    await archive(
        store,
        [
            *create_run("A", session_id="s1", tags={"team": "x"}),
            *create_run("B", session_id="s1", name="report", minute=10),
            *create_run("C", answer=None, minute=20, tags={"team": "x", 'odd ".$ name': "ü"}),
        ],
    )
    page = await queries.list_runs(ListRuns.model_validate({"tenant": "acme", **wanted}))
    assert [run.run_id for run in page.items] == found


NARROW: list[dict[str, object]] = [
    {"status": (RunStatus.FAILED,)},
    {"status": (RunStatus.CANCELLED, RunStatus.FAILED)},
    {"error": "o"},
    {"tags": {"team": "x"}},
    {"min_cost_usd": 0.5},
    {"status": (RunStatus.FAILED,), "error": "o", "min_cost_usd": 0.5},
]


@pytest.mark.parametrize("few", [0, 2, 1000])
@pytest.mark.parametrize("wanted", NARROW)
async def test_list_runs_with_a_narrow_filter_finds_what_reading_all_runs_finds(
    store: Store,
    queries: Queries,
    wanted: dict[str, object],
    few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await archive(store, random_log(random.Random(3), 60))
    monkeypatch.setattr(narrowing, "FEW", few)
    monkeypatch.setattr(archive_queries, "FEW", few)
    for order in ({}, {"order": "asc"}, {"sort": "ended"}, {"sort": "ended", "order": "asc"}):
        request = ListRuns.model_validate({"tenant": "acme", "limit": 2, **wanted, **order})
        narrow = await pages(queries, request)
        with monkeypatch.context() as patched:
            patched.setattr(archive_queries, "narrow", lambda _request: ())
            assert await pages(queries, request) == narrow
        assert narrow or wanted == NARROW[3]


async def pages(queries: Queries, request: ListRuns) -> list[str]:
    """Return the ids of all runs that match, page by page."""
    found: list[str] = []
    while True:
        page = await queries.list_runs(request)
        found += [run.run_id for run in page.items]
        if page.next_cursor is None:
            return found
        request = request.model_copy(update={"cursor": page.next_cursor})


@pytest.mark.parametrize("wanted", NARROW[:5])
async def test_narrow_filters_read_an_index(
    store: Store, engine: AsyncEngine, wanted: dict[str, object]
) -> None:
    await archive(store, random_log(random.Random(3), 60))
    request = ListRuns.model_validate({"tenant": "acme", **wanted})
    (filtered,) = narrowing.narrow(request)
    postgres = engine.dialect.name == "postgresql"
    async with engine.connect() as connection:
        if postgres:
            # So few rows are read faster without an index.
            await connection.exec_driver_sql("SET enable_seqscan = off")
        for query in filtered.queries:
            compiled = query.compile(engine, compile_kwargs={"literal_binds": True})
            explain = "EXPLAIN" if postgres else "EXPLAIN QUERY PLAN"
            found = await connection.exec_driver_sql(f"{explain} {compiled}".replace("%", "%%"))
            plan = "\n".join(str(row) for row in found)
            assert "INDEX" in plan.upper() or "PRIMARY KEY" in plan, plan
            assert "SCAN" not in plan or postgres, plan
            assert "Seq Scan" not in plan, plan


async def test_list_runs_shows_what_the_fold_shows_but_steps(
    store: Store, queries: Queries
) -> None:
    log = random_log(random.Random(1), 20)
    await archive(store, log)
    states = states_of(entries_of(log))
    page = await queries.list_runs(ListRuns(tenant="acme", limit=100))
    assert page.items
    for run in page.items:
        view = run_view(states["acme", run.run_id])
        assert view is not None
        left_out: dict[str, object] = {
            "steps": (),
            "step_counts": {},
            "children": (),
            "waiting_for": (),
        }
        expected = view.model_copy(update={**left_out, "usage": run.usage, "tags": run.tags})
        assert run == expected
        assert run.usage.cost_usd == pytest.approx(view.usage.cost_usd)
    assert any(run.parent for run in page.items)
    assert any(run.forked_from for run in page.items)


@pytest.mark.parametrize("sort", ["created", "ended"])
@pytest.mark.parametrize("order", ["desc", "asc"])
async def test_list_runs_pages_hold_still_while_runs_are_added(
    store: Store, queries: Queries, sort: str, order: str
) -> None:
    # Some end at the same instant: the order is total all the same.
    await archive(store, [item for n in range(9) for item in create_run(f"RUN{n}", minute=n // 3)])
    asked = ListRuns.model_validate({"tenant": "acme", "sort": sort, "order": order, "limit": 2})
    seen: list[str] = []
    cursor: str | None = None
    for added in range(20):
        page = await queries.list_runs(asked.model_copy(update={"cursor": cursor}))
        seen += [run.run_id for run in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        if added < 4:
            await archive(store, create_run(f"NEW{added}", minute=100 + added))
    old = [run_id for run_id in seen if run_id.startswith("RUN")]
    assert sorted(seen) == sorted(set(seen)), "none twice"
    assert old == sorted(old, reverse=order == "desc")
    assert len(old) == 9, "none left out"
    if cursor is None and order == "desc":
        assert seen == old, "what comes anew is before the first page"
    other = "asc" if order == "desc" else "desc"
    first = await queries.list_runs(asked)
    with pytest.raises(RejectedError, match="invalid_cursor"):
        await queries.list_runs(
            asked.model_copy(update={"order": other, "cursor": first.next_cursor})
        )


async def test_list_steps_filters_and_pages_with_waits_and_durations(
    store: Store, reports: Reports
) -> None:
    log = [item for n in range(5) for item in create_run(f"R{n}", minute=n)]
    await archive(store, [*log, *create_run("OPEN", minute=9, answer=None)])
    first = await reports.list_steps(ListSteps(tenant="acme", limit=4))
    assert [step.run_id for step in first.items] == ["OPEN", "R4", "R3", "R2"]
    rest = await reports.list_steps(ListSteps(tenant="acme", limit=4, cursor=first.next_cursor))
    assert [step.run_id for step in rest.items] == ["R1", "R0"]
    assert rest.next_cursor is None
    assert rest.items[0].queue_wait_ms == 0.0
    assert rest.items[0].duration_ms == 0.0
    assert rest.items[0].model == "openai/gpt-5-mini"
    assert first.items[0].queue_wait_ms is None
    for wanted, found in (
        ({"status": ("scheduled",)}, ["OPEN"]),
        ({"run_id": "R1"}, ["R1"]),
        ({"kind": (StepKind.TOOL, StepKind.RUN)}, []),
        ({"node_id": "main", "scheduled_before": START + timedelta(minutes=1)}, ["R0"]),
        ({"name": "nobody"}, []),
    ):
        page = await reports.list_steps(ListSteps.model_validate({"tenant": "acme", **wanted}))
        assert [step.run_id for step in page.items] == found, wanted
    with pytest.raises(RejectedError, match="invalid_cursor"):
        await reports.list_steps(ListSteps(tenant="acme", cursor="WyJydW5zIiwxXQ"))


async def test_list_signals_finds_messages_between_runs(store: Store, reports: Reports) -> None:
    prefix = subjects.run_prefix("acme", 1, "R0")
    kinds: tuple[SignalKind, ...] = ("message", "event", "message")
    signals: list[Message] = [
        message(
            subjects.signal(prefix, f"m{n}"),
            SignalReceived(
                occurred_at=START,
                name="news",
                kind=kind,
                from_run="OTHER" if kind == "message" else None,
                payload={"n": n},
            ),
        )
        for n, kind in enumerate(kinds)
    ]
    await archive(store, [*create_run("R0"), *signals])
    page = await reports.list_signals(ListSignals(tenant="acme", kind=("message",), limit=1))
    assert [item.signal_id for item in page.items] == ["m2"]
    assert page.items[0].payload == {"n": 2}
    rest = await reports.list_signals(
        ListSignals(tenant="acme", kind=("message",), cursor=page.next_cursor, from_run="OTHER")
    )
    assert [item.signal_id for item in rest.items] == ["m0"]


async def test_reports_of_cost_and_time_name_what_stands_out(
    store: Store, reports: Reports
) -> None:
    unpriced = Usage(input_tokens=5, output_tokens=5, unknown_price=True, model_calls=1)
    await archive(
        store,
        [
            *create_run("A"),
            *create_run("B", minute=24 * 60),
            *create_run("C", model="claude-x", usage=Usage(cost_usd=0.25, model_calls=1)),
            *create_run("D", model="mystery/one", usage=unpriced, name="report"),
            *create_run("E", model="ollama/llama", usage=unpriced),
            *create_run("F", tenant="beta"),
        ],
    )
    cost = await reports.cost_report(CostReport(tenant="acme"))
    assert cost.runs == 5
    assert cost.total.cost_usd == 1.25
    assert [(line.key, line.share) for line in cost.providers] == [
        ("openai", 0.8),
        ("anthropic", 0.2),
        ("mystery", 0.0),
        ("ollama", 0.0),
    ]
    assert cost.most_expensive_provider == "openai"
    assert cost.unknown_prices == ("mystery/one",)
    assert [line.key for line in cost.days] == ["2026-03-02", "2026-03-01"]
    only = await reports.cost_report(CostReport(tenant="acme", name="research", until=START))
    assert (only.runs, only.providers, only.most_expensive_provider) == (0, (), None)
    times = await reports.profile_report(ProfileReport(tenant="acme", name="research"))
    assert times.runs == 4
    assert [(node.name, node.node_id, node.runs) for node in times.nodes] == [
        ("research", "main", 4)
    ]
    assert times.slowest == "research/main"
    stored = await reports.get_profile(GetProfile(tenant="acme", run_id="A"))
    assert [line.provider for line in stored.profile.models] == ["openai"]
    with pytest.raises(RejectedError, match="run_not_found"):
        await reports.get_profile(GetProfile(tenant="beta", run_id="A"))


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1e9", "9" * 40])
async def test_list_runs_with_a_foreign_cursor_refuses(queries: Queries, cursor: str) -> None:
    with pytest.raises(RejectedError, match="invalid_cursor"):
        await queries.list_runs(ListRuns(tenant="acme", cursor=cursor))


async def test_get_run_equals_the_fold_of_the_log(store: Store, queries: Queries) -> None:
    log = random_log(random.Random(2), 20)
    await archive(store, log)
    for (tenant, run_id), state in states_of(entries_of(log)).items():
        expected = run_view(state)
        if expected is not None:
            assert await queries.get_run(GetRun(tenant=tenant, run_id=run_id)) == expected


async def test_get_run_of_another_tenant_finds_nothing(store: Store, queries: Queries) -> None:
    await archive(store, create_run("A"))
    with pytest.raises(RejectedError, match="run_not_found"):
        await queries.get_run(GetRun(tenant="beta", run_id="A"))


async def test_run_facts_page_through_the_log_of_a_run(store: Store, queries: Queries) -> None:
    log = random_log(random.Random(3), 10)
    await archive(store, log)
    entries = [entry for entry in entries_of(log) if entry.subject.tenant == "acme"]
    run_id = entries[0].subject.run_id
    expected = [entry.seq for entry in entries if entry.subject.run_id == run_id]
    seen: list[Entry] = []
    after: int | None = 0
    while after is not None:
        page = await queries.run_facts(RunFacts(tenant="acme", run_id=run_id, after=after, limit=2))
        for item in page.items:
            read = address(item.seq, item.subject, item.body.encode())
            seen.append(Entry(read.seq, read.subject, read_fact(read)))
        after = page.next_after
    assert [entry.seq for entry in seen] == expected
    first = seen[0].subject
    assert fold(new_state("acme", first.shard, run_id), seen) == states_of(entries)["acme", run_id]


async def test_run_facts_of_great_size_come_in_pages_that_fit(
    store: Store, queries: Queries
) -> None:
    prefix = subjects.run_prefix("acme", 1, "LARGE")
    log = create_run("LARGE", answer=None)
    for number, size in enumerate((90_000, 90_000, 90_000, 90_000, 300_000), 1):
        at = START
        fact = StepResult(
            occurred_at=at,
            started_at=at,
            kind=StepKind.AGENT,
            name="n",
            status="succeeded",
            output="x" * size,
        )
        log.append(message(subjects.result(prefix, f"s{number}", 1), fact))
    await archive(store, log)
    page = await queries.run_facts(RunFacts(tenant="acme", run_id="LARGE"))
    assert 2 < len(page.items) < len(log)
    assert sum(len(item.body) for item in page.items) < PAGE_BYTES
    assert page.next_after is not None
    rest = await queries.run_facts(RunFacts(tenant="acme", run_id="LARGE", after=page.next_after))
    assert rest.next_after is None
    assert rest.items[-1].body == '{"type":"claim"}', "too large for any page: a claim"


async def test_session_shows_its_runs_and_messages(store: Store, queries: Queries) -> None:
    await archive(
        store,
        [
            *create_run("A", session_id="s1", question="one?", answer="1"),
            *create_run("B", session_id="s2"),
            *create_run("C", session_id="s1", question="two?", answer="2", minute=5),
            *create_run("D", session_id="s1", tenant="beta"),
        ],
    )
    page = await queries.list_sessions(ListSessions(tenant="acme"))
    assert [(item.session_id, item.runs) for item in page.items] == [("s1", 2), ("s2", 1)]
    session = await queries.get_session(GetSession(tenant="acme", session_id="s1"))
    assert session == page.items[0]
    assert session.last_run_id == "C"
    assert session.created_at == START
    assert session.updated_at == START + timedelta(minutes=5)
    said = await queries.session_messages(SessionMessages(tenant="acme", session_id="s1"))
    assert [(item.role, item.content, item.run_id) for item in said.items] == [
        ("user", "one?", "A"),
        ("assistant", "1", "A"),
        ("user", "two?", "C"),
        ("assistant", "2", "C"),
    ]


async def test_sessions_and_messages_page_through_all(store: Store, queries: Queries) -> None:
    log = [item for n in range(5) for item in create_run(f"R{n}", session_id=f"s{n}")]
    log += [item for n in range(3) for item in create_run(f"T{n}", session_id="s0")]
    await archive(store, log)
    first = await queries.list_sessions(ListSessions(tenant="acme", limit=3))
    rest = await queries.list_sessions(
        ListSessions(tenant="acme", limit=3, cursor=first.next_cursor)
    )
    found = [item.session_id for item in (*first.items, *rest.items)]
    assert found == ["s0", "s4", "s3", "s2", "s1"]
    assert rest.next_cursor is None
    contents = 0
    after: int | None = 0
    while after is not None:
        page = await queries.session_messages(
            SessionMessages(tenant="acme", session_id="s0", after=after, limit=3)
        )
        contents += len(page.items)
        after = page.next_after
    assert contents == 8


async def test_session_deleted_is_gone_until_a_later_run(store: Store, queries: Queries) -> None:
    await archive(store, [*create_run("A", session_id="s1"), *create_run("B", session_id="s2")])
    asked = DeleteSession(tenant="acme", session_id="s1")
    assert (await queries.delete_session(asked)).session_id == "s1"
    for refused in (
        queries.get_session(GetSession(tenant="acme", session_id="s1")),
        queries.session_messages(SessionMessages(tenant="acme", session_id="s1")),
        queries.delete_session(asked),
    ):
        with pytest.raises(RejectedError, match="session_not_found"):
            await refused
    page = await queries.list_sessions(ListSessions(tenant="acme"))
    assert [item.session_id for item in page.items] == ["s2"]
    assert (await queries.get_run(GetRun(tenant="acme", run_id="A"))).session_id == "s1"

    await archive(store, create_run("C", session_id="s1", question="anew?"))
    session = await queries.get_session(GetSession(tenant="acme", session_id="s1"))
    assert session.runs == 1
    said = await queries.session_messages(SessionMessages(tenant="acme", session_id="s1"))
    assert [item.run_id for item in said.items] == ["C", "C"]


async def test_usage_summary_adds_up_by_model_and_marks_unknown_prices(
    store: Store, reports: Reports
) -> None:
    unpriced = Usage(input_tokens=5, output_tokens=5, unknown_price=True, model_calls=1)
    await archive(
        store,
        [
            *create_run("A"),
            *create_run("B", minute=10),
            *create_run("C", model="mystery/llama", usage=unpriced, name="report"),
            *create_run("D", tenant="beta"),
        ],
    )
    report = await reports.usage_summary(UsageSummary(tenant="acme"))
    assert [(line.provider, line.model) for line in report.items] == [
        ("openai", "openai/gpt-5-mini"),
        ("mystery", "mystery/llama"),
    ]
    assert report.items[0].usage == Usage(
        input_tokens=20, output_tokens=4, cost_usd=1.0, model_calls=2
    )
    assert report.total == Usage(
        input_tokens=25, output_tokens=9, cost_usd=1.0, unknown_price=True, model_calls=3
    )
    later = UsageSummary(tenant="acme", since=START + timedelta(minutes=1))
    assert (await reports.usage_summary(later)).total.model_calls == 1
    before = UsageSummary(tenant="acme", until=START + timedelta(minutes=1), name="research")
    assert (await reports.usage_summary(before)).total.model_calls == 1
    nobody = await reports.usage_summary(UsageSummary(tenant="nobody"))
    assert nobody.items == ()


async def test_verbs_over_the_bus_answer_and_refuse_in_the_envelope(
    create_nats_server: Callable[..., NatsServer], tmp_path: Path
) -> None:
    server = create_nats_server()
    url = f"sqlite:///{tmp_path / 'archive.db'}"
    settings = ArchiveSettings.model_validate(
        {"nats_url": server.url, "database_url": url, "metrics_port": -1}
    )
    bus = await connect(settings, name="test")
    await topology.ensure(bus, settings)
    log = create_run("RUN")
    engine = create_engine(url)
    try:
        async with projecting(settings):
            await publish(bus, log)
            await assert_eventually_archived(engine, log)
            page = await rpc.call(bus, "archive", "list_runs", ListRuns(tenant="acme"), RunPage)
            assert [run.run_id for run in page.items] == ["RUN"]
            run = await rpc.call(
                bus, "archive", "get_run", GetRun(tenant="acme", run_id="RUN"), RunView
            )
            assert [step.step_id for step in run.steps] == ["main-1"]
            with pytest.raises(RejectedError, match="run_not_found"):
                await rpc.call(
                    bus, "archive", "get_run", GetRun(tenant="acme", run_id="NONE"), RunView
                )
            answer = await bus.request(subjects.rpc("archive", "list_runs"), b"nonsense")
            assert b'"invalid_request"' in answer.data
    finally:
        await bus.close()
        await engine.dispose()


async def test_row_that_cannot_be_read_does_not_hide_the_others(
    store: Store, queries: Queries, reports: Reports, engine: AsyncEngine
) -> None:
    await archive(store, create_run("R1") + create_run("R2"))
    broken = {"output": "[" * 300 + "]" * 300, "error": "no JSON"}
    async with engine.begin() as connection:
        for table in (tables.runs, tables.steps):
            of_first = table.c.run_id == "R1"
            await connection.execute(table.update().where(of_first).values(**broken))

    listed = await queries.list_runs(ListRuns(tenant="acme"))
    steps = await reports.list_steps(ListSteps(tenant="acme"))

    assert {run.run_id: run.output for run in listed.items} == {"R1": None, "R2": "because"}
    assert {step.run_id for step in steps.items} == {"R1", "R2"}
