"""The publisher: makes the buckets equal to the database.

The database is authoritative. A bucket's key is compared with it, corrected by compare-and-set, and
compared once more: the last process to read a row leaves the bucket right, so replicas that
publish at the same time need no lock, and a bus that lost its buckets is repaired by looking.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Final, Literal

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, TransientError
from penstock.contracts.rpc import DocumentKind
from penstock.contracts.runners import KeyRecord
from penstock.telemetry.logs import EventLog
from penstock_registry import store
from penstock_registry.core.catalog import RUNNABLE
from penstock_registry.store import Store
from penstock_registry.tables import DefinitionRow, KeyRow, VersionRow
from penstock_registry.versions import aliased, published_version

log = EventLog(__name__)

Expected = Callable[[], Awaitable[bytes | None]]

_ATTEMPTS: Final = 20
_PAGE: Final = 200
_SCHEDULE_PARTS: Final[tuple[Literal["control", "progress"], ...]] = ("control", "progress")


class Publisher:
    """Writes the buckets ``plans``, ``published``, ``webhooks``, ``schedules`` and ``keys``."""

    def __init__(self, bus: Bus, database: Store, now: Callable[[], datetime]) -> None:
        """Use a connection and a database; nothing is written yet."""
        self._store = database
        self._now = now
        self._plans = Bucket(bus, subjects.PLANS)
        self._published = Bucket(bus, subjects.PUBLISHED)
        self._webhooks = Bucket(bus, subjects.WEBHOOKS)
        self._schedules = Bucket(bus, subjects.SCHEDULES)
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
        """Make the bucket's entry of a name equal to the database; return whether it changed.

        Raises:
            TransientError: Bus or database did not answer, or others change the key all the time.
        """
        if kind is DocumentKind.TOOL:
            return False
        if kind is DocumentKind.WEBHOOK:
            bucket, key = self._webhooks, subjects.webhook_key(tenant, name)
        elif kind is DocumentKind.SCHEDULE:
            bucket, key = self._schedules, subjects.schedule_key(tenant, name)
        else:
            bucket, key = self._published, subjects.published_key(tenant, name)

        async def expected() -> bytes | None:
            async with self._store.reading() as session:
                found = await store.find_named(session, tenant, kind, name)
            return await self._value_of(*found) if found is not None else None

        changed = await self._assert(bucket, key, expected)
        if changed and kind is DocumentKind.SCHEDULE:
            await self._forget_progress(tenant, name)
        return changed

    async def _forget_progress(self, tenant: str, name: str) -> None:
        """Remove the records of a deleted schedule, so that a later namesake starts fresh."""
        if await self._schedules.get(subjects.schedule_key(tenant, name)) is not None:
            return
        for part in _SCHEDULE_PARTS:
            key = subjects.schedule_part_key(tenant, name, part)
            if await self._schedules.get(key) is not None:
                await self._schedules.delete(key)

    async def assert_selectors(
        self, tenant: str, kind: DocumentKind, name: str, *, version: int | None = None
    ) -> int:
        """Make the bucket's entries of a name's versions and aliases equal to the database.

        Args:
            tenant: Whose name.
            kind: Of the definition.
            name: Of the definition.
            version: Only this version and the aliases; all versions where not given.

        Returns:
            Number of keys that changed.

        Raises:
            TransientError: Bus or database did not answer, or others change a key all the time.
        """
        if kind not in RUNNABLE:
            return 0
        expected: dict[str, bytes | None] = {
            selector: value
            for selector, value in (await self._selectors(tenant, kind, name)).items()
            if version is None or selector == str(version) or not selector.isdigit()
        }
        if version is None:
            there = await self._published.keys(subjects.published_version_key(tenant, name, "*"))
            for key in there:
                expected.setdefault(key.rsplit(".", 1)[1], None)
        changed = 0
        for selector, value in expected.items():
            key = subjects.published_version_key(tenant, name, selector)
            entry = await self._published.get(key)
            if (entry.value if entry is not None else None) != value:
                changed += await self._assert_selector(tenant, kind, name, selector)
        return changed

    async def _assert_selector(
        self, tenant: str, kind: DocumentKind, name: str, selector: str
    ) -> bool:
        async def expected() -> bytes | None:
            value = (await self._selectors(tenant, kind, name)).get(selector)
            if value is not None:
                await self._put_plans(tenant, kind, name, selector)
            return value

        key = subjects.published_version_key(tenant, name, selector)
        return await self._assert(self._published, key, expected)

    async def _selectors(self, tenant: str, kind: DocumentKind, name: str) -> dict[str, bytes]:
        """Return the entries of every version and alias of a name, from the database."""
        async with self._store.reading() as session:
            found = await store.find_named(session, tenant, kind, name)
            if found is None or found[0].deleted_at or found[0].archived_at:
                return {}
            versions = await store.all_versions(session, found[0])
            aliases = await store.list_aliases(session, found[0])
        by_number = {row.version: published_version(row, name) for row in versions}
        selected = {str(number): version for number, version in by_number.items()}
        for alias in aliases:
            if (version := aliased(alias, by_number)) is not None:
                selected[alias.alias] = version
        return {
            selector: version.model_dump_json(exclude_defaults=True).encode()
            for selector, version in selected.items()
        }

    async def _put_plans(self, tenant: str, kind: DocumentKind, name: str, selector: str) -> None:
        """Make the plan of a version readable before its key names it."""
        if not selector.isdigit():
            return
        async with self._store.reading() as session:
            found = await store.find_named(session, tenant, kind, name)
            if found is None:
                return
            version = await store.find_version(session, found[0], int(selector))
        if version is not None:
            await self.put_plan(version.digest, version.compiled)

    async def assert_key(self, tenant: str, key_id: str) -> bool:
        """Make the bucket's entry of an API key equal to the database.

        Raises:
            TransientError: Bus or database did not answer, or others change the key all the time.
        """
        async with self._store.reading() as session:
            row = await store.find_key(session, tenant, key_id)
        if row is None:
            return False
        expires_at = row.expires_at

        async def expected() -> bytes | None:
            async with self._store.reading() as session:
                found = await store.find_key(session, tenant, key_id)
            return self._record_of(found) if found is not None else None

        ttl = (expires_at - self._now()).total_seconds() if expires_at is not None else None
        return await self._assert(self._keys, row.sha256, expected, ttl_seconds=ttl)

    async def repair(self) -> int:
        """Compare all buckets with the database and return how many keys had to be corrected.

        Keys that the database does not know stay: a registry with a new database must not remove
        the plans of an installation.

        Raises:
            TransientError: Bus or database did not answer.
        """
        corrected = 0
        async for definition in self._every(DefinitionRow):
            place = (definition.tenant_id, DocumentKind(definition.kind), definition.name)
            corrected += await self.assert_definition(*place)
            corrected += await self.assert_selectors(*place)
        async for key in self._every(KeyRow):
            corrected += await self.assert_key(key.tenant_id, key.key_id)
        log.info("registry.buckets_compared", corrected=corrected)
        return corrected

    async def _every(self, table: type[store.RowT]) -> AsyncIterator[store.RowT]:
        """Yield all rows of a table, page by page."""
        after: int | None = 0
        while after is not None:
            async with self._store.reading() as session:
                rows = await store.every(session, table, after_id=after, limit=_PAGE)
            for row in rows:
                yield row
            after = rows[-1].id if len(rows) == _PAGE else None

    async def _value_of(
        self, definition: DefinitionRow, version: VersionRow | None
    ) -> bytes | None:
        """Return the entry of a definition, after its plan was stored."""
        if definition.deleted_at is not None or version is None:
            return None
        if definition.kind in (DocumentKind.WEBHOOK, DocumentKind.SCHEDULE):
            return version.compiled
        await self.put_plan(version.digest, version.compiled)
        in_force = published_version(version, definition.name)
        return in_force.model_dump_json(exclude_defaults=True).encode()

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
        expected: Expected,
        *,
        ttl_seconds: float | None = None,
    ) -> bool:
        changed = False
        for _ in range(_ATTEMPTS):
            # The bucket is read before the database, so that the written value is never older than
            # the compared value.
            entry = await bucket.get(key)
            value = await expected()
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
