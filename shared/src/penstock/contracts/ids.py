"""Identifiers: their form and how each is derived.

Every id is one subject token. The same inputs always give the same id, so that
a repeated piece of work gets the id of the first.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import StringConstraints

from penstock.contracts.errors import ErrorDetail, RejectedError

TOKEN_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
NODE_ID_PATTERN: Final = r"^[A-Za-z][A-Za-z0-9_]{0,39}$"
RUN_ID_LENGTH: Final = 26

_TOKEN = re.compile(TOKEN_PATTERN)
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RUN_ID = re.compile(rf"^[{_CROCKFORD}]{{{RUN_ID_LENGTH}}}$")

Token = Annotated[str, StringConstraints(pattern=TOKEN_PATTERN)]
"""One subject token: 1 to 64 of letters, digits, ``_`` and ``-``."""

NodeId = Annotated[str, StringConstraints(pattern=NODE_ID_PATTERN)]
"""Id of a node in a plan: a letter, then up to 39 letters, digits and ``_`` (no ``-``)."""


def require_token(value: str, *, path: str) -> str:
    """Return ``value`` if it is one subject token.

    Args:
        value: The text to check.
        path: Where the text stood, for the error.

    Raises:
        RejectedError: ``invalid_token`` if it is not.
    """
    if not _TOKEN.fullmatch(value):
        raise RejectedError(
            "invalid_token",
            f"{path} must be 1 to 64 letters, digits, '_' or '-'",
            details=(ErrorDetail(path=path, message=f"got {value[:80]!r}", allowed=TOKEN_PATTERN),),
        )
    return value


def _base32(number: int) -> str:
    letters = []
    for _ in range(RUN_ID_LENGTH):
        letters.append(_CROCKFORD[number & 31])
        number >>= 5
    return "".join(reversed(letters))


def run_id_from(time_ms: int, entropy: bytes) -> str:
    """Build a time-ordered run id (ULID: 48 bits of milliseconds, 80 bits of entropy).

    Args:
        time_ms: Milliseconds since the Unix epoch.
        entropy: At least 10 bytes; the first 10 are used.
    """
    return _base32((time_ms & (2**48 - 1)) << 80 | int.from_bytes(entropy[:10], "big"))


def run_id_from_key(tenant: str, key: str) -> str:
    """Derive the run id that an idempotency key stands for.

    The same tenant and key give the same id, so the stream itself refuses the second start.
    """
    digest = hashlib.sha256(f"{tenant}\x00{key}".encode()).digest()
    return _base32(int.from_bytes(digest[:16], "big"))


def run_id_millis(run_id: str) -> int:
    """Return the time in a run id, in milliseconds since 1970; derived ids hold none."""
    number = 0
    for letter in run_id:
        number = number << 5 | max(0, _CROCKFORD.find(letter))
    return number >> 80 & (2**48 - 1)


def is_run_id(value: str) -> bool:
    """Return whether ``value`` has the form of a run id (26 characters of Crockford base 32)."""
    return _RUN_ID.fullmatch(value) is not None


def shard_of(run_id: str, shards: int) -> int:
    """Return the shard of a run: CRC-32 of its id, modulo the number of shards."""
    return zlib.crc32(run_id.encode()) % shards


def instance_id(node_id: str, path: tuple[int, ...]) -> str:
    """Return the id of a node's instance inside maps and loops.

    Args:
        node_id: The node.
        path: Index of the item or iteration in each enclosing map or loop, outermost first.
    """
    return f"{node_id}-x{'x'.join(map(str, path))}" if path else node_id


def parse_step_id(step_id: str) -> tuple[str, tuple[int, ...], int | None, int | None]:
    """Take apart a step id into node, path of indices, turn and index of a call.

    Raises:
        ValueError: It is not the id of a step.
    """
    node_id, _, rest = step_id.partition("-")
    path: tuple[int, ...] = ()
    if rest.startswith("x"):
        head, _, rest = rest.partition("-")
        path = tuple(int(part) for part in head[1:].split("x"))
    if not rest:
        return node_id, path, None, None
    turn, _, index = rest.partition("-")
    return node_id, path, int(turn), int(index) if index else None


MAIN_RECORD: Final = "-main"
"""Id of the node record that holds how the run's main phase ended."""
ON_ERROR_RECORD: Final = "-on_error"
"""Id of the node record that holds the output with which ``on_error`` recovered the run."""
ON_ERROR_DONE_RECORD: Final = "-on_error_done"
"""Id of the node record that holds that ``on_error`` ended and the run stays failed."""

_SUFFIXES: Final[dict[str, Literal["approval", "resolution"]]] = {
    "-a": "approval",
    "-r": "resolution",
}


class RecordId(NamedTuple):
    """A node record's id, parsed: which step or instance it belongs to, and what it holds.

    ``node`` records hold the outcome or progress of a node's instance, or a call that the caller
    executes; ``phase`` records belong to the run, and their ``step_id`` is the record's own id.
    """

    step_id: str
    purpose: Literal["node", "approval", "resolution", "phase"]

    @classmethod
    def parse(cls, record_id: str) -> RecordId:
        """Parse the id of a node record."""
        if record_id.startswith("-"):
            return cls(record_id, "phase")
        purpose = _SUFFIXES.get(record_id[-2:])
        return cls(record_id, "node") if purpose is None else cls(record_id[:-2], purpose)


def approval_record_id(step_id: str) -> str:
    """Return the id of the node record that requests a call's approval."""
    return f"{step_id}-a"


def resolution_record_id(step_id: str) -> str:
    """Return the id of the node record that requests a decision about a lost attempt."""
    return f"{step_id}-r"


def answer_signal_id(kind: str, record_id: str, digest: str = "") -> str:
    """Return the id of the only signal that can answer an open node record.

    Args:
        kind: What kind of answer.
        record_id: The node record.
        digest: What exactly is answered: a call's digest, a lost attempt's number.
    """
    name = hashlib.sha256(f"{record_id}\x00{digest}".encode()).hexdigest()[:32]
    return f"{kind}-{name}"


def child_run_id(tenant: str, run_id: str, step_id: str, attempt: int) -> str:
    """Derive the id of the run that an attempt at a step starts."""
    return run_id_from_key(tenant, f"child\x00{run_id}\x00{step_id}\x00{attempt}")


def turn_step_id(node_id: str, turn: int) -> str:
    """Return the id of an LLM turn of an agent node's instance (turns count from 1)."""
    return f"{node_id}-{turn}"


def call_step_id(node_id: str, turn: int, index: int) -> str:
    """Return the id of the tool call that a turn asked for (calls count from 0)."""
    return f"{node_id}-{turn}-{index}"


def idempotency_key(run_id: str, step_id: str) -> str:
    """Return the key that names a step's side effect, the same on every attempt."""
    return f"{run_id}:{step_id}"


def content_digest(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
