"""What only the archive knows: lists of runs, sessions, and runs that have left the log."""

from __future__ import annotations

from typing import Final, TypeVar

from pydantic import BaseModel

from penstock import rpc
from penstock.bus.connection import Bus
from penstock.bus.reader import Stored
from penstock.contracts.archive import FactPage, RunFacts
from penstock.contracts.errors import RejectedError

ReplyT = TypeVar("ReplyT", bound=BaseModel)

RUN_NOT_FOUND: Final = "run_not_found"


class Archive:
    """The archive's verbs over the bus."""

    def __init__(self, bus: Bus) -> None:
        """Use the process's connection."""
        self._bus = bus

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

    async def run_facts(self, tenant: str, run_id: str, *, after_seq: int = 0) -> list[Stored]:
        """Return the archived facts of a run after a sequence, in order; none if it has no run.

        Raises:
            TransientError: The archive did not answer.
        """
        found: list[Stored] = []
        after: int | None = after_seq
        while after is not None:
            request = RunFacts(tenant=tenant, run_id=run_id, after=after)
            try:
                page = await self.ask("run_facts", request, FactPage)
            except RejectedError as error:
                if error.code != RUN_NOT_FOUND:
                    raise
                return []
            found += [Stored(item.seq, item.subject, item.body.encode()) for item in page.items]
            after = page.next_after
        return found
