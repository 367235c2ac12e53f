"""Databases of the services that own one: engine, unit of work, migrations.

SQLite and PostgreSQL behave alike for the caller. SQLAlchemy and Alembic are imported inside the
functions, so that importing this module costs nothing. Only ``session_scope`` commits.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from penstock.contracts.errors import TransientError

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

NAMING_CONVENTION: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""For ``MetaData(naming_convention=...)``: migrations can name every constraint they drop."""

BUSY_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 1.0

_DRIVERS: Final = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
_PASSING_SQLITE_CODES: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
_PASSING_SQLSTATE_CLASSES: Final = {"08", "53", "57"}
"""Connection exception, insufficient resources, operator intervention."""
_PASSING_SQLSTATES: Final = {"40001", "40P01", "55P03"}
"""Serialization failure, deadlock, lock not available."""
_READ_ONLY: Final = "penstock_read_only"


def sqlite_file(url: str) -> str:
    """Return the file that a SQLite URL names, percent-decoded, without the query."""
    path = url.partition("://")[2].removeprefix("/").partition("?")[0]
    return os.fsdecode(unquote_to_bytes(path))


def async_url(url: str) -> str:
    """Return the URL with the async driver, and with libpq's ``sslmode`` as asyncpg names it.

    Args:
        url: As operators write it: ``postgresql://...``, ``sqlite:///file``.

    Raises:
        sqlalchemy.exc.ArgumentError: It is not a database URL.
    """
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - heavy

    parsed = make_url(url)
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    if parsed.drivername == "postgresql+asyncpg" and "sslmode" in parsed.query:
        mode = parsed.query["sslmode"]
        parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    return parsed.render_as_string(hide_password=False)


def create_engine(url: str, *, pool_size: int = 5, recycle_seconds: int = 1800) -> AsyncEngine:
    """Create the engine of a process; the caller disposes of it.

    A SQLite file's folder is created. SQLite runs in WAL mode with foreign keys, and a writing
    unit of work takes the write lock when it begins: one that first reads and then writes would
    otherwise fail at once, without waiting, when another one wrote in between.

    Args:
        url: See ``async_url``.
        pool_size: Connections kept open (PostgreSQL).
        recycle_seconds: Age at which a connection is replaced (PostgreSQL).
    """
    from pathlib import Path  # noqa: PLC0415 - only for SQLite files

    from sqlalchemy import event  # noqa: PLC0415 - heavy
    from sqlalchemy.engine import URL  # noqa: PLC0415 - heavy
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - heavy

    if not url.startswith("sqlite"):
        return create_async_engine(
            async_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_recycle=recycle_seconds,
        )
    location = URL.create(_DRIVERS["sqlite"], database=sqlite_file(url) or None)
    engine = create_async_engine(location, connect_args={"timeout": BUSY_SECONDS})
    if (file := engine.url.database) and file != ":memory:":
        Path(file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Return what makes sessions; loaded objects stay readable after the commit."""
    from sqlalchemy.ext.asyncio import async_sessionmaker  # noqa: PLC0415 - heavy

    return async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def session_scope(
    factory: async_sessionmaker[AsyncSession], *, read_only: bool = False
) -> AsyncIterator[AsyncSession]:
    """One unit of work: committed at the end of the block, rolled back if an error leaves it.

    Args:
        factory: Of ``session_factory``.
        read_only: Promises not to write; on SQLite such a unit does not wait for a writer.

    Raises:
        TransientError: ``database_unavailable`` if the database is away, busy or starting.
    """
    with _unavailable_is_transient():
        async with factory() as session, session.begin():
            with _cannot_connect_is_transient():
                _ = await session.connection(execution_options={_READ_ONLY: read_only})
            yield session


async def upgrade(engine: AsyncEngine, *, package: str) -> None:
    """Bring the schema of a service up to date; safe when several replicas start at once.

    Args:
        engine: Of the service's database.
        package: The service's package; its ``migrations`` folder holds Alembic's ``env.py``
            (which calls ``run_migrations``) and ``versions``. Each service has its own version
            table, so that several can share one database.

    Raises:
        TransientError: ``database_unavailable``.
    """
    with _unavailable_is_transient(), _cannot_connect_is_transient():
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade, package)


def run_migrations(metadata: MetaData) -> None:
    """Run the migrations that ``upgrade`` asked for; called by a service's ``env.py``."""
    from alembic import context  # noqa: PLC0415 - heavy

    attributes: dict[str, Any] = context.config.attributes
    connection: Connection = attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=attributes["version_table"],
        render_as_batch=connection.dialect.name == "sqlite",
        # True for SQLite as well: its DDL is transactional once BEGIN is left to us.
        transactional_ddl=True,
    )
    context.run_migrations()


def _upgrade(connection: Connection, package: str) -> None:
    from alembic import command  # noqa: PLC0415 - heavy
    from alembic.config import Config  # noqa: PLC0415 - heavy
    from sqlalchemy import text  # noqa: PLC0415 - heavy

    if connection.dialect.name == "postgresql":
        # Held until the end of the transaction; on SQLite the write lock does the same.
        key = zlib.crc32(package.encode())
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    config = Config()
    folder = str(resources.files(package) / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = f"alembic_version_{package.replace('.', '_')}"
    command.upgrade(config, "head")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # None: the driver itself begins no transactions; _begin_sqlite does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _unavailable_is_transient() -> Iterator[None]:
    """Map what SQLAlchemy says of a database that is away; what else it says passes through."""
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - heavy
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError  # noqa: PLC0415 - heavy

    try:
        yield
    except PoolTimeoutError as error:
        raise _unavailable(error) from error
    except DBAPIError as error:
        if not _will_pass(error):
            raise
        raise _unavailable(error) from error


def _will_pass(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    cause: BaseException | None = error.orig
    while cause is not None:
        if isinstance(cause, sqlite3.OperationalError):
            # The primary code is the low byte of the extended one.
            return cause.sqlite_errorcode & 0xFF in _PASSING_SQLITE_CODES
        if state := getattr(cause, "sqlstate", None):
            return state[:2] in _PASSING_SQLSTATE_CLASSES or state in _PASSING_SQLSTATES
        cause = cause.__cause__
    return False


@contextmanager
def _cannot_connect_is_transient() -> Iterator[None]:
    """Map what asyncpg raises while it connects, which SQLAlchemy does not wrap."""
    from asyncpg import CannotConnectNowError, PostgresConnectionError  # noqa: PLC0415 - heavy
    from asyncpg import TooManyConnectionsError as TooManyError  # noqa: PLC0415 - heavy

    try:
        yield
    except (OSError, CannotConnectNowError, PostgresConnectionError, TooManyError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> TransientError:
    return TransientError(
        "database_unavailable",
        str(error).splitlines()[0] if str(error) else repr(error),
        retry_after_seconds=RETRY_SECONDS,
    )
