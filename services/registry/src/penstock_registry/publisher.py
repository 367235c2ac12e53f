"""The publisher: makes the buckets say what the database says.

The database is what counts. A bucket's key is compared with it, corrected by compare-and-set, and
compared once more: whoever is last to look at a row leaves the bucket right, so replicas that
publish at the same time need no lock, and a bus that lost its buckets is repaired by looking.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, TransientError
from penstock.contracts.facts import DefinitionKind
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.rpc import DocumentKind
from penstock.contracts.runners import KeyRecord
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.store import Store
from penstock_registry.tables import DefinitionRow, KeyRow, VersionRow

log = EventLog("penstock.registry")

Wanted = Callable[[], Awaitable[bytes | None]]

_ATTEMPTS: Final = 20
_PAGE: Final = 200


class Publisher:
    """Writes the buckets ``plans``, ``published``, ``webhooks`` and ``keys``."""

    def __init__(self, bus: Bus, database: Store, now: Callable[[], datetime]) -> None:
        """Use a connection and a database; nothing is written yet."""
        self._store = database
        self._now = now
        self._plans = Bucket(bus, subjects.PLANS)
        self._published = Bucket(bus, subjects.PUBLISHED)
        self._webhooks = Bucket(bus, subjects.WEBHOOKS)
        self._keys = Bucket(bus, subjects.KEYS)

    async def put_plan(self, digest: str, body: bytes) -> None:
        """Make a plan readable; its digest is its name, so writing it again changes nothing.

        Raises:
            TransientError: The bus did not answer.
        """
        try:
            await self._plans.create(digest, body)
        except ConflictError:
            log.debug("registry.plan_known", digest=digest)

    async def assert_definition(self, tenant: str, kind: DocumentKind, name: str) -> bool:
        """Make the bucket say of a name what the database says; return whether it had to change.

        Raises:
            TransientError: Bus or database did not answer, or others change the key all the time.
        """
        if kind is DocumentKind.TOOL:
            return False
        if kind is DocumentKind.WEBHOOK:
            bucket, key = self._webhooks, subjects.webhook_key(tenant, name)
        else:
            bucket, key = self._published, subjects.published_key(tenant, name)

        async def wanted() -> bytes | None:
            async with self._store.reading() as session:
                found = await store.find_named(session, tenant, kind, name)
            return await self._value_of(*found) if found is not None else None

        return await self._assert(bucket, key, wanted)

    async def assert_key(self, tenant: str, key_id: str) -> bool:
        """Make the bucket say of an API key what the database says.

        Raises:
            TransientError: Bus or database did not answer, or others change the key all the time.
        """
        async with self._store.reading() as session:
            row = await store.find_key(session, tenant, key_id)
        if row is None:
            return False
        expires_at = row.expires_at

        async def wanted() -> bytes | None:
            async with self._store.reading() as session:
                found = await store.find_key(session, tenant, key_id)
            return self._record_of(found) if found is not None else None

        ttl = (expires_at - self._now()).total_seconds() if expires_at is not None else None
        return await self._assert(self._keys, row.sha256, wanted, ttl_seconds=ttl)

    async def repair(self) -> int:
        """Compare all buckets with the database and return how many keys had to be corrected.

        Keys that the database has never heard of are left alone: a registry with a new database
        must not take an installation's plans away.

        Raises:
            TransientError: Bus or database did not answer.
        """
        corrected = 0
        after = 0
        while True:
            async with self._store.reading() as session:
                rows = await store.every_definition(session, after_id=after, limit=_PAGE)
            for definition, _ in rows:
                after = definition.id
                kind = DocumentKind(definition.kind)
                corrected += await self.assert_definition(
                    definition.tenant_id, kind, definition.name
                )
            if len(rows) < _PAGE:
                break
        after = 0
        while True:
            async with self._store.reading() as session:
                keys = await store.every_key(session, after_id=after, limit=_PAGE)
            for row in keys:
                after = row.id
                corrected += await self.assert_key(row.tenant_id, row.key_id)
            if len(keys) < _PAGE:
                break
        log.info("registry.buckets_compared", corrected=corrected)
        return corrected

    async def _value_of(
        self, definition: DefinitionRow, version: VersionRow | None
    ) -> bytes | None:
        """Return what a bucket must hold for a definition; its plan is there before."""
        if definition.deleted_at is not None or version is None:
            return None
        if definition.kind == DocumentKind.WEBHOOK:
            return version.compiled
        await self.put_plan(version.digest, version.compiled)
        alias = PublishedVersion(
            name=definition.name,
            kind=DefinitionKind(definition.kind),
            version=version.version,
            plan_digest=version.digest,
        )
        return alias.model_dump_json().encode()

    def _record_of(self, row: KeyRow) -> bytes | None:
        gone = row.deleted_at is not None
        if gone or (row.expires_at is not None and row.expires_at <= self._now()):
            return None
        record = KeyRecord.model_validate(
            {
                "key_id": row.key_id,
                "tenant": row.tenant_id,
                "roles": row.roles,
                "expires_at": row.expires_at,
            }
        )
        return record.model_dump_json().encode()

    async def _assert(
        self,
        bucket: Bucket,
        key: str,
        wanted: Wanted,
        *,
        ttl_seconds: float | None = None,
    ) -> bool:
        changed = False
        for _ in range(_ATTEMPTS):
            # The bucket is read before the database, so that what is written is never older than
            # what was compared.
            entry = await bucket.get(key)
            value = await wanted()
            if (entry.value if entry is not None else None) == value:
                return changed
            try:
                if value is None:
                    await bucket.delete(key, revision=entry.revision if entry is not None else None)
                elif entry is None:
                    await bucket.create(key, value, ttl_seconds=ttl_seconds)
                else:
                    await bucket.update(key, value, entry.revision, ttl_seconds=ttl_seconds)
            except ConflictError:
                continue
            changed = True
        raise TransientError("key_contended", f"{bucket.name}: {key} changes all the time")
