"""Signals: events, messages, answers and commands, stored once in the log of a run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, get_args

from msgspec import structs

from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError, TransientError, finding
from penstock.contracts.facts import (
    CancelRequested,
    RunEnded,
    RunInvoked,
    SignalKind,
    SignalReceived,
    fact_bytes,
)
from penstock.contracts.ids import TOKEN_PATTERN, is_run_id
from penstock.failpoints import reach
from penstock.runs.state import Entry
from penstock_gateway.runs.pending import PendingIndex
from penstock_gateway.runs.read import NOT_FOUND, Runs, available, not_found
from penstock_gateway.runs.start import SESSION_POINTER, new_run_id

_AT_ONCE: Final = 64
"""Runs that one event is sent to side by side."""
_TOKEN: Final = re.compile(TOKEN_PATTERN)
_RESERVED: Final = tuple(f"{kind}-" for kind in (*get_args(SignalKind), "key", "m"))
"""Prefixes of derived ids: a sender that chose such an id could answer for another one."""


def signal_id_of(key: str | None) -> str:
    """Return the id that an idempotency key stands for; without a key a new one.

    A key that is a token is the id itself.
    """
    if key is None:
        return new_run_id()
    if _TOKEN.fullmatch(key) and not key.startswith(_RESERVED):
        return key
    return f"key-{sha256(key.encode()).hexdigest()[:40]}"


def control_signal_id(kind: str) -> str:
    """Return a new id for a signal that pauses or resumes a run."""
    return f"{kind}-{new_run_id()}"


def run_ended(run_id: str) -> RejectedError:
    """Return the error of asking something of a run that has ended."""
    return RejectedError("run_ended", f"run {run_id} has ended")


async def append_to_open(
    writer: LogWriter,
    reader: LogReader,
    prefix: str,
    subject: str,
    fact: SignalReceived | CancelRequested,
) -> int:
    """Append an input to the log of a run unless the log has the run's end; return its sequence.

    Raises:
        RejectedError: ``run_ended``: nothing was stored.
        ConflictError: ``duplicate_fact``: the log has another fact on this subject.
        TransientError: The log did not answer.
    """
    body, ends = fact_bytes(fact), subjects.ends_filter(prefix)
    try:
        return await writer.append(subject, body, fence=ends)
    except ConflictError as conflict:
        if conflict.code == "duplicate_fact":
            raise
        if await reader.read_message(subjects.RUNS, ends) is None:
            # An end was under way and was refused.
            return await writer.append(subject, body)
        raise run_ended(prefix.rpartition(".")[2]) from conflict


@dataclass(frozen=True, slots=True)
class Sent:
    """A signal that is in the log, by this request or (``repeated``) an earlier one like it."""

    run_id: str
    signal_id: str
    seq: int
    fact: SignalReceived
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Signals:
    """Sends signals to runs of any tenant."""

    _writer: LogWriter
    _reader: LogReader
    _runs: Runs
    """Finds runs that have left the log."""
    _pending: PendingIndex
    """Finds runs by correlation key."""
    _sessions: Bucket
    """Each session's latest run."""

    async def send(self, tenant: str, run_id: str, signal_id: str, fact: SignalReceived) -> Sent:
        """Store a signal in the log of a run.

        Raises:
            RejectedError: ``run_not_found``, ``run_ended``, or ``idempotency_key_reused`` where
                another signal has the id.
            TransientError: The log did not answer.
        """
        earlier = await self._look(tenant, run_id, signal_id)
        if earlier is None:
            sent = await self.publish(tenant, run_id, signal_id, fact)
        else:
            sent = _sent(run_id, signal_id, earlier, repeated=True)
        if sent.repeated and not same_signal(sent.fact, fact):
            raise RejectedError(
                "idempotency_key_reused",
                f"the same key sent another signal to run {run_id}",
                details=(
                    finding(
                        "Idempotency-Key",
                        "used before with another body",
                        "the same body, or a new key",
                    ),
                ),
            )
        return sent

    async def _look(self, tenant: str, run_id: str, signal_id: str) -> Entry | None:
        """Return the signal if it is stored already; check that the run is open otherwise."""
        if not is_run_id(run_id):
            raise not_found(run_id)
        prefix = self._runs.prefix(tenant, run_id)
        wanted = [
            subjects.invoke(prefix),
            subjects.signal(prefix, signal_id),
            subjects.ends_filter(prefix),
        ]
        with available():
            page = await self._reader.get_many(subjects.RUNS, {"multi_last": wanted})
            found = [await self._reader.entry(stored) for stored in page.messages]
        if not any(isinstance(entry.fact, RunInvoked) for entry in found):
            found = list(await self._runs.entries(tenant, run_id))
        for entry in found:
            if entry.subject.event == "signal" and entry.subject.step_id == signal_id:
                return entry
        if any(isinstance(entry.fact, RunEnded) for entry in found):
            raise run_ended(run_id)
        return None

    async def publish(self, tenant: str, run_id: str, signal_id: str, fact: SignalReceived) -> Sent:
        """Publish a signal to a run, or return the one with its id.

        Raises:
            RejectedError: ``run_ended``.
            TransientError: The log did not answer.
        """
        prefix = self._runs.prefix(tenant, run_id)
        subject = subjects.signal(prefix, signal_id)
        try:
            seq = await append_to_open(self._writer, self._reader, prefix, subject, fact)
            reach("gateway.signal_stored")
        except ConflictError:
            entry = await self._reader.read_fact(subject)
            if entry is None:
                raise TransientError(
                    "signal_unclear",
                    f"could not confirm that signal {signal_id} was stored; repeat the request",
                ) from None
            return _sent(run_id, signal_id, entry, repeated=True)
        return Sent(run_id, signal_id, seq, fact)

    async def send_to_waiting(
        self, tenant: str, correlation: str, signal_id: str, fact: SignalReceived
    ) -> Sequence[Sent]:
        """Send a signal to every open run that waits for a correlation key.

        Raises:
            RejectedError: ``nobody_waits``; otherwise as for ``send``.
            TransientError: The log did not answer.
        """
        run_ids = await self._pending.waiting(tenant, correlation)
        sent: list[Sent] = []
        for first in range(0, len(run_ids), _AT_ONCE):
            some = run_ids[first : first + _AT_ONCE]
            answers = await asyncio.gather(
                *(self._send_if_open(tenant, run_id, signal_id, fact) for run_id in some)
            )
            sent += [answer for answer in answers if answer is not None]
        if not sent:
            raise RejectedError(
                "nobody_waits",
                "no open run waits for this correlation key",
                details=(
                    finding(
                        "correlation",
                        f"no run waits for {correlation[:80]!r}",
                        "the key of a wait that has begun",
                    ),
                ),
            )
        return sent

    async def _send_if_open(
        self, tenant: str, run_id: str, signal_id: str, fact: SignalReceived
    ) -> Sent | None:
        try:
            return await self.send(tenant, run_id, signal_id, fact)
        except RejectedError as error:
            # The index is a moment late.
            if error.code not in ("run_ended", NOT_FOUND):
                raise
            return None

    async def send_to_session(
        self, tenant: str, session_id: str, signal_id: str, fact: SignalReceived
    ) -> Sent:
        """Send a signal to a session's latest run.

        Raises:
            RejectedError: ``session_not_found``, ``session_idle``; otherwise as for ``send``.
            TransientError: The log did not answer.
        """
        pointer = await self._sessions.get(subjects.session_key(tenant, session_id))
        if pointer is None:
            raise RejectedError("session_not_found", f"there is no session {session_id}")
        run_id = SESSION_POINTER.validate_json(pointer.value).run_id
        try:
            return await self.send(tenant, run_id, signal_id, fact)
        except RejectedError as error:
            if error.code not in ("run_ended", NOT_FOUND):
                raise
            raise RejectedError(
                "session_idle", f"the latest run of session {session_id} has ended"
            ) from error


def _sent(run_id: str, signal_id: str, entry: Entry, *, repeated: bool) -> Sent:
    if not isinstance(entry.fact, SignalReceived):
        raise TransientError("signal_unclear", f"signal {signal_id} cannot be read")
    return Sent(run_id, signal_id, entry.seq, entry.fact, repeated)


def same_signal(one: SignalReceived, other: SignalReceived) -> bool:
    """Return whether two signals are equal but for sender and time."""
    ignored = {"occurred_at": one.occurred_at, "sent_by": one.sent_by}
    return one == structs.replace(other, **ignored)
