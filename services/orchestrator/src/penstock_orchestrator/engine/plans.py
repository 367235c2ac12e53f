"""Compiled plans, fetched once by digest and kept: they never change."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from pydantic import ValidationError

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError
from penstock.contracts.plan import PLAN, Plan

_KEPT: Final = 1000


class Plans:
    """The plans that this engine has used lately."""

    def __init__(self, bus: Bus) -> None:
        """Read from bucket ``plans``."""
        self._bucket = Bucket(bus, subjects.PLANS)
        self._kept: OrderedDict[str, Plan] = OrderedDict()

    def kept(self, digest: str) -> Plan | None:
        """Return a plan if it is at hand."""
        return self._kept.get(digest)

    async def get(self, digest: str) -> Plan | None:
        """Return the plan with this digest, or ``None`` if it is not published.

        Raises:
            InvariantError: ``unreadable_plan``.
            TransientError: The bucket does not answer.
        """
        plan = self._kept.get(digest)
        if plan is not None:
            self._kept.move_to_end(digest)
            return plan
        entry = await self._bucket.get(digest)
        if entry is None:
            return None
        try:
            plan = PLAN.validate_json(entry.value)
        except ValidationError as error:
            raise InvariantError("unreadable_plan", f"plan {digest}: {error}") from error
        self._kept[digest] = plan
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return plan
