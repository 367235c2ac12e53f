"""A run that waits for longer than the log keeps anything goes on, from the archive's facts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.history import HistoryReader, is_young
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError
from penstock.contracts.facts import SignalReceived, fact_bytes
from penstock.contracts.ids import run_id_from, run_id_from_key, shard_of
from penstock.runs.state import Entry, fold, new_state
from penstock.settings import CoreSettings
from penstock_archive.settings import ArchiveSettings
from tests.integration.archive.test_keeping import (
    TENANT,
    archive,
    create_run,
    forget,
    publish_packed,
    run_of,
)
from tests.integration.archive.test_projector import publish

RUN_ID, PREFIX = run_of("A")
SHARD = shard_of(RUN_ID, 8)


def create_reader(bus: Bus, kind: type[LogReader] = HistoryReader) -> LogReader:
    return kind(bus, Claims(bus, CoreSettings().claim_threshold_bytes))


def folded(entries: Sequence[Entry]) -> object:
    return fold(new_state(TENANT, SHARD, RUN_ID), entries)


async def test_run_whose_beginning_the_log_has_lost_is_read_from_archive_and_tail(
    bus: Bus, settings: ArchiveSettings
) -> None:
    old = datetime.now(UTC) - timedelta(days=20)
    await publish_packed(bus, create_run("A", said="x" * 200_000, ended=False, at=old))
    whole = await create_reader(bus, LogReader).read_run(TENANT, SHARD, RUN_ID)
    async with archive(bus, settings):
        await forget(bus, "A")
        reader = create_reader(bus)
        # A timer wakes it up: the log has nothing at all.
        assert await reader.read_run(TENANT, SHARD, RUN_ID) == whole
        # A signal reaches it: the log has that alone.
        signal = SignalReceived(occurred_at=datetime.now(UTC), name="go")
        await publish(bus, [(subjects.signal(PREFIX, "s1"), fact_bytes(signal))])
        found = await reader.read_run(TENANT, SHARD, RUN_ID, at_least_seq=4)
        assert [entry.subject.event for entry in found] == ["invoke", "step", "result", "signal"]
        assert folded(found) == folded([*whole, found[-1]])


async def test_old_run_waits_for_an_archive_that_does_not_answer(bus: Bus) -> None:
    with pytest.raises(TransientError, match="archive_needed") as raised:
        await create_reader(bus).read_run(TENANT, SHARD, RUN_ID)
    assert raised.value.retry_after_seconds == 30


async def test_young_run_is_never_asked_of_the_archive(bus: Bus) -> None:
    young = run_id_from(int(time.time() * 1000), b"0123456789")
    assert await create_reader(bus).read_run(TENANT, shard_of(young, 8), young) == []


def test_age_of_a_run_is_in_its_id_unless_that_is_derived() -> None:
    now = time.time()
    for days, young in ((0, True), (5, True), (6.1, False), (400, False), (-1, True)):
        run_id = run_id_from(int((now - days * 86_400) * 1000), b"0123456789")
        assert is_young(run_id, now) is young
    assert not any(is_young(run_id_from_key("acme", str(key)), now) for key in range(1000))
