"""API keys: made once, kept as a hash, worthless the moment they are revoked."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from penstock.contracts.errors import RejectedError, finding
from penstock.contracts.rpc import CreatedKey, CreateKey, KeyInfo, Keys, ListKeys, RevokeKey
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.publisher import Publisher
from penstock_registry.store import Store
from penstock_registry.tables import KeyRow

log = EventLog(__name__)

PREFIX: Final = "psk"
_ID_BYTES: Final = 8
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The registry's verbs on API keys."""

    _store: Store
    _publisher: Publisher
    _now: Callable[[], datetime]

    async def create(self, request: CreateKey) -> CreatedKey:
        """Make a key; its secret is in this answer and nowhere else.

        Raises:
            RejectedError: ``invalid_request`` if it would have expired already.
            TransientError: Database or bus did not answer.
        """
        now = self._now()
        if request.expires_at is not None and request.expires_at <= now:
            raise RejectedError(
                "invalid_request",
                "expires_at is in the past",
                details=(finding("expires_at", "is in the past"),),
            )
        key_id = secrets.token_hex(_ID_BYTES)
        secret = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        row = KeyRow(
            tenant_id=request.tenant,
            key_id=key_id,
            name=request.name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            roles=list(request.roles),
            expires_at=request.expires_at,
            created_at=now,
            updated_at=now,
            deleted_at=None,
        )
        async with self._store.changing(request.tenant) as session:
            session.add(row)
        await self._publisher.assert_key(request.tenant, key_id)
        log.info("key.created", tenant=request.tenant, key_id=key_id, roles=list(request.roles))
        return CreatedKey(key=_shown(row), secret=secret)

    async def list(self, request: ListKeys) -> Keys:
        """Return a tenant's keys, newest first.

        Raises:
            TransientError: The database did not answer.
        """
        async with self._store.reading() as session:
            rows = await store.list_keys(session, request.tenant, revoked=request.revoked)
        return Keys(items=tuple(map(_shown, rows)))

    async def revoke(self, request: RevokeKey) -> KeyInfo:
        """Make a key worthless; doing so twice changes nothing.

        Raises:
            RejectedError: ``unknown_key``.
            TransientError: Database or bus did not answer.
        """
        async with self._store.changing(request.tenant) as session:
            row = await store.find_key(session, request.tenant, request.key_id)
            if row is None:
                raise RejectedError("unknown_key", f"there is no key {request.key_id!r}")
            if row.deleted_at is None:
                row.deleted_at = row.updated_at = self._now()
        await self._publisher.assert_key(request.tenant, request.key_id)
        log.info("key.revoked", tenant=request.tenant, key_id=request.key_id)
        return _shown(row)


def _shown(row: KeyRow) -> KeyInfo:
    return KeyInfo.model_validate(
        {
            "key_id": row.key_id,
            "tenant": row.tenant_id,
            "name": row.name,
            "roles": row.roles,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "revoked_at": row.deleted_at,
        }
    )
