"""Reading runs: the log first, its leader where a replica lags, the archive after retention."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader, Stored, read_entries
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, RejectedError, TransientError, finding
from penstock.contracts.facts import RunEnded, RunInvoked
from penstock.contracts.ids import is_run_id, shard_of
from penstock.contracts.runners import RunnerRecord
from penstock.runs.state import Entry, RunState, fold, new_state
from penstock.runs.views import RunView, StepWindow, run_view
from penstock_gateway.archive.requests import Archive
from penstock_gateway.core.activity import served_pools, unserved_steps, with_activity
from penstock_gateway.core.preferences import STEPS_SHOWN
from penstock_gateway.runs.plans import Plans

NOT_FOUND: Final = "run_not_found"
READ_REFUSED: Final = "read_refused"
MANY_FACTS: Final = 1000
_KEPT: Final = 4
FIRST_STEPS: Final = StepWindow(STEPS_SHOWN)

T = TypeVar("T")


def not_found(run_id: str) -> RejectedError:
    """Return the error of a run that does not exist in the caller's tenant."""
    return RejectedError(NOT_FOUND, f"there is no run {run_id[:64]}")


@contextmanager
def available() -> Iterator[None]:
    """Treat a refused read as transient.

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


async def aside(facts: int, work: Callable[[], T]) -> T:
    """Do work on facts; for many facts in a thread, so that other requests are served meanwhile."""
    return await asyncio.to_thread(work) if facts > MANY_FACTS else work()


class Runs:
    """Reads single runs of any tenant."""

    def __init__(
        self,
        bus: Bus,
        reader: LogReader,
        archive: Archive,
        plans: Plans,
        runners: Mapping[str, RunnerRecord],
        shards: int,
    ) -> None:
        """Use the process's connection, reader and archive.

        Args:
            bus: The connection.
            reader: Reads the log.
            archive: Asked for what the log no longer holds.
            plans: Knows the limits of definitions.
            runners: The live runners.
            shards: Number of shards of the installation.
        """
        self._bus = bus
        self._reader = reader
        self._archive = archive
        self._plans = plans
        self._runners = runners
        self._shards = shards
        self._large: OrderedDict[str, RunState] = OrderedDict()
        """Large runs as last read: to read one again costs its new facts only."""

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
            stored = await self._reader.stored(tenant, shard, run_id, at_least_seq=at_least_seq)
            entries = await self._read(stored)
        if entries and isinstance(entries[0].fact, RunInvoked):
            return entries
        if any(isinstance(entry.fact, RunInvoked) for entry in entries):
            return entries
        invoked = await self._reader.read_fact(subjects.invoke(self.prefix(tenant, run_id)))
        if invoked is not None:
            # A replica that lags: the leader has the beginning, and what it had is younger.
            return [invoked, *(entry for entry in entries if entry.seq != invoked.seq)]
        archived = await self._read(await self._archive.run_facts(tenant, run_id))
        if not archived:
            raise not_found(run_id)
        last = archived[-1].seq
        return [*archived, *(entry for entry in entries if entry.seq > last)]

    async def _read(self, stored: list[Stored]) -> list[Entry]:
        stored = await self._reader.unpacked(stored)
        return await aside(len(stored), partial(read_entries, stored))

    async def entries_after(self, tenant: str, run_id: str, seq: int) -> AsyncGenerator[Entry]:
        """Yield the facts of a run after a sequence up to its end, read from the log page by page.

        Late outcomes are in the log after the end; they are left out.

        Args:
            tenant: The caller's tenant.
            run_id: The run.
            seq: Leave out facts up to this sequence.

        Raises:
            RejectedError: ``run_not_found``.
            TransientError: The log or the archive did not answer.
        """
        end_seq = await self._end_in_log(tenant, run_id) if is_run_id(run_id) else None
        if end_seq is None:
            for entry in await self.entries(tenant, run_id):
                if entry.seq > seq:
                    yield entry
                if isinstance(entry.fact, RunEnded):
                    return
            return
        if 0 < end_seq <= seq:
            return
        subject_filter = subjects.run_filter(tenant, shard_of(run_id, self._shards), run_id)
        with available():
            async for page in self._reader.pages(subjects.RUNS, subject_filter, after_seq=seq):
                for entry in read_entries(await self._reader.unpacked(page)):
                    yield entry
                    if isinstance(entry.fact, RunEnded):
                        return

    async def require(self, tenant: str, run_id: str) -> int:
        """Return the sequence of a run's end, 0 if it is open; errors as for ``entries``.

        As cheaply as it can be known that the run exists.
        """
        if not is_run_id(run_id):
            raise not_found(run_id)
        end = await self._end_in_log(tenant, run_id)
        if end is None:
            last = (await self.entries(tenant, run_id))[-1]
            end = last.seq if isinstance(last.fact, RunEnded) else 0
        return end

    async def _in_log(self, tenant: str, run_id: str) -> bool:
        return await self._end_in_log(tenant, run_id) is not None

    async def _end_in_log(self, tenant: str, run_id: str) -> int | None:
        """Return the sequence of a run's end, 0 if it is open; ``None``: it is not in the log."""
        prefix = self.prefix(tenant, run_id)
        wanted = [subjects.invoke(prefix), subjects.ends_filter(prefix)]
        with available():
            page = await self._reader.get_many(subjects.RUNS, {"multi_last": wanted})
        found = {message.subject.endswith(".end"): message.seq for message in page.messages}
        return found.get(True, 0) if False in found else None

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
        if at_seq is None and (known := await self._known(tenant, run_id, at_least_seq)):
            return known
        entries = await self.entries(tenant, run_id, at_least_seq=at_least_seq)
        if at_seq is not None:
            until = [entry for entry in entries if entry.seq <= at_seq]
            if not any(isinstance(entry.fact, RunInvoked) for entry in until):
                raise _before(run_id, at_seq, entries)
            entries = until
        state = new_state(tenant, shard_of(run_id, self._shards), run_id)
        state = await aside(len(entries), partial(fold, state, entries))
        if at_seq is None and len(entries) > MANY_FACTS:
            self._keep(state)
        return state

    async def _known(self, tenant: str, run_id: str, at_least_seq: int) -> RunState | None:
        """Return a large run by its kept state and the facts since then, if it still exists."""
        kept = self._large.get(run_id)
        if kept is None or kept.tenant != tenant:
            return None
        archived: list[Stored] = []
        if not await self._in_log(tenant, run_id):
            last, *archived = await self._archive.run_facts(
                tenant, run_id, after_seq=kept.last_seq - 1
            ) or (None,)
            if last is None or last.seq != kept.last_seq:
                # Deleted, or the archive has not read its latest facts yet.
                self._large.pop(run_id, None)
                return None
        after = archived[-1].seq if archived else kept.last_seq
        with available():
            stored = await self._reader.stored(
                tenant, kept.shard, run_id, after_seq=after, at_least_seq=at_least_seq
            )
        newer = await self._read(archived + stored)
        state = await aside(len(newer), partial(fold, kept, newer))
        self._keep(state)
        return state

    def _keep(self, state: RunState) -> None:
        self._large[state.run_id] = state
        self._large.move_to_end(state.run_id)
        if len(self._large) > _KEPT:
            self._large.popitem(last=False)

    async def fresh_state(self, tenant: str, run_id: str) -> RunState:
        """Return a run with all that the stream's leader has of it; errors as for ``entries``."""
        subject_filter = subjects.run_filter(tenant, shard_of(run_id, self._shards), run_id)
        last = await self._reader.read_message(subjects.RUNS, subject_filter)
        return await self.state(tenant, run_id, at_least_seq=last.seq if last is not None else 0)

    async def view(self, tenant: str, run_id: str) -> RunView:
        """Return a run as clients see it, with its first steps; errors as for ``state``."""
        return await self.view_of(await self.state(tenant, run_id))

    async def view_of(
        self,
        state: RunState,
        *,
        node_records: bool = False,
        window: StepWindow = FIRST_STEPS,
        past: bool = False,
    ) -> RunView:
        """Return a run whose facts were read as clients see it.

        Args:
            state: The run.
            node_records: Whether all node records are wanted.
            window: The page of steps.
            past: Whether the state is not the latest one, so that runners cannot know its steps.

        Raises:
            RejectedError: ``run_not_found``: it was never asked for.
            TransientError: The bus did not answer.
        """
        planned = None
        if state.invoked is not None:
            planned = (await self._plans.gist(state.invoked.plan_digest)).limits
        view = run_view(state, node_records=node_records, planned=planned, window=window)
        if view is None:
            raise not_found(state.run_id)
        return view if past else with_activity(view, self._runners.values())

    async def unserved(self, tenant: str, run_id: str, pools: Collection[str]) -> Counter[str]:
        """Return the number of a run's steps by pool, for pools that no runner serves.

        Args:
            tenant: The caller's tenant.
            run_id: The run; it is read only if one of ``pools`` is not served.
            pools: Pools of its open steps.

        Raises:
            TransientError: The log or the archive did not answer.
        """
        if served_pools(self._runners.values()).issuperset(pools):
            return Counter()
        return unserved_steps(await self.view(tenant, run_id))


def _before(run_id: str, at_seq: int, entries: Sequence[Entry]) -> RejectedError:
    first = next(entry.seq for entry in entries if isinstance(entry.fact, RunInvoked))
    return RejectedError(
        "invalid_sequence",
        f"run {run_id} did not exist at sequence {at_seq}",
        details=(finding("at_seq", f"got {at_seq}", f"{first} to {entries[-1].seq}"),),
    )
