"""What runs ask of the world outside: the values of the bucket ``pending``.

The engine writes an entry when a node record is opened and removes it when it closes. The entries
are an index: what counts is the run's log.
"""

from __future__ import annotations

import hashlib

from pydantic import AwareDatetime
from pydantic_core import to_json

from penstock.contracts.facts import NodeRecord, Record
from penstock.contracts.ids import Token
from penstock.contracts.json import Json


class PendingRecord(Record):
    """An open approval, client tool call, unknown outcome or awaited signal of a run."""

    tenant: Token
    run_id: str
    shard: int
    name: str
    """The definition that runs."""
    node_record: NodeRecord
    asked_at: AwareDatetime


class CorrelationRecord(Record):
    """A run that events with a certain correlation key are for."""

    run_id: str
    shard: int
    record_id: str | None = None
    """The wait that asked for it; ``None``: the run itself, from its beginning to its end."""


def correlation_hash(correlation: str) -> str:
    """Return the token that stands for a correlation key in names on the bus."""
    return hashlib.sha256(correlation.encode()).hexdigest()[:40]


def call_digest(name: str, arguments: Json) -> str:
    """Return the SHA-256 of a call, in hexadecimal: what an approval is bound to.

    Keys are sorted, so that the order in which a model writes them does not matter.
    """
    canonical = to_json([name, _sorted(arguments)])
    return hashlib.sha256(canonical).hexdigest()


def _sorted(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value
