import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.contracts.errors import TransientError
from penstock.db import async_url, create_engine, session_factory, session_scope, upgrade

ENV = """
from sqlalchemy import MetaData
from penstock.db import run_migrations
run_migrations(MetaData())
"""
FIRST = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "1", None
def upgrade():
    op.create_table("{table}", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("INSERT INTO {table} (id) VALUES (1)")
"""
BROKEN = """
from alembic import op
revision, down_revision = "2", "1"
def upgrade():
    op.execute("DELETE FROM {table}")
    op.execute("INSERT INTO missing (id) VALUES (1)")
"""


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/folder/test.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = create_engine(database_url)
    yield made
    await made.dispose()


@pytest.fixture
def create_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, dict[str, str]], str]]:
    """Write a service's package with migrations that work on a table of the package's name."""
    names: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def create(name: str, versions: dict[str, str]) -> str:
        folder = tmp_path / name / "migrations" / "versions"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "__init__.py").touch()
        (folder.parent / "env.py").write_text(ENV)
        for revision, source in versions.items():
            (folder / f"{revision}.py").write_text(source.format(table=name))
        names.append(name)
        return name

    yield create
    for name in names:
        sys.modules.pop(name, None)


async def make_counter(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE counters (id INT PRIMARY KEY, n INT)"))
        await connection.execute(text("INSERT INTO counters VALUES (1, 0)"))


async def read_counter(engine: AsyncEngine) -> int:
    async with session_scope(session_factory(engine), read_only=True) as session:
        value: int = (await session.execute(text("SELECT n FROM counters"))).scalar_one()
        return value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgres://u:p@h:1/d", "postgresql+asyncpg://u:p@h:1/d"),
        ("postgresql://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require"),
        ("postgresql+asyncpg://h/d", "postgresql+asyncpg://h/d"),
        ("sqlite:////tmp/a.db", "sqlite+aiosqlite:////tmp/a.db"),
    ],
)
def test_async_url_names_the_driver(given: str, expected: str) -> None:
    assert async_url(given) == expected


async def test_unit_of_work_commits_at_its_end(engine: AsyncEngine) -> None:
    await make_counter(engine)

    async with session_scope(session_factory(engine)) as session:
        await session.execute(text("UPDATE counters SET n = 5"))

    assert await read_counter(engine) == 5


async def test_unit_of_work_that_raises_leaves_nothing(engine: AsyncEngine) -> None:
    await make_counter(engine)

    with pytest.raises(LookupError):
        async with session_scope(session_factory(engine)) as session:
            await session.execute(text("UPDATE counters SET n = 5"))
            raise LookupError

    assert await read_counter(engine) == 0


async def test_mistake_in_a_statement_is_not_taken_for_an_outage(engine: AsyncEngine) -> None:
    await make_counter(engine)

    with pytest.raises(Exception, match="nowhere") as caught:
        async with session_scope(session_factory(engine)) as session:
            await session.execute(text("SELECT * FROM nowhere"))
    assert not isinstance(caught.value, TransientError)

    with pytest.raises(IntegrityError):
        async with session_scope(session_factory(engine)) as session:
            await session.execute(text("INSERT INTO counters VALUES (1, 1)"))


async def test_database_away_is_transient() -> None:
    engine = create_engine("postgresql://u@127.0.0.1:1/d")

    with pytest.raises(TransientError) as caught:
        async with session_scope(session_factory(engine)):
            pass

    assert caught.value.code == "database_unavailable"
    await engine.dispose()


async def test_connection_cut_on_postgres_is_transient_and_replaced(
    postgres_database: str,
) -> None:
    engine = create_engine(postgres_database, pool_size=1)
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    with pytest.raises(TransientError) as caught:
        async with session_scope(session_factory(engine)) as session:
            await session.execute(text("SELECT 1"))
            other = create_engine(postgres_database)
            async with other.begin() as connection:
                await connection.execute(text(kill))
            await other.dispose()
            await session.execute(text("SELECT 1"))

    assert caught.value.code == "database_unavailable"
    async with session_scope(session_factory(engine)) as session:
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()


@pytest.mark.parametrize("name", ["Bücher ✓", "what?", "a#b", "100%41"])
async def test_sqlite_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/{quote(name)}")
    await make_counter(engine)
    await engine.dispose()

    assert (tmp_path / name).is_file()


async def test_sqlite_units_that_read_and_then_write_wait_for_each_other(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    await make_counter(engine)

    async def increment() -> None:
        async with session_scope(session_factory(engine)) as session:
            n = (await session.execute(text("SELECT n FROM counters"))).scalar_one()
            await asyncio.sleep(0.001)
            await session.execute(text("UPDATE counters SET n = :n"), {"n": n + 1})

    await asyncio.gather(*(increment() for _ in range(10)))

    assert await read_counter(engine) == 10
    await engine.dispose()


async def test_sqlite_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    await make_counter(engine)

    async with session_scope(session_factory(engine)) as session:
        await session.execute(text("UPDATE counters SET n = 1"))
        assert await read_counter(engine) == 0

    await engine.dispose()


async def test_sqlite_checks_foreign_keys_and_writes_ahead(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")

    async with session_scope(session_factory(engine)) as session:
        keys = (await session.execute(text("PRAGMA foreign_keys"))).scalar_one()
        mode = (await session.execute(text("PRAGMA journal_mode"))).scalar_one()

    assert (keys, mode) == (1, "wal")
    await engine.dispose()


async def test_upgrade_applies_once_and_may_be_repeated(
    engine: AsyncEngine, create_package: Callable[[str, dict[str, str]], str]
) -> None:
    package = create_package("ledger_one", {"1": FIRST})

    await upgrade(engine, package=package)
    await upgrade(engine, package=package)

    async with session_scope(session_factory(engine)) as session:
        assert (await session.execute(text("SELECT count(*) FROM ledger_one"))).scalar_one() == 1


async def test_upgrade_of_two_services_in_one_database(
    engine: AsyncEngine, create_package: Callable[[str, dict[str, str]], str]
) -> None:
    await upgrade(engine, package=create_package("ledger_two", {"1": FIRST}))
    await upgrade(engine, package=create_package("ledger_three", {"1": FIRST}))

    async with session_scope(session_factory(engine)) as session:
        assert (await session.execute(text("SELECT count(*) FROM ledger_three"))).scalar_one() == 1


async def test_upgrade_by_several_replicas_at_once_applies_once(
    database_url: str, create_package: Callable[[str, dict[str, str]], str]
) -> None:
    package = create_package("ledger_four", {"1": FIRST})
    replicas = [create_engine(database_url) for _ in range(3)]

    await asyncio.gather(*(upgrade(replica, package=package) for replica in replicas))

    async with session_scope(session_factory(replicas[0])) as session:
        assert (await session.execute(text("SELECT count(*) FROM ledger_four"))).scalar_one() == 1
    for replica in replicas:
        await replica.dispose()


async def test_upgrade_that_fails_half_way_changes_nothing(
    engine: AsyncEngine, create_package: Callable[[str, dict[str, str]], str]
) -> None:
    package = create_package("ledger_five", {"1": FIRST})
    await upgrade(engine, package=package)
    create_package("ledger_five", {"1": FIRST, "2": BROKEN})

    with pytest.raises(Exception, match="missing"):
        await upgrade(engine, package=package)

    async with session_scope(session_factory(engine)) as session:
        assert (await session.execute(text("SELECT count(*) FROM ledger_five"))).scalar_one() == 1
