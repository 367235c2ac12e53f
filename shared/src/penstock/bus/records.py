"""A message to append, as it goes out and as the server answers it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from penstock.bus.client import header_block
from penstock.contracts.errors import ConflictError, InvariantError

SUBJECT_TAKEN: Final = 10077
FENCED: Final = frozenset({10071, 10164})
UNAVAILABLE: Final = 503

_FENCE_VALUE: Final = "Nats-Expected-Last-Subject-Sequence"
_FENCE_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_FENCE_BLOCK: Final = header_block({_FENCE_VALUE: "0", _FENCE_SUBJECT: "%b"})
_PLAIN_ACK: Final = b'{"stream":'


@dataclass(frozen=True, slots=True)
class Record:
    """One message to append.

    ``fence`` is a filter that must match no stored message yet; ``headers`` are kept with the
    message.
    """

    subject: str
    body: bytes
    fence: str | None = None
    headers: dict[str, str] | None = None


def read_answer(body: bytes, headers: bytes | None) -> tuple[int, object]:
    """Read an acknowledgement: the sequence, or the error."""
    if body.startswith(_PLAIN_ACK) and body.endswith(b"}"):
        digits = body[body.rfind(b":") + 1 : -1].strip()
        if digits.isdigit() and body.count(b",") == 1:
            return int(digits), None  # {"stream":"RUNS","seq":7} without a detour
    if headers is not None and not body:
        return 0, {"code": UNAVAILABLE, "description": "no stream takes this subject"}
    answer = json.loads(body)
    return int(answer.get("seq", 0)), answer.get("error")


def header_bytes(record: Record, extra: dict[str, str] | None = None) -> bytes | None:
    """Return the header block that a record is sent with; ``None`` if it needs none."""
    if record.headers is None and extra is None:
        return None if record.fence is None else _FENCE_BLOCK % record.fence.encode()
    headers = dict(record.headers) if record.headers else {}
    if record.fence is not None:
        headers[_FENCE_VALUE] = "0"
        headers[_FENCE_SUBJECT] = record.fence
    if extra is not None:
        headers |= extra
    return header_block(headers) if headers else None


def refusal(record: Record, code: int, text: str) -> Exception:
    """Return the error that a server's refusal means."""
    if code == SUBJECT_TAKEN:
        return ConflictError("duplicate_fact", f"{record.subject} is already published")
    if code in FENCED:
        return ConflictError("fenced", f"a decision under {record.fence} exists already")
    return InvariantError("append_refused", f"{record.subject}: {text} ({code})")
