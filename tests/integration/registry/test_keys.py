import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket, KvEntry
from penstock.contracts import subjects
from penstock.contracts.errors import RejectedError
from penstock.contracts.rpc import CreatedKey, CreateKey, KeyInfo, Keys, ListKeys, RevokeKey
from penstock.contracts.runners import KeyRecord
from tests.integration.registry.conftest import Ask
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("registry")


async def stored(bus: Bus, secret: str) -> KvEntry | None:
    return await Bucket(bus, subjects.KEYS).get(hashlib.sha256(secret.encode()).hexdigest())


async def test_key_is_on_the_bus_as_a_hash_alone(bus: Bus, ask: Ask, tenant: str) -> None:
    made = await ask(
        "create_key", CreateKey(tenant=tenant, name="ci", roles=("viewer",)), CreatedKey
    )

    entry = await stored(bus, made.secret)

    assert entry is not None
    record = KeyRecord.model_validate_json(entry.value)
    assert (record.tenant, record.roles, record.key_id) == (tenant, ("viewer",), made.key.key_id)
    assert made.secret.encode() not in entry.value


async def test_keys_differ_and_are_listed_without_secrets(ask: Ask, tenant: str) -> None:
    first = await ask("create_key", CreateKey(tenant=tenant), CreatedKey)
    second = await ask("create_key", CreateKey(tenant=tenant), CreatedKey)

    listed = await ask("list_keys", ListKeys(tenant=tenant), Keys)

    assert first.secret != second.secret
    assert [key.key_id for key in listed.items] == [second.key.key_id, first.key.key_id]
    assert first.secret not in listed.model_dump_json()
    assert (await ask("list_keys", ListKeys(tenant=f"{tenant}_o"), Keys)).items == ()


async def test_revoked_key_is_worthless_at_once(bus: Bus, ask: Ask, tenant: str) -> None:
    made = await ask("create_key", CreateKey(tenant=tenant), CreatedKey)

    first = await ask("revoke_key", RevokeKey(tenant=tenant, key_id=made.key.key_id), KeyInfo)
    again = await ask("revoke_key", RevokeKey(tenant=tenant, key_id=made.key.key_id), KeyInfo)

    assert await stored(bus, made.secret) is None
    assert first.revoked_at == again.revoked_at
    assert (await ask("list_keys", ListKeys(tenant=tenant), Keys)).items == ()
    kept = await ask("list_keys", ListKeys(tenant=tenant, revoked=True), Keys)
    assert [key.key_id for key in kept.items] == [made.key.key_id]


async def test_key_of_another_tenant_cannot_be_revoked(bus: Bus, ask: Ask, tenant: str) -> None:
    made = await ask("create_key", CreateKey(tenant=tenant), CreatedKey)

    with pytest.raises(RejectedError) as caught:
        await ask("revoke_key", RevokeKey(tenant=f"{tenant}_o", key_id=made.key.key_id), KeyInfo)

    assert caught.value.code == "unknown_key"
    assert await stored(bus, made.secret) is not None


async def test_key_that_expires_leaves_the_bus_by_itself(bus: Bus, ask: Ask, tenant: str) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=1.5)
    made = await ask("create_key", CreateKey(tenant=tenant, expires_at=expires_at), CreatedKey)
    assert await stored(bus, made.secret) is not None

    async def gone() -> bool:
        return await stored(bus, made.secret) is None

    await eventually(gone)


async def test_key_that_would_have_expired_is_refused(ask: Ask, tenant: str) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)

    with pytest.raises(RejectedError) as caught:
        await ask("create_key", CreateKey(tenant=tenant, expires_at=past), CreatedKey)

    assert caught.value.details[0].path == "expires_at"
