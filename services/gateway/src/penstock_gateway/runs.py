"""Reading runs: the log first, its leader where a replica lags, the archive after retention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, RejectedError, TransientError
from penstock.contracts.facts import RunInvoked
from penstock.contracts.ids import is_run_id, shard_of
from penstock.contracts.state import Entry, RunState, fold, new_state
from penstock.contracts.views import RunView, run_view
from penstock_gateway.archive import Archive

NOT_FOUND: Final = "run_not_found"
READ_REFUSED: Final = "read_refused"


def not_found(run_id: str) -> RejectedError:
    """Return the error of a run that does not exist in the caller's tenant."""
    return RejectedError(NOT_FOUND, f"there is no run {run_id[:64]}")


@contextmanager
def available() -> Iterator[None]:
    """Take a refused read for one that may work later.

    A server that was just started answers so for streams that it has not loaded yet.

    Raises:
        TransientError: ``read_refused``.
    """
    try:
        yield
    except InvariantError as error:
        if error.code != READ_REFUSED:
            raise
        raise TransientError(READ_REFUSED, error.message) from error


class Runs:
    """Reads single runs of any tenant."""

    def __init__(self, bus: Bus, reader: LogReader, archive: Archive, shards: int) -> None:
        """Use the process's connection, reader and archive.

        Args:
            bus: The connection.
            reader: Reads the log.
            archive: Asked for what the log no longer holds.
            shards: Number of shards of the installation.
        """
        self._bus = bus
        self._reader = reader
        self._archive = archive
        self._shards = shards

    def prefix(self, tenant: str, run_id: str) -> str:
        """Return the stem of a run's subjects."""
        return subjects.run_prefix(tenant, shard_of(run_id, self._shards), run_id)

    async def entries(self, tenant: str, run_id: str, *, at_least_seq: int = 0) -> Sequence[Entry]:
        """Return all facts of a run, from its beginning.

        Args:
            tenant: The caller's tenant.
            run_id: The run.
            at_least_seq: A sequence that the read must have seen.

        Raises:
            RejectedError: ``run_not_found``, after the leader and the archive were asked.
            TransientError: The log or the archive did not answer.
        """
        if not is_run_id(run_id):
            raise not_found(run_id)
        shard = shard_of(run_id, self._shards)
        with available():
            entries = await self._reader.read_run(tenant, shard, run_id, at_least_seq=at_least_seq)
        if entries and isinstance(entries[0].fact, RunInvoked):
            return entries
        if any(isinstance(entry.fact, RunInvoked) for entry in entries):
            return entries
        invoked = await self._reader.read_fact(subjects.invoke(self.prefix(tenant, run_id)))
        if invoked is not None:
            # A replica that lags: the leader has the beginning, and what it had is younger.
            return [invoked, *(entry for entry in entries if entry.seq != invoked.seq)]
        archived = await self._archive.run_entries(tenant, run_id)
        if not archived:
            raise not_found(run_id)
        last = archived[-1].seq
        return [*archived, *(entry for entry in entries if entry.seq > last)]

    async def require(self, tenant: str, run_id: str) -> None:
        """Check that a run exists, as cheaply as that can be known; errors as for ``entries``."""
        if not is_run_id(run_id):
            raise not_found(run_id)
        subject = subjects.invoke(self.prefix(tenant, run_id))
        with available():
            page = await self._reader.get_many(subjects.RUNS, {"multi_last": [subject]})
        if not page.messages:
            await self.entries(tenant, run_id)

    async def state(self, tenant: str, run_id: str) -> RunState:
        """Return a run folded from its facts; errors as for ``entries``."""
        entries = await self.entries(tenant, run_id)
        return fold(new_state(tenant, shard_of(run_id, self._shards), run_id), entries)

    async def view(self, tenant: str, run_id: str) -> RunView:
        """Return a run as clients see it; errors as for ``entries``."""
        view = run_view(await self.state(tenant, run_id))
        if view is None:
            raise not_found(run_id)
        return view
