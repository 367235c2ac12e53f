"""Starting runs: from a name and an input to one fact in the log, once only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pydantic import JsonValue, TypeAdapter

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, ErrorDetail, RejectedError, TransientError
from penstock.contracts.facts import (
    ChatMessage,
    DefinitionKind,
    Record,
    RunInvoked,
    RunLimits,
    Trigger,
    fact_bytes,
)
from penstock.contracts.ids import shard_of
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.versions import check_input, routed
from penstock.failpoints import reach
from penstock.runids import new_run_id
from penstock_gateway.core.conversation import continued
from penstock_gateway.metrics import RUNS_REPLAYED, RUNS_STARTED
from penstock_gateway.mirrors import Mirror
from penstock_gateway.runs import NOT_FOUND, Runs

_NO_LIMITS: Final = RunLimits()
_RECONNECT_SECONDS: Final = 2.0
_RECONNECT_CHECKS: Final = 20


class SessionPointer(Record):
    """Value of bucket ``sessions``: the latest run of a session."""

    run_id: str


SESSION_POINTER: Final[TypeAdapter[SessionPointer]] = TypeAdapter(SessionPointer)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a run is asked for. ``run_id`` is given where it derives from a key."""

    tenant: str
    name: str
    input: JsonValue
    trigger: Trigger = Trigger.HTTP
    kind: DefinitionKind | None = None
    session_id: str | None = None
    limits: RunLimits = _NO_LIMITS
    tags: dict[str, str] | None = None
    run_id: str | None = None
    request_digest: str | None = None
    requested_by: str | None = None
    traceparent: str | None = None
    path: str = "name"
    """Where in the request the name stood."""
    selector: str | None = None
    """A version or an alias; ``None``: what is in force."""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """A run that is in the log, by this request or (``replayed``) an earlier one like it."""

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
        *,
        shards: int,
        history_messages: int,
    ) -> None:
        """Use the process's parts.

        Args:
            bus: The connection.
            writer: Appends the fact.
            reader: Reads what an earlier request has stated.
            published: The versions in force.
            runs: Reads the run before in a session.
            shards: Number of shards of the installation.
            history_messages: Messages of a session that its next run is given.
        """
        self._bus = bus
        self._writer = writer
        self._reader = reader
        self._published = published
        self._runs = runs
        self._shards = shards
        self._history_messages = history_messages
        self._sessions = Bucket(bus, subjects.SESSIONS)

    async def version_of(self, ask: Ask) -> PublishedVersion:
        """Return the version in force, or the one that is selected.

        Raises:
            RejectedError: ``unknown_name``, ``unknown_version``.
        """
        if ask.selector is not None:
            return await self._selected(ask, ask.selector)
        key = subjects.published_key(ask.tenant, ask.name)
        version = self._published.values.get(key)
        if version is None:
            # It may have come into force a moment ago.
            version = await self._published.refresh(key)
        if version is None or (ask.kind is not None and version.kind is not ask.kind):
            kind = ask.kind.value if ask.kind is not None else "agent or workflow"
            raise RejectedError(
                "unknown_name",
                f"no {kind} named {ask.name} is published",
                details=(
                    ErrorDetail(
                        path=ask.path, message="not published", allowed=f"a published {kind}"
                    ),
                ),
            )
        return version

    async def _selected(self, ask: Ask, selector: str) -> PublishedVersion:
        key = subjects.published_version_key(ask.tenant, ask.name, selector)
        version = self._published.values.get(key)
        if version is None:
            version = await self._published.refresh(key)
        if version is None or (ask.kind is not None and version.kind is not ask.kind):
            raise RejectedError(
                "unknown_version",
                f"{ask.name} has no version or alias {selector}",
                details=(
                    ErrorDetail(
                        path=ask.path,
                        message=f"no version or alias {selector!r}",
                        allowed="name, name@version or name@alias of a published definition",
                    ),
                ),
            )
        return version

    async def start(self, ask: Ask, run_id: str | None = None) -> Started:
        """State that a run is asked for; return once that is acknowledged.

        Args:
            ask: What is asked for.
            run_id: Its id where the caller has made one already.

        Raises:
            RejectedError: ``unknown_name``, ``unknown_version``, ``invalid_input``, or
                ``idempotency_key_reused`` where the same key came with another request.
            TransientError: ``bus_unavailable``, or the log did not answer.
        """
        version = self._published.values.get(subjects.published_key(ask.tenant, ask.name))
        if version is None or ask.kind is not None or ask.selector is not None:
            version = await self.version_of(ask)
        run_id = run_id or ask.run_id or new_run_id()
        version = routed(version, run_id)
        if version.input_schema is not None:
            # In a thread: the first check imports its library, and a schema may take its time.
            await asyncio.to_thread(check_input, version, ask.input)
        subject = subjects.invoke(
            subjects.run_prefix(ask.tenant, shard_of(run_id, self._shards), run_id)
        )
        history = await self._history(ask) if ask.session_id is not None else ()
        invoked = RunInvoked(
            occurred_at=datetime.now(UTC),
            name=version.name,
            kind=version.kind,
            version=version.version,
            plan_digest=version.plan_digest,
            input=ask.input,
            session_id=ask.session_id,
            history=tuple(history),
            limits=ask.limits,
            trigger=ask.trigger,
            request_digest=ask.request_digest,
            requested_by=ask.requested_by,
            tags=ask.tags or {},
            priority=ask.priority,
        )
        if not self._bus.nc.is_connected:
            await self._reconnected()
        headers = None if ask.traceparent is None else {"traceparent": ask.traceparent}
        reach("gateway.before_invoke")
        try:
            seq = await self._writer.append(subject, fact_bytes(invoked), headers=headers)
            reach("gateway.invoke_stored")
        except ConflictError:
            return await self._earlier(ask, run_id, subject)
        if ask.session_id is not None:
            await self._sessions.put(
                subjects.session_key(ask.tenant, ask.session_id),
                SESSION_POINTER.dump_json(SessionPointer(run_id=run_id)),
            )
        RUNS_STARTED.inc()
        return Started(run_id, subject, seq, invoked)

    async def _reconnected(self) -> None:
        """Give a connection that was just lost a moment to come back."""
        for _ in range(_RECONNECT_CHECKS):
            await asyncio.sleep(_RECONNECT_SECONDS / _RECONNECT_CHECKS)
            if self._bus.nc.is_connected:
                return
        raise TransientError("bus_unavailable", "the bus cannot be reached; nothing was started")

    async def _earlier(self, ask: Ask, run_id: str, subject: str) -> Started:
        entry = await self._reader.read_fact(subject)
        if entry is None or not isinstance(entry.fact, RunInvoked):
            raise TransientError(
                "start_unclear", f"run {run_id} was refused as a duplicate and cannot be read"
            )
        if entry.fact.request_digest != ask.request_digest:
            raise RejectedError(
                "idempotency_key_reused",
                f"the same key started run {run_id} with another request",
                details=(
                    ErrorDetail(
                        path="Idempotency-Key",
                        message="used before with another body",
                        allowed="the same body, or a new key",
                    ),
                ),
            )
        RUNS_REPLAYED.inc()
        return Started(run_id, subject, entry.seq, entry.fact, replayed=True)

    async def _history(self, ask: Ask) -> Sequence[ChatMessage]:
        if ask.session_id is None or self._history_messages == 0:
            return ()
        pointer = await self._sessions.get(subjects.session_key(ask.tenant, ask.session_id))
        if pointer is None:
            return ()
        previous = SESSION_POINTER.validate_json(pointer.value).run_id
        try:
            state = await self._runs.state(ask.tenant, previous)
        except RejectedError as error:
            if error.code != NOT_FOUND:
                raise
            return ()
        return continued(state, self._history_messages)
