"""A projector that is killed between any two of its effects loses nothing and doubles nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from penstock.bus.connection import Bus
from penstock.contracts import subjects
from penstock_archive.migrate import migrate
from penstock_archive.settings import ArchiveSettings
from tests.integration.archive.test_projector import publish
from tests.support.archived import assert_archived
from tests.support.histories import random_log

SCRIPT = Path(__file__).with_name("doomed_projector.py")


async def test_projector_killed_before_each_of_its_effects_projects_all_exactly_once(
    bus: Bus, settings: ArchiveSettings, engine: AsyncEngine, database_url: str
) -> None:
    await migrate(database_url)
    log = random_log(random.Random(31), 90)
    await publish(bus, log)
    small = settings.model_copy(update={"projector_batch_size": 12})
    # The URL is a secret, and written as one; a child is to have it all the same.
    told = {
        **small.model_dump(mode="json", exclude={"database_url", "data_dir"}),
        "database_url": database_url,
        "data_dir": str(small.data_dir),
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        json.dumps(told),
        str(len(log)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PENSTOCK_LOG_LEVEL": "error"},
    )
    output, complaint = await asyncio.wait_for(child.communicate(), 110)
    assert child.returncode == 0, complaint.decode()
    deaths = json.loads(output.splitlines()[-1])
    kinds = {death.split()[0].rstrip(";") for death in deaths}
    assert {"BEGIN", "UPDATE", "INSERT", "COMMIT", "acknowledge"} <= kinds, deaths
    await assert_archived(engine, log)
    info = await bus.api(f"CONSUMER.INFO.{subjects.RUNS}.{subjects.PROJECTOR}")
    assert info["delivered"]["stream_seq"] == len(log)
