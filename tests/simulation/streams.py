"""Streams of the simulated server: what is stored, and what is refused.

They read the same configuration as the real server is given (``penstock.bus.topology``) and obey
the parts of it that the engine relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

TAKEN: Final = {
    "code": 503,
    "err_code": 10077,
    "description": "maximum messages per subject exceeded",
}
WRONG_LAST: Final = {"code": 400, "err_code": 10071, "description": "wrong last sequence"}

EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"


def matches(tokens: list[str], wanted: list[str]) -> bool:
    """Tell whether a subject matches a filter, both taken apart."""
    if len(tokens) != len(wanted):
        if not wanted or wanted[-1] != ">" or len(tokens) < len(wanted):
            return False
        wanted = wanted[:-1]
    elif wanted[-1] == ">":
        wanted = wanted[:-1]
    for token, want in zip(tokens, wanted, strict=False):
        if want != "*" and want != token:
            return False
    return True


@dataclass(slots=True, eq=False)
class StoredMessage:
    """One message of a stream."""

    seq: int
    subject: str
    tokens: list[str]
    headers: dict[str, str]
    body: bytes
    time: float
    """Virtual seconds."""
    sender: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a message is not stored."""

    error: dict[str, Any]
    held: StoredMessage | None = None
    """What is on the subject already."""


@dataclass(slots=True)
class Publish:
    """A message that somebody wants stored."""

    subject: str
    body: bytes
    headers: dict[str, str]
    sender: str = "server"


class Stream:
    """One stream: messages by sequence and by subject."""

    def __init__(self, config: Mapping[str, Any], now: Callable[[], float]) -> None:
        self.config = config
        self.name: str = config["name"]
        self.now = now
        self.messages: dict[int, StoredMessage] = {}
        self.by_subject: dict[str, StoredMessage] = {}
        self.last_seq = 0
        self.unavailable_until = 0.0
        self.batches: dict[str, list[Publish]] = {}
        self._one: bool = config.get("max_msgs_per_subject", 0) == 1
        self._refuses: bool = self._one and bool(config.get("discard_new_per_subject"))
        self._runs: dict[str, list[StoredMessage]] = {}
        """Messages by their first four tokens, to look at one run alone."""
        self.on_stored: list[Callable[[StoredMessage], None]] = []

    def select(self, subject_filter: str) -> list[StoredMessage]:
        """Return what matches, in order."""
        wanted = subject_filter.split(".")
        return [m for m in self._near(wanted) if matches(m.tokens, wanted)]

    def last(self, subject_filter: str) -> int:
        """Return the sequence of the last message that matches, 0 if none does."""
        if "*" not in subject_filter and ">" not in subject_filter:
            held = self.by_subject.get(subject_filter)
            return held.seq if held is not None else 0
        wanted = subject_filter.split(".")
        return max((m.seq for m in self._near(wanted) if matches(m.tokens, wanted)), default=0)

    def _near(self, wanted: list[str]) -> Iterable[StoredMessage]:
        stem = wanted[:4]
        if self._refuses and len(wanted) > 4 and "*" not in stem and ">" not in stem:
            return self._runs.get(".".join(stem), ())
        return self.messages.values()

    def refusal(self, message: Publish, before: Iterable[Publish] = ()) -> Refused | None:
        """Say why a message would be refused, if it would.

        Args:
            message: The message.
            before: Others that would be stored before it, in the same batch.
        """
        expected = message.headers.get(EXPECTED)
        if expected is not None:
            fence = message.headers.get(EXPECTED_SUBJECT, message.subject)
            wanted = fence.split(".")
            found = self.last(fence)
            if any(matches(other.subject.split("."), wanted) for other in before):
                found = self.last_seq + 1
            if found != int(expected):
                return Refused(WRONG_LAST | {"description": f"wrong last sequence: {found}"})
        if self._refuses:
            held = self.by_subject.get(message.subject)
            if held is not None or any(other.subject == message.subject for other in before):
                return Refused(TAKEN, held)
        return None

    def store(self, message: Publish) -> StoredMessage:
        """Store a message that is not refused."""
        self.last_seq += 1
        stored = StoredMessage(
            self.last_seq,
            message.subject,
            message.subject.split("."),
            message.headers,
            message.body,
            self.now(),
            message.sender,
        )
        if self._one:
            old = self.by_subject.get(message.subject)
            if old is not None:
                del self.messages[old.seq]
        self.messages[stored.seq] = stored
        self.by_subject[stored.subject] = stored
        if self._refuses:
            self._runs.setdefault(".".join(stored.tokens[:4]), []).append(stored)
        for told in self.on_stored:
            told(stored)
        return stored

    def remove(self, stored: StoredMessage) -> None:
        """Take a message out (a TTL that ran out, a schedule that fired)."""
        if self.messages.pop(stored.seq, None) is not None and (
            self.by_subject.get(stored.subject) is stored
        ):
            del self.by_subject[stored.subject]


@dataclass(slots=True, eq=False)
class Pull:
    """A request for messages that waits at a consumer."""

    connection: Any
    epoch: int
    inbox: str
    left: int
    expires_at: float
    heartbeat: float
    told_at: float


@dataclass(slots=True, eq=False)
class Pending:
    """A delivery that is not acknowledged."""

    message: StoredMessage
    deadline: float
    generation: int


@dataclass(eq=False)
class PullConsumer:
    """A durable with explicit acknowledgements: where it is, and what is out."""

    config: Mapping[str, Any]
    stream: Stream
    wanted: list[str] = field(init=False)
    next_seq: int = 1
    consumer_seq: int = 0
    pending: dict[int, Pending] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    deliveries: dict[int, int] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)
    generation: int = 0
    deleted: bool = False

    def __post_init__(self) -> None:
        self.wanted = self.config["filter_subject"].split(".")

    @property
    def name(self) -> str:
        name: str = self.config["durable_name"]
        return name

    @property
    def ack_wait(self) -> float:
        return float(self.config["ack_wait"]) / 1e9

    @property
    def idle(self) -> bool:
        """Whether everything that matches is delivered and acknowledged."""
        return not self.pending and not self.again and self._peek() is None

    def _peek(self) -> StoredMessage | None:
        last = self.stream.last_seq
        while self.next_seq <= last:
            message = self.stream.messages.get(self.next_seq)
            if message is not None and matches(message.tokens, self.wanted):
                return message
            self.next_seq += 1
        return None

    def take(self) -> StoredMessage | None:
        """Return the next message to deliver."""
        while self.again:
            message = self.stream.messages.get(self.again.pop(0))
            if message is not None:
                return message
        message = self._peek()
        if message is not None:
            self.next_seq += 1
        return message

    def forget(self) -> Iterator[int]:
        """Lose what is out and how often it was delivered, as after a crash of the server."""
        yield from sorted(self.pending)
        self.again = sorted({*self.again, *self.pending})
        self.pending.clear()
        self.deliveries.clear()


@dataclass(eq=False)
class PushConsumer:
    """An ephemeral without acknowledgements, as a watch has it."""

    config: Mapping[str, Any]
    stream: Stream
    connection: Any
    epoch: int
    consumer_seq: int = 0
    deleted: bool = False
    told_at: float = 0.0

    @property
    def inbox(self) -> str:
        inbox: str = self.config["deliver_subject"]
        return inbox
