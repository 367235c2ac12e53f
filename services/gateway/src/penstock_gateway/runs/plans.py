"""Properties of plans that the gateway needs, read once each: a plan never changes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter, ValidationError

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.facts import Record
from penstock.contracts.usage import RunLimits
from penstock.telemetry.logs import EventLog

_KEPT: Final = 1000
_CLIENT_TOOL: Final = b'"client":true'

log = EventLog(__name__)


@dataclass(frozen=True, slots=True)
class PlanGist:
    """What matters of a plan to those who start and read its runs."""

    limits: RunLimits
    client_tools: bool
    """Whether a run may ask its caller to execute tools."""


class _Limited(Record):
    limits: RunLimits = RunLimits()


_LIMITED: Final[TypeAdapter[_Limited]] = TypeAdapter(_Limited)
UNKNOWN: Final = PlanGist(RunLimits(), client_tools=False)
"""Stands for a plan that is not published or cannot be read."""


class Plans:
    """Gists of plans, the latest used ones in memory."""

    def __init__(self, bus: Bus) -> None:
        """Use the process's connection."""
        self._bucket = Bucket(bus, subjects.PLANS)
        self._known: OrderedDict[str, PlanGist] = OrderedDict()

    async def gist(self, digest: str) -> PlanGist:
        """Return what matters of a plan.

        Raises:
            TransientError: The bus did not answer.
        """
        found = self._known.get(digest)
        if found is None:
            entry = await self._bucket.get(digest)
            if entry is None:
                return UNKNOWN
            found = self._known[digest] = _read(digest, entry.value)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(digest)
        return found


def _read(digest: str, body: bytes) -> PlanGist:
    try:
        limits = _LIMITED.validate_json(body).limits
    except ValidationError:
        log.exception("plans.unreadable", digest=digest)
        return UNKNOWN
    # The canonical form says so of client tools, and leaves it out of all others.
    return PlanGist(limits, _CLIENT_TOOL in body)
