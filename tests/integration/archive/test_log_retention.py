"""The engine deletes ended, archived runs from the log, and never an open one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from penstock import rpc
from penstock.bus.capacity import LogCapacity
from penstock.bus.claims import Claims
from penstock.bus.connection import Bus
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.archive import FactPage, RunFacts
from penstock.contracts.errors import TransientError
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    ParentRef,
    RunEnded,
    RunInvoked,
    RunStatus,
    SignalReceived,
    StepKind,
    StepResult,
    fact_bytes,
)
from penstock.contracts.ids import shard_of
from penstock.contracts.plan import WaitNode
from penstock_archive.settings import ArchiveSettings
from penstock_orchestrator.engine.retention import LogRetention
from tests.integration.archive.test_keeping import archive, run_of, settled
from tests.integration.archive.test_waiting import assert_done_once, begin, steps_around
from tests.integration.orchestrator.conftest import TENANT, World, chain
from tests.support.waiting import eventually

NOW = datetime.now(UTC)
KEEP = timedelta(days=7)
LATER = timedelta(days=8)


def create_retention(world: World, *, max_bytes: int | None = None) -> LogRetention:
    return LogRetention(
        world.bus,
        LogReader(world.bus, Claims(world.bus, 1_000_000)),
        keep=KEEP,
        max_bytes=max_bytes,
        shards=world.settings.shards,
        held=lambda: range(world.settings.shards),
        youngest=timedelta(0),
    )


async def in_log(world: World, run_id: str) -> list[str]:
    reader = LogReader(world.bus, Claims(world.bus, 1_000_000))
    entries = await reader.read_run(TENANT, shard_of(run_id, world.settings.shards), run_id)
    return [entry.subject.event for entry in entries]


async def in_archive(world: World, run_id: str) -> list[str]:
    request = RunFacts(tenant=TENANT, run_id=run_id, after=0)
    page = await rpc.call(world.bus, "archive", "run_facts", request, FactPage)
    return [subjects.parse_fact(item.subject).event for item in page.items]


async def finished(world: World) -> str:
    """A run of one step that has ended."""
    run_id = await world.invoke(chain("a"))
    await world.scheduled(run_id, "a")
    await world.report(run_id, "a")
    await world.ended(run_id)
    return run_id


async def acknowledged(bus: Bus) -> bool:
    """Whether the archive has the log, and the server knows it: acknowledgements come after."""
    if not await settled(bus):
        return False
    projector = await bus.api(f"CONSUMER.INFO.{subjects.RUNS}.{subjects.PROJECTOR}")
    return bool(projector["num_pending"] == projector["num_ack_pending"] == 0)


async def send_go(world: World, run_id: str) -> None:
    signal = SignalReceived(occurred_at=datetime.now(UTC), name="go", payload=7)
    await world.writer.append(subjects.signal(world.prefix(run_id), "s1"), fact_bytes(signal))


async def test_old_open_run_survives_and_completes_while_ended_ones_leave_the_log(
    world: World, settings: ArchiveSettings
) -> None:
    async with archive(world.bus, settings):
        await world.start_engine()
        waiting = await begin(world, steps_around(WaitNode(id="w", needs=("a",), signal="go")))
        ended = await finished(world)
        await eventually(lambda: acknowledged(world.bus))
        before = await in_log(world, waiting)

        assert await create_retention(world).trim(datetime.now(UTC)) == 0
        assert await create_retention(world).trim(datetime.now(UTC) + LATER) == 1

        assert await in_log(world, ended) == []
        assert await in_archive(world, ended) == ["invoke", "step", "result", "end"]
        assert await in_log(world, waiting) == before
        await world.stop_engines()
        await world.start_engine("engine-2")
        await send_go(world, waiting)
        await assert_done_once(world, waiting)


async def test_run_that_the_archive_does_not_have_stays_in_the_log(world: World) -> None:
    await world.start_engine()
    run_id = await finished(world)

    assert await create_retention(world, max_bytes=1).trim(datetime.now(UTC) + LATER) == 0

    assert await in_log(world, run_id) == ["invoke", "step", "result", "end"]


async def test_full_log_loses_ended_runs_and_refuses_new_ones_when_only_open_ones_are_left(
    world: World, settings: ArchiveSettings
) -> None:
    async with archive(world.bus, settings):
        await world.start_engine()
        waiting = await begin(world, steps_around(WaitNode(id="w", needs=("a",), signal="go")))
        ended = [await finished(world) for _ in range(3)]
        await eventually(lambda: acknowledged(world.bus))
        with pytest.raises(TransientError, match="log_full"):
            await LogCapacity(world.bus, 1).require()

        assert await create_retention(world, max_bytes=1).trim(datetime.now(UTC)) == 3
        assert await create_retention(world, max_bytes=1).trim(datetime.now(UTC)) == 0

        assert [await in_log(world, run_id) for run_id in ended] == [[], [], []]
        with pytest.raises(TransientError, match="log_full"):
            await LogCapacity(world.bus, 1).require()
        await LogCapacity(world.bus, 1_000_000).require()
        await send_go(world, waiting)
        await assert_done_once(world, waiting)


async def test_run_with_an_unreadable_beginning_stays_and_blocks_no_other(
    world: World, settings: ArchiveSettings
) -> None:
    async with archive(world.bus, settings):
        end = RunEnded(occurred_at=NOW, decision=Decision(cause_seq=1), status=RunStatus.DONE)
        unreadable = [
            subjects.run_prefix(TENANT, shard, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
            for shard in range(world.settings.shards)
        ]
        for prefix in unreadable:
            await world.writer.append(subjects.invoke(prefix), b"{}")
            await world.writer.append(subjects.out(prefix, 1, "end"), fact_bytes(end))
        await world.start_engine()
        ended = [await finished(world) for _ in range(3)]
        await eventually(lambda: acknowledged(world.bus))

        assert await create_retention(world).trim(datetime.now(UTC) + LATER) == 3

        assert [await in_log(world, run_id) for run_id in ended] == [[], [], []]
        reader = LogReader(world.bus, Claims(world.bus, 1_000_000))
        for prefix in unreadable:
            assert await reader.read_message(subjects.RUNS, subjects.invoke(prefix)) is not None


async def test_interrupted_deletion_is_completed_by_the_next_pass(
    world: World, settings: ArchiveSettings
) -> None:
    async with archive(world.bus, settings):
        await world.start_engine()
        run_id = await finished(world)
        await eventually(lambda: acknowledged(world.bus))
        first = await world.bus.api(
            f"STREAM.MSG.GET.{subjects.RUNS}",
            {"last_by_subj": subjects.invoke(world.prefix(run_id))},
        )
        await world.bus.api(f"STREAM.MSG.DELETE.{subjects.RUNS}", {"seq": first["message"]["seq"]})

        assert await create_retention(world).trim(datetime.now(UTC) + LATER) == 1

        assert await in_log(world, run_id) == []


async def test_child_stays_until_its_open_parent_has_its_result(
    world: World, settings: ArchiveSettings
) -> None:
    parent_id, parent = run_of("parent")
    child_id, child = run_of("child")
    invoked = RunInvoked(
        occurred_at=NOW, name="n", kind=DefinitionKind.WORKFLOW, version=1, plan_digest="d"
    )
    ref = ParentRef(
        run_id=parent_id,
        shard=shard_of(parent_id, world.settings.shards),
        step_id="c",
        attempt=1,
        root_run_id=parent_id,
        depth=1,
    )
    below = RunInvoked(
        occurred_at=NOW,
        name="n",
        kind=DefinitionKind.WORKFLOW,
        version=1,
        plan_digest="d",
        parent=ref,
    )
    end = RunEnded(occurred_at=NOW, decision=Decision(cause_seq=2), status=RunStatus.DONE)
    result = StepResult(
        occurred_at=NOW, kind=StepKind.RUN, name="n", status="succeeded", started_at=NOW
    )
    async with archive(world.bus, settings):
        await world.writer.append(subjects.invoke(parent), fact_bytes(invoked))
        await world.writer.append(subjects.invoke(child), fact_bytes(below))
        await world.writer.append(subjects.out(child, 1, subjects.END_SUFFIX), fact_bytes(end))
        await eventually(lambda: acknowledged(world.bus))

        assert await create_retention(world).trim(datetime.now(UTC) + LATER) == 0
        assert await in_log(world, child_id) == ["invoke", "end"]

        await world.writer.append(subjects.result(parent, "c", 1), fact_bytes(result))
        assert await create_retention(world).trim(datetime.now(UTC) + LATER) == 1
        assert await in_log(world, child_id) == []


async def test_run_id_of_a_trimmed_run_can_be_used_again(
    world: World, settings: ArchiveSettings
) -> None:
    async with archive(world.bus, settings):
        await world.start_engine()
        run_id = await finished(world)
        await eventually(lambda: acknowledged(world.bus))
        assert await create_retention(world).trim(datetime.now(UTC) + LATER) == 1

        plan = chain("a")
        again = RunInvoked(
            occurred_at=datetime.now(UTC),
            name=plan.name,
            kind=plan.kind,
            version=1,
            plan_digest=plan.digest(),
        )
        await world.writer.append(subjects.invoke(world.prefix(run_id)), fact_bytes(again))
        await world.scheduled(run_id, "a")
        await world.report(run_id, "a")
        assert (await world.ended(run_id)).status is RunStatus.DONE
