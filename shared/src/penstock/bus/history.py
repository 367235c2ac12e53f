"""Runs whose beginning the log has lost, for example by a purge: the archive has it.

An engine that folds such a run reads the lost facts from the archive, except for a run that is
too young to have lost any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from penstock import clock, rpc
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts.archive import FactPage, RunFacts
from penstock.contracts.errors import RejectedError, TransientError
from penstock.contracts.facts import RunInvoked
from penstock.contracts.ids import run_id_millis
from penstock.runs.state import Entry

KEPT_SECONDS: Final = 6 * 86_400
"""Age of a run from which the archive is asked; below seven days, because clocks may disagree."""
AGAIN_SECONDS: Final = 30.0
"""Retries that wait for the archive are far apart: the bus gives a message up after twenty."""


class HistoryReader(LogReader):
    """A ``LogReader`` that asks the archive for the beginnings of old runs."""

    def __init__(self, bus: Bus, claims: Claims) -> None:
        """Create a reader; it subscribes its inbox on first use."""
        super().__init__(bus, claims)
        self._connection = bus

    async def read_run(
        self, tenant: str, shard: int, run_id: str, *, after_seq: int = 0, at_least_seq: int = 0
    ) -> list[Entry]:
        """Return a run's facts in order; arguments and errors as for ``LogReader.read_run``.

        Raises:
            TransientError: ``archive_needed``: the log has lost the beginning, and the archive
                does not answer.
        """
        entries = await super().read_run(
            tenant, shard, run_id, after_seq=after_seq, at_least_seq=at_least_seq
        )
        if after_seq or is_young(run_id, clock.epoch()):
            return entries
        if any(isinstance(entry.fact, RunInvoked) for entry in entries):
            return entries
        archived = await self._archived(tenant, run_id)
        if not archived:
            return entries
        known = {entry.subject for entry in archived}
        return [*archived, *(entry for entry in entries if entry.subject not in known)]

    async def _archived(self, tenant: str, run_id: str) -> Sequence[Entry]:
        entries: list[Entry] = []
        after: int | None = 0
        while after is not None:
            request = RunFacts(tenant=tenant, run_id=run_id, after=after)
            try:
                page = await rpc.call(self._connection, "archive", "run_facts", request, FactPage)
            except (TransientError, RejectedError) as error:
                raise TransientError(
                    "archive_needed",
                    f"run {run_id} is older than the log, and the archive does not answer: {error}",
                    retry_after_seconds=AGAIN_SECONDS,
                ) from error
            entries += [
                await self.decode(item.subject, item.seq, item.body.encode()) for item in page.items
            ]
            after = page.next_after
        return entries


def is_young(run_id: str, now: float) -> bool:
    """Return whether the log must still have all of a run, by the time in its id.

    An id derived from a key holds no time: the time read from it lies, but for one in two
    million, outside of the days in question, and the run does not count as young.
    """
    age = now - run_id_millis(run_id) / 1000
    return -KEPT_SECONDS < age < KEPT_SECONDS
