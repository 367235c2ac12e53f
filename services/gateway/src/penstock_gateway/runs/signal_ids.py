"""Ids of signals that somebody outside sends."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final, get_args

from penstock.contracts.facts import SignalKind
from penstock.contracts.ids import TOKEN_PATTERN
from penstock.runids import new_run_id

_TOKEN: Final = re.compile(TOKEN_PATTERN)
_RESERVED: Final = tuple(f"{kind}-" for kind in (*get_args(SignalKind), "key", "m"))
"""Ids of answers begin so: a sender that chose one of these would answer for somebody else."""


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
