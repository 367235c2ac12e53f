"""What runs have left on the bus: messages, objects, timers, dead letters. Found, and removed.

Everything here may be repeated: deleting an absent message is no error.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable
from typing import Final

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError, ObjectNotFoundError

from penstock.bus.claims import CLAIM_MARK
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError
from penstock.contracts.messages import Claim, DeadLetter
from penstock.contracts.structs import decode

_NOT_FOUND: Final = 404
_NO_MESSAGE: Final = 10043
"""The server's code where a message to delete is not there."""
_PURGE_SECONDS: Final = 60.0
_OBJECTS: Final = f"OBJ_{subjects.ARTIFACTS}"


class Traces:
    """Removes from streams, buckets and the object store what belongs to runs."""

    def __init__(self, bus: Bus, reader: LogReader) -> None:
        """Use the process's connection and reader."""
        self._bus = bus
        self._reader = reader

    async def claims_in(self, subject_filter: str) -> set[str]:
        """Return the digests of the large bodies that messages of the log claim."""
        found: set[str] = set()
        async for page in self._reader.pages(subjects.RUNS, subject_filter):
            found.update(
                decode(Claim, message.body).sha256
                for message in page
                if message.body.startswith(CLAIM_MARK)
            )
        return found

    async def forget_objects(self, digests: Iterable[str]) -> int:
        """Remove objects with all their pieces; return how many there were.

        Raises:
            TransientError: ``objects_unavailable``.
        """
        count = 0
        try:
            store = await self._bus.nc.jetstream(timeout=10).object_store(subjects.ARTIFACTS)
            for digest in digests:
                try:
                    info = await store.get_info(digest, show_deleted=True)
                except (NotFoundError, ObjectNotFoundError):
                    continue
                name = base64.urlsafe_b64encode(digest.encode()).decode()
                for subject in subjects.object_subjects(info.nuid or "", name):
                    await self._purge(_OBJECTS, subject)
                count += 1
        except NatsError as error:
            raise TransientError("objects_unavailable", repr(error)) from error
        return count

    async def forget_run(self, tenant: str, shard: int, run_id: str, *, until_seq: int) -> None:
        """Remove a run's pieces of text, timers, and its facts up to ``until_seq``."""
        await self._purge(subjects.DELTAS, subjects.delta_filter(tenant, shard, run_id))
        await self._purge(subjects.TIMERS, subjects.timer_filter(tenant, shard, run_id))
        await self.forget_facts(subjects.run_filter(tenant, shard, run_id), until_seq=until_seq)

    async def forget_tenant(self, tenant: str, *, until_seq: int) -> None:
        """Remove the same of all runs of a tenant, and where its sessions stand."""
        await self._purge(subjects.DELTAS, subjects.tenant_delta_filter(tenant))
        await self._purge(subjects.TIMERS, subjects.tenant_timer_filter(tenant))
        key = subjects.session_key(tenant, ">")
        await self._purge(
            f"KV_{subjects.SESSIONS}", subjects.bucket_subject(subjects.SESSIONS, key)
        )
        await self.forget_facts(subjects.tenant_filter(tenant), until_seq=until_seq)

    async def forget_facts(self, subject_filter: str, *, until_seq: int) -> None:
        """Remove messages of the log up to a sequence."""
        await self._purge(subjects.RUNS, subject_filter, until_seq=until_seq)

    async def forget_session(self, tenant: str, session_id: str, runs: Collection[str]) -> None:
        """Remove where a session stands, if that is at one of these runs."""
        bucket = Bucket(self._bus, subjects.SESSIONS)
        key = subjects.session_key(tenant, session_id)
        pointer = await bucket.get(key)
        if pointer is not None and any(run_id.encode() in pointer.value for run_id in runs):
            await bucket.delete(key)

    async def forget_letters(self, tenant: str, runs: Collection[str] | None) -> int:
        """Remove dead letters of runs, or of all of a tenant (``None``); return how many."""
        count = 0
        async for page in self._reader.pages(subjects.DEAD, subjects.DEAD_SPACE):
            for message in page:
                try:
                    about = decode(DeadLetter, message.body).subject.split(".")
                except ValueError:
                    continue
                skip = 2 if about[0] == "timer" else 1
                if about[skip : skip + 1] != [tenant]:
                    continue
                if runs is None or set(about[skip + 2 : skip + 3]) & set(runs):
                    await self._delete(subjects.DEAD, message.seq)
                    count += 1
        return count

    async def _purge(
        self, stream: str, subject_filter: str, *, until_seq: int | None = None
    ) -> None:
        request: dict[str, str | int] = {"filter": subject_filter}
        if until_seq is not None:
            request["seq"] = until_seq + 1
        try:
            await self._bus.api(f"STREAM.PURGE.{stream}", request, timeout_seconds=_PURGE_SECONDS)
        except JetStreamError as error:
            if error.code != _NOT_FOUND:
                raise TransientError("log_unavailable", str(error)) from error

    async def _delete(self, stream: str, seq: int) -> None:
        try:
            await self._bus.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq})
        except JetStreamError as error:
            if error.code != _NOT_FOUND and error.err_code not in (_NO_MESSAGE, 10057):
                raise TransientError("log_unavailable", str(error)) from error
