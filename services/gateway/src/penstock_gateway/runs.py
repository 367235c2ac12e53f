"""Reading runs: the log first, its leader where a replica lags, the archive after retention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorDetail, InvariantError, RejectedError, TransientError
from penstock.contracts.facts import RunInvoked
from penstock.contracts.ids import is_run_id, shard_of
from penstock.runs.state import Entry, RunState, fold, new_state
from penstock.runs.views import RunView, run_view
from penstock_gateway.archive import Archive
from penstock_gateway.plans import Plans

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

    def __init__(
        self, bus: Bus, reader: LogReader, archive: Archive, plans: Plans, shards: int
    ) -> None:
        """Use the process's connection, reader and archive.

        Args:
            bus: The connection.
            reader: Reads the log.
            archive: Asked for what the log no longer holds.
            plans: Knows the limits of definitions.
            shards: Number of shards of the installation.
        """
        self._bus = bus
        self._reader = reader
        self._archive = archive
        self._plans = plans
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

    async def state(
        self, tenant: str, run_id: str, *, at_seq: int | None = None, at_least_seq: int = 0
    ) -> RunState:
        """Return a run folded from its facts; errors as for ``entries``.

        Args:
            tenant: The caller's tenant.
            run_id: The run.
            at_seq: Fold up to this sequence, to see the run as it was then.
            at_least_seq: A sequence that the read must have seen.

        Raises:
            RejectedError: ``invalid_sequence``: the run did not exist then.
        """
        entries = await self.entries(tenant, run_id, at_least_seq=at_least_seq)
        if at_seq is not None:
            until = [entry for entry in entries if entry.seq <= at_seq]
            if not any(isinstance(entry.fact, RunInvoked) for entry in until):
                raise _before(run_id, at_seq, entries)
            entries = until
        return fold(new_state(tenant, shard_of(run_id, self._shards), run_id), entries)

    async def fresh_state(self, tenant: str, run_id: str) -> RunState:
        """Return a run with all that the stream's leader has of it; errors as for ``entries``."""
        wanted = subjects.run_filter(tenant, shard_of(run_id, self._shards), run_id)
        last = await self._reader.read_message(subjects.RUNS, wanted)
        return await self.state(tenant, run_id, at_least_seq=last.seq if last is not None else 0)

    async def view(
        self, tenant: str, run_id: str, *, at_seq: int | None = None, node_records: bool = False
    ) -> RunView:
        """Return a run as clients see it; arguments and errors as for ``state``.

        Args:
            tenant: The caller's tenant.
            run_id: The run.
            at_seq: Fold up to this sequence.
            node_records: Whether all node records are wanted.
        """
        return await self.view_of(
            await self.state(tenant, run_id, at_seq=at_seq), node_records=node_records
        )

    async def view_of(self, state: RunState, *, node_records: bool = False) -> RunView:
        """Return a run whose facts were read as clients see it.

        Raises:
            RejectedError: ``run_not_found``: it was never asked for.
            TransientError: The bus did not answer.
        """
        planned = None
        if state.invoked is not None:
            planned = (await self._plans.gist(state.invoked.plan_digest)).limits
        view = run_view(state, node_records=node_records, planned=planned)
        if view is None:
            raise not_found(state.run_id)
        return view


def _before(run_id: str, at_seq: int, entries: Sequence[Entry]) -> RejectedError:
    first = next(entry.seq for entry in entries if isinstance(entry.fact, RunInvoked))
    return RejectedError(
        "invalid_sequence",
        f"run {run_id} did not exist at sequence {at_seq}",
        details=(
            ErrorDetail(
                path="at_seq", message=f"got {at_seq}", allowed=f"{first} to {entries[-1].seq}"
            ),
        ),
    )
