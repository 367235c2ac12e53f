"""What only the archive knows: lists of runs, sessions, and runs that have left the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from pydantic import BaseModel

from penstock import rpc
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts.archive import FactPage, RunFacts
from penstock.contracts.errors import RejectedError
from penstock.runs.state import Entry

ReplyT = TypeVar("ReplyT", bound=BaseModel)

RUN_NOT_FOUND: Final = "run_not_found"


class Archive:
    """The archive's verbs over the bus."""

    def __init__(self, bus: Bus, reader: LogReader) -> None:
        """Use the process's connection, and its reader for bodies that are claims."""
        self._bus = bus
        self._reader = reader

    async def ask(
        self,
        verb: str,
        request: BaseModel,
        reply: type[ReplyT],
        *,
        timeout_seconds: float = rpc.TIMEOUT_SECONDS,
    ) -> ReplyT:
        """Ask the archive.

        Raises:
            PenstockError: What it answered.
            TransientError: It did not answer.
        """
        return await rpc.call(
            self._bus, "archive", verb, request, reply, timeout_seconds=timeout_seconds
        )

    async def run_entries(self, tenant: str, run_id: str) -> Sequence[Entry]:
        """Return the facts of a run that has left the log; empty where there is none.

        Raises:
            TransientError: The archive did not answer.
        """
        entries: list[Entry] = []
        after: int | None = 0
        while after is not None:
            request = RunFacts(tenant=tenant, run_id=run_id, after=after)
            try:
                page = await self.ask("run_facts", request, FactPage)
            except RejectedError as error:
                if error.code != RUN_NOT_FOUND:
                    raise
                return ()
            entries += [
                await self._reader.decode(item.subject, item.seq, item.body.encode())
                for item in page.items
            ]
            after = page.next_after
        return entries
