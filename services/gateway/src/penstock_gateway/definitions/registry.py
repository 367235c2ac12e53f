"""What the registry is asked for, and what changes here at once when it has changed something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from penstock import rpc
from penstock.bus.connection import Bus
from penstock.contracts import subjects
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.rpc import DocumentKind
from penstock.contracts.runners import WebhookRecord
from penstock_gateway.core.access import Caller
from penstock_gateway.definitions.mirrors import Mirror

ReplyT = TypeVar("ReplyT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Registry:
    """The registry's verbs over the bus."""

    _bus: Bus
    _published: Mirror[PublishedVersion]
    _webhooks: Mirror[WebhookRecord]
    _keys: Mirror[Caller]

    async def ask(self, verb: str, request: BaseModel, reply: type[ReplyT]) -> ReplyT:
        """Send a request to the registry and return its reply.

        Raises:
            PenstockError: What it answered.
            TransientError: It did not answer.
        """
        return await rpc.call(self._bus, "registry", verb, request, reply)

    async def refresh(self, tenant: str, kind: DocumentKind, name: str) -> None:
        """Reload the version in force, so that a change through this gateway applies at once."""
        if kind is DocumentKind.WEBHOOK:
            await self._webhooks.refresh(subjects.webhook_key(tenant, name))
        elif kind not in (DocumentKind.TOOL, DocumentKind.SCHEDULE):
            await self._published.refresh(subjects.published_key(tenant, name))

    async def refresh_selector(self, tenant: str, name: str, selector: str) -> None:
        """Read what a version or an alias stands for now."""
        await self._published.refresh(subjects.published_version_key(tenant, name, selector))

    async def refresh_key(self, digest: str) -> None:
        """Read a key that was just made, so that it can be used at once."""
        await self._keys.refresh(digest)
