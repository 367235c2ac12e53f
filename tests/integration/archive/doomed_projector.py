"""Lives of a projector, each killed at another of its effects, in one process that forks.

Effects are every statement that goes to the database, every acknowledgement and every dead
letter: each life is killed by SIGKILL right before one of them. The last life is spared.
Prints one line of JSON: what each was about to do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

import asyncpg

from penstock_archive import sqlite
from penstock_archive.drivers import open_store
from penstock_archive.feed import Feed
from penstock_archive.main import serve
from penstock_archive.projector import Projector
from penstock_archive.settings import ArchiveSettings

LIVES = (
    *((at, "") for at in range(1, 20)),
    *((at, kind) for kind in ("UPDATE", "acknowledge") for at in (1, 2, 3)),
    (0, ""),
)
"""Each dies before so many effects, of any kind or of the one named; 0 is spared."""


class Fate:
    """Counts effects, and kills the process before the one that was named."""

    def __init__(self, at: int, kind: str, out: int) -> None:
        self.left = at
        self.kind = kind
        self.out = out
        self.last = ""

    def meets(self, effect: str) -> None:
        if effect == self.last:
            return  # the same statement, for more rows
        self.last = effect
        self.left -= effect.startswith(self.kind)
        if self.left == 0:
            os.write(self.out, effect.encode())
            os.kill(os.getpid(), signal.SIGKILL)


def watch(fate: Fate) -> None:
    """Put fate in front of every effect of a projector."""

    def before(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def doomed(*args: Any, **given: Any) -> Any:
            fate.meets(args[1][:20] if name == "execute" else name)
            return original(*args, **given)

        setattr(owner, name, doomed)

    before(Feed, "acknowledge")
    before(Projector, "_bury")
    before(asyncpg.Connection, "execute")
    opened: Callable[..., sqlite3.Connection] = sqlite._open

    def traced(path: Any) -> sqlite3.Connection:
        connection = opened(path)
        connection.set_trace_callback(
            lambda statement: (
                fate.meets(statement.partition("(")[0][:40])
                if statement.startswith(("BEGIN", "INSERT", "UPDATE", "DELETE", "COMMIT"))
                else None
            )
        )
        return connection

    sqlite._open = traced


async def live(settings: ArchiveSettings, until_seq: int) -> None:
    """Project until everything is there."""
    until = asyncio.Event()
    running = asyncio.create_task(serve(settings, until=until))
    store = open_store(settings.resolved_database_url)
    while not running.done():
        position = await store.position("RUNS") if await store.revision() else None
        if position is not None and position.last_seq >= until_seq:
            break
        await asyncio.sleep(0.01)
    until.set()
    await running
    await store.close()


def main() -> None:
    settings = ArchiveSettings.model_validate_json(sys.argv[1])
    until_seq = int(sys.argv[2])
    deaths: list[str] = []
    for at, kind in LIVES:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            watch(Fate(at, kind, writing))
            asyncio.run(live(settings, until_seq))
            os._exit(0)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        deaths.append(os.read(reading, 100).decode())
        os.close(reading)
        if (status == 0) is not (at == 0):
            sys.exit(f"life {at} {kind} ended with {status} before {deaths[-1]!r}")
    sys.stdout.write(json.dumps(deaths[:-1]) + "\n")


if __name__ == "__main__":
    main()
