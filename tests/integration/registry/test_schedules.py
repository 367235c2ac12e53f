"""Schedules in the registry: published for the engines, gone with all that was kept beside them."""

from __future__ import annotations

import pytest

from penstock.bus.connection import Bus
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError
from penstock.contracts.rpc import Applied, ApplyDocuments, Deleted, DeleteDefinition, DocumentKind
from penstock.contracts.schedules import SCHEDULE_RECORD
from tests.integration.registry.conftest import Ask
from tests.integration.registry.documents import agent, document, tool

pytestmark = pytest.mark.usefixtures("registry")

SCHEDULE = document("Schedule", "nightly", {"target": "helper", "cron": "@daily"})


async def test_schedule_is_published_for_the_engines_and_keeps_its_target(
    bus: Bus, ask: Ask, tenant: str
) -> None:
    documents = (SCHEDULE, agent(), tool())
    applied = await ask("apply", ApplyDocuments(tenant=tenant, documents=documents), Applied)
    assert [result.kind.value for result in applied.results] == ["tool", "agent", "schedule"]
    entry = await Bucket(bus, subjects.SCHEDULES).get(subjects.schedule_key(tenant, "nightly"))
    assert entry is not None
    assert SCHEDULE_RECORD.validate_json(entry.value).cron == "@daily"

    deletion = DeleteDefinition(tenant=tenant, kind=DocumentKind.AGENT, name="helper")
    with pytest.raises(ConflictError) as caught:
        await ask("delete_definition", deletion, Deleted)
    assert caught.value.code == "in_use"


async def test_deleted_schedule_leaves_nothing_behind(bus: Bus, ask: Ask, tenant: str) -> None:
    documents = (SCHEDULE, agent(), tool())
    await ask("apply", ApplyDocuments(tenant=tenant, documents=documents), Applied)
    bucket = Bucket(bus, subjects.SCHEDULES)
    await bucket.put(subjects.schedule_part_key(tenant, "nightly", "progress"), b"{}")
    await bucket.put(subjects.schedule_part_key(tenant, "nightly", "control"), b"{}")

    deletion = DeleteDefinition(tenant=tenant, kind=DocumentKind.SCHEDULE, name="nightly")
    await ask("delete_definition", deletion, Deleted)

    assert await bucket.keys(f"{tenant}.>") == []
