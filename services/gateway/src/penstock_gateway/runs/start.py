"""Starting runs: from parameters to one fact in the log, at most once per run id."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import TypeAdapter

from penstock import clock
from penstock.bus.capacity import LogCapacity
from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorDetail, RejectedError, TransientError
from penstock.contracts.facts import ChatMessage, Record, RunInvoked, fact_bytes
from penstock.contracts.ids import run_id_from, shard_of
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.versions import accepted_input, routed
from penstock.failpoints import reach
from penstock.runs.start import StartParams
from penstock_gateway.core.conversation import continued
from penstock_gateway.definitions.mirrors import Mirror
from penstock_gateway.metrics import RUNS_REPLAYED, RUNS_STARTED
from penstock_gateway.runs.read import NOT_FOUND, Runs

_RECONNECT_SECONDS: Final = 2.0
_RECONNECT_CHECKS: Final = 20


class SessionPointer(Record):
    """Value of bucket ``sessions``: the latest run of a session."""

    run_id: str


SESSION_POINTER: Final[TypeAdapter[SessionPointer]] = TypeAdapter(SessionPointer)


@dataclass(frozen=True, slots=True)
class Started:
    """A run in the log; ``replayed``: an earlier request with the same key stored it."""

    run_id: str
    subject: str
    seq: int
    invoked: RunInvoked
    replayed: bool = False


class Starter:
    """Starts runs of any tenant."""

    def __init__(
        self,
        bus: Bus,
        writer: LogWriter,
        reader: LogReader,
        published: Mirror[PublishedVersion],
        runs: Runs,
        capacity: LogCapacity,
        *,
        shards: int,
        history_messages: int,
    ) -> None:
        """Use the process's parts.

        Args:
            bus: The connection.
            writer: Appends the fact.
            reader: Reads the fact of an earlier request with the same key.
            published: The published versions.
            runs: Reads the run before in a session.
            capacity: Refuses runs while the log is full; ``None``: the log has no limit.
            shards: Number of shards of the installation.
            history_messages: Messages of a session that its next run is given.
        """
        self._bus = bus
        self._writer = writer
        self._reader = reader
        self._published = published
        self._runs = runs
        self._capacity = capacity
        self._shards = shards
        self._history_messages = history_messages
        self._sessions = Bucket(bus, subjects.SESSIONS)

    async def version_of(self, params: StartParams) -> PublishedVersion:
        """Return the published version of a name and selector.

        Raises:
            RejectedError: ``unknown_name``, ``unknown_version``.
            TransientError: The bus did not answer.
        """
        tenant, name, selector = params.tenant, params.name, params.selector
        if selector is None:
            key = subjects.published_key(tenant, name)
        else:
            key = subjects.published_version_key(tenant, name, selector)
        version = self._published.values.get(key)
        if version is None:
            # It may have been published a moment ago.
            version = await self._published.refresh(key)
        if version is None or params.kind not in (None, version.kind):
            raise _unknown_name(params) if selector is None else _unknown_version(params)
        return version

    async def executed_version(self, params: StartParams) -> PublishedVersion:
        """Return the version that a run executes: the canary for its share of the runs.

        Raises:
            RejectedError: ``unknown_name``, ``unknown_version``.
            TransientError: The bus did not answer.
        """
        version = await self.version_of(params)
        return version if version.canary is None else routed(version, params.run_id)

    async def start(self, params: StartParams, version: PublishedVersion | None = None) -> Started:
        """Append the first fact of a run; return when it is stored.

        Args:
            params: Parameters of the run.
            version: The result of ``executed_version``, where the caller has it.

        Raises:
            RejectedError: ``unknown_name``, ``unknown_version``, ``invalid_input``, or
                ``idempotency_key_reused``: the same key came with another request.
            TransientError: ``bus_unavailable``, or the log did not answer.
        """
        run_id = params.run_id
        if version is None:
            version = await self.executed_version(params)
        if version.input_schema is not None:
            # In a thread: the first check imports its library, and a schema may take its time.
            given = await asyncio.to_thread(accepted_input, version, params.input)
            params = replace(params, input=given)
        history = await self._history(params) if params.session_id is not None else ()
        invoked = params.invoked(version, clock.now(), history)
        started = await self.append(params.tenant, run_id, invoked, params.traceparent)
        if params.session_id is not None and not started.replayed:
            await self._sessions.put(
                subjects.session_key(params.tenant, params.session_id),
                SESSION_POINTER.dump_json(SessionPointer(run_id=run_id)),
            )
        return started

    async def append(
        self, tenant: str, run_id: str, invoked: RunInvoked, traceparent: str | None = None
    ) -> Started:
        """Append the first fact of a run; the log refuses it if the run exists.

        Args:
            tenant: Tenant of the run.
            run_id: The run.
            invoked: Its first fact.
            traceparent: The span that the run continues.

        Raises:
            RejectedError: ``idempotency_key_reused``.
            TransientError: ``log_full``, ``bus_unavailable``, ``start_unclear``, or the log did
                not answer.
        """
        subject = subjects.invoke(
            subjects.run_prefix(tenant, shard_of(run_id, self._shards), run_id)
        )
        if not self._bus.nc.is_connected:
            await self._reconnected()
        if (refusal := await self._capacity.refusal()) is not None:
            stored = await self.earlier(tenant, run_id, invoked.request_digest)
            if stored is not None:
                return stored
            raise refusal
        headers = None if traceparent is None else {"traceparent": traceparent}
        reach("gateway.before_invoke")
        try:
            seq = await self._writer.append(subject, fact_bytes(invoked), headers=headers)
            reach("gateway.invoke_stored")
        except ConflictError:
            earlier = await self.earlier(tenant, run_id, invoked.request_digest)
            if earlier is None:
                raise TransientError(
                    "start_unclear",
                    f"could not confirm that run {run_id} was started; retry with the same key",
                ) from None
            return earlier
        RUNS_STARTED.inc()
        return Started(run_id, subject, seq, invoked)

    async def earlier(self, tenant: str, run_id: str, digest: str | None) -> Started | None:
        """Return the run that an earlier request with the same key started, if there is one.

        Args:
            tenant: Tenant of the run.
            run_id: The id that the key stands for.
            digest: Digest of the request.

        Raises:
            RejectedError: ``idempotency_key_reused``.
            TransientError: The log did not answer.
        """
        subject = subjects.invoke(
            subjects.run_prefix(tenant, shard_of(run_id, self._shards), run_id)
        )
        entry = await self._reader.read_fact(subject)
        if entry is None or not isinstance(entry.fact, RunInvoked):
            return None
        if entry.fact.request_digest != digest:
            detail = ErrorDetail(
                path="Idempotency-Key",
                message="used before with another body",
                allowed="the same body, or a new key",
            )
            raise RejectedError(
                "idempotency_key_reused",
                f"the same key started run {run_id} with another request",
                details=(detail,),
            )
        RUNS_REPLAYED.inc()
        return Started(run_id, subject, entry.seq, entry.fact, replayed=True)

    async def _reconnected(self) -> None:
        """Give a connection that was just lost a moment to come back."""
        for _ in range(_RECONNECT_CHECKS):
            await asyncio.sleep(_RECONNECT_SECONDS / _RECONNECT_CHECKS)
            if self._bus.nc.is_connected:
                return
        raise TransientError("bus_unavailable", "the bus cannot be reached; nothing was started")

    async def _history(self, params: StartParams) -> Sequence[ChatMessage]:
        if params.session_id is None or self._history_messages == 0:
            return ()
        pointer = await self._sessions.get(subjects.session_key(params.tenant, params.session_id))
        if pointer is None:
            return ()
        previous = SESSION_POINTER.validate_json(pointer.value).run_id
        try:
            state = await self._runs.state(params.tenant, previous)
        except RejectedError as error:
            if error.code != NOT_FOUND:
                raise
            return ()
        return continued(state, self._history_messages)


def new_run_id() -> str:
    """Return a new, time-ordered run id; those of requests with a key are derived from it."""
    return run_id_from(time.time_ns() // 1_000_000, os.urandom(10))


def _unknown_name(params: StartParams) -> RejectedError:
    kind = params.kind.value if params.kind is not None else "agent or workflow"
    detail = ErrorDetail(path=params.path, message="not published", allowed=f"a published {kind}")
    return RejectedError(
        "unknown_name", f"no {kind} named {params.name} is published", details=(detail,)
    )


def _unknown_version(params: StartParams) -> RejectedError:
    detail = ErrorDetail(
        path=params.path,
        message=f"no version or alias {params.selector!r}",
        allowed="name, name@version or name@alias of a published definition",
    )
    return RejectedError(
        "unknown_version",
        f"{params.name} has no version or alias {params.selector}",
        details=(detail,),
    )
