"""Pending requests of runs, from the bucket ``pending``, read on demand.

A copy in the memory of every gateway would cost as much as all that waits anywhere, to answer a
question that is rarely asked; one read costs a request for each thousand entries. The bucket is
an index, a moment late: what counts is the run's log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from penstock.bus.reader import LogReader, Stored
from penstock.contracts import subjects
from penstock.contracts.pending import PendingRecord, correlation_hash
from penstock.telemetry.logs import EventLog
from penstock_gateway.runs.read import available

_RECORD: Final[TypeAdapter[PendingRecord]] = TypeAdapter(PendingRecord)
_STREAM: Final = subjects.bucket_stream(subjects.PENDING)
_MARKERS: Final = ("KV-Operation", "Nats-Marker-Reason")

log = EventLog(__name__)


class Pending(NamedTuple):
    """One thing that is asked, and its place among all: the bucket's revision."""

    revision: int
    record: PendingRecord


class PendingIndex:
    """Reads the bucket ``pending``."""

    def __init__(self, reader: LogReader) -> None:
        """Use the process's reader, which reads any stream."""
        self._reader = reader

    async def requests(
        self, tenant: str, *, run_id: str = "*", after: int = 0
    ) -> AsyncIterator[Pending]:
        """Yield the pending requests of a tenant, the oldest first.

        Args:
            tenant: The caller's tenant.
            run_id: Of this run only.
            after: Leave out entries up to this revision.

        Raises:
            TransientError: The bus did not answer.
        """
        subject_filter = subjects.bucket_subject(
            subjects.PENDING, subjects.pending_filter(tenant, run_id)
        )
        with available():
            async for page in self._reader.pages(_STREAM, subject_filter, after_seq=after):
                for stored in page:
                    record = _read(stored)
                    if record is not None:
                        yield Pending(stored.seq, record)

    async def waiting(self, tenant: str, correlation: str) -> list[str]:
        """Return the runs that events with a correlation key are for.

        Raises:
            TransientError: The bus did not answer.
        """
        key = subjects.correlation_filter(tenant, correlation_hash(correlation))
        subject_filter = subjects.bucket_subject(subjects.PENDING, key)
        found: list[str] = []
        with available():
            async for page in self._reader.pages(_STREAM, subject_filter):
                found += [
                    stored.subject.rpartition(".")[2] for stored in page if not _is_marker(stored)
                ]
        return found


def _is_marker(stored: Stored) -> bool:
    return any(name in stored.headers for name in _MARKERS)


def _read(stored: Stored) -> PendingRecord | None:
    if _is_marker(stored):
        return None
    try:
        return _RECORD.validate_json(stored.body)
    except ValidationError:
        log.exception("pending.unreadable", subject=stored.subject)
        return None
