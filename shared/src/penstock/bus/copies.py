"""Copies of runs: facts published elsewhere or earlier, put into the log unchanged.

The end goes first, so that no runner takes up a step; the request for the run last, so that no
engine decides before it can see earlier decisions. Repeating it has no effect.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.writer import SUBJECT_TAKEN
from penstock.contracts.archive import RESTORED_HEADER
from penstock.contracts.errors import TransientError

_ORDER: Final = {"run.ended": 0, "run.invoked": 2}


class FactCopy(NamedTuple):
    """A fact as it is to stand in the log."""

    seq: int
    """Where it stood: facts keep their order."""
    subject: str
    type: str
    body: bytes


async def put_back(
    bus: Bus, claims: Claims, facts: Iterable[FactCopy], *, there: Collection[str] = ()
) -> int:
    """Append the facts of a run that has ended; return how many the log did not have.

    Args:
        bus: The connection.
        claims: Takes large bodies.
        facts: All facts of the run, its end among them.
        there: Subjects that the log is known to have.

    Raises:
        TransientError: ``log_unavailable``: ask again.
    """
    missing = [fact for fact in facts if fact.subject not in there]
    missing.sort(key=lambda fact: (_ORDER.get(fact.type, 1), fact.seq))
    count = 0
    for fact in missing:
        count += await _put_one(bus, claims, fact)
    return count


async def _put_one(bus: Bus, claims: Claims, fact: FactCopy) -> bool:
    reply = await bus.request(
        fact.subject, await claims.pack(fact.body), headers={RESTORED_HEADER: "1"}
    )
    error = json.loads(reply.data).get("error")
    if error is None:
        return True
    if error.get("err_code") == SUBJECT_TAKEN:
        return False
    raise TransientError("log_unavailable", f"{fact.subject}: {error.get('description')}")
