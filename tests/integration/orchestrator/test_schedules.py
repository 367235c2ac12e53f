"""Schedules on a real server: each tick once, whoever is there, and nothing lost with an engine."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from typing import Any

from penstock.bus.capacity import LogCapacity
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import TransientError
from penstock.contracts.facts import RunInvoked, Trigger
from penstock.contracts.ids import shard_of
from penstock.contracts.json import Json
from penstock.contracts.plan import PublishedVersion
from penstock.contracts.schedules import (
    SCHEDULE_PROGRESS,
    ScheduleControl,
    ScheduleProgress,
    ScheduleRecord,
    schedule_run_id,
    ticks_after,
    timing_digest,
)
from penstock.runs.state import Entry
from penstock_orchestrator.schedules.scheduler import Scheduler
from tests.integration.orchestrator.conftest import (
    TENANT,
    CreateWorld,
    World,
    chain,
    engine_process,
)
from tests.support.waiting import eventually

INPUT: Json = {"at": "{{ schedule.tick }}", "local": "{{ schedule.scheduled_at }}"}


async def publish(world: World, name: str = "chain", version: int = 1) -> None:
    plan = chain("a")
    await world.put_plan(plan)
    value = PublishedVersion(name=name, kind=plan.kind, version=version, plan_digest=plan.digest())
    await Bucket(world.bus, subjects.PUBLISHED).put(
        subjects.published_key(TENANT, name), value.model_dump_json().encode()
    )


async def put(world: World, name: str = "often", **fields: Any) -> ScheduleRecord:
    """Put a schedule that ticks every quarter of a second, if nothing else is said."""
    if "cron" not in fields:
        fields = {"every_seconds": 0.25, **fields}
    fields = {"target": "chain", "input": INPUT, **fields}
    record = ScheduleRecord(name=name, **fields)
    await Bucket(world.bus, subjects.SCHEDULES).put(
        subjects.schedule_key(TENANT, name), record.model_dump_json().encode()
    )
    return record


async def control(world: World, *, paused: bool) -> None:
    value = ScheduleControl(paused=paused, changed_at=datetime.now(UTC))
    await Bucket(world.bus, subjects.SCHEDULES).put(
        subjects.schedule_part_key(TENANT, "often", "control"), value.model_dump_json().encode()
    )


async def set_progress(world: World, record: ScheduleRecord, progress: ScheduleProgress) -> None:
    await Bucket(world.bus, subjects.SCHEDULES).put(
        subjects.schedule_part_key(TENANT, record.name, "progress"),
        progress.model_dump_json().encode(),
    )


async def progress_of(world: World, name: str = "often") -> ScheduleProgress | None:
    entry = await Bucket(world.bus, subjects.SCHEDULES).get(
        subjects.schedule_part_key(TENANT, name, "progress")
    )
    return SCHEDULE_PROGRESS.validate_json(entry.value) if entry is not None else None


async def invoked(world: World) -> list[Entry]:
    """Return what asked for runs, in the order of the log."""
    found = [
        await world.reader.entry(message)
        async for page in world.reader.pages(subjects.RUNS, "run.*.*.*.in.invoke")
        for message in page
    ]
    return sorted(found, key=lambda entry: entry.seq)


def tick_of(entry: Entry) -> datetime:
    assert isinstance(entry.fact, RunInvoked)
    assert isinstance(entry.fact.input, dict)
    return datetime.fromisoformat(str(entry.fact.input["at"]))


async def fired(world: World, count: int, within: float = 30) -> list[datetime]:
    """Wait for so many runs; return the ticks of all."""

    async def enough() -> list[datetime]:
        try:
            ticks = [tick_of(entry) for entry in await invoked(world)]
        except TransientError as error:
            raise AssertionError("the bus is away") from error
        return ticks if len(ticks) >= count else []

    return await eventually(enough, within)


def gaps(ticks: list[datetime]) -> set[float]:
    return {(later - earlier).total_seconds() for earlier, later in pairwise(ticks)}


async def test_tick_starts_the_published_version_soon_after_its_time(world: World) -> None:
    await publish(world, version=7)
    await put(world, tags={"team": "ops"}, priority=5)

    ticks = await fired(world, 6)

    entries = await invoked(world)
    first = entries[0].fact
    assert isinstance(first, RunInvoked)
    assert (first.name, first.version, first.plan_digest) == ("chain", 7, chain("a").digest())
    assert (first.trigger, first.requested_by) == (Trigger.SCHEDULE, "schedule:often")
    assert (first.tags, first.priority) == ({"team": "ops", "schedule": "often"}, 5)
    assert entries[0].subject.run_id == schedule_run_id(TENANT, "often", ticks[0])
    late = sorted(entry.fact.occurred_at - tick_of(entry) for entry in entries)
    assert late[0] >= timedelta(0)
    assert late[len(late) // 2] < timedelta(seconds=0.5)
    assert gaps(ticks) == {0.25}


async def test_two_engines_fire_each_tick_once(create_world: CreateWorld) -> None:
    world = await create_world()
    await publish(world)
    for name in ("one", "two"):
        await world.start_engine(name)
    # Both look after it, as when their leases overlap.
    both = [
        Scheduler(
            bus,
            engine._writer,
            LogCapacity(bus, None),
            shards=world.settings.shards,
            held=lambda: range(2),
        )
        for bus, engine in zip(world.buses, world.engines, strict=True)
    ]
    for scheduler in both:
        await scheduler.start()
    await put(world)

    ticks = await fired(world, 12)

    for scheduler in both:
        await scheduler.stop()
    assert len(set(ticks)) == len(ticks)
    assert gaps(ticks) == {0.25}
    progress = await progress_of(world)
    assert progress is not None
    assert progress.fired <= len(await invoked(world))


async def test_killed_engine_loses_no_tick_and_repeats_none(create_world: CreateWorld) -> None:
    world = await create_world()
    await publish(world)
    await put(world)
    async with engine_process(world, "first") as first:
        await fired(world, 3)
        first.kill()
        await first.wait()
        before = len(await invoked(world))
        async with engine_process(world, "second"):
            ticks = await fired(world, before + 8)
    assert len(set(ticks)) == len(ticks)
    assert gaps(ticks) == {0.25}


async def test_ticks_go_on_after_the_bus_was_killed_and_none_is_lost(world: World) -> None:
    await publish(world)
    await put(world)
    before = len(await fired(world, 3))

    world.server.kill()
    await asyncio.to_thread(world.server.start)

    ticks = await fired(world, before + 12, within=40)
    assert len(set(ticks)) == len(ticks)
    assert gaps(ticks) == {0.25}


async def test_pending_tick_of_a_dead_engine_is_fired_although_its_time_is_long_over(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    await publish(world)
    record = await put(world, every_seconds=86_400.0)
    tick = datetime(2026, 1, 1, tzinfo=UTC)
    await set_progress(
        world,
        record,
        ScheduleProgress(
            timing=timing_digest(record), handled_until=datetime.now(UTC), pending=(tick,)
        ),
    )

    await world.start_engine()

    assert await fired(world, 1) == [tick]

    async def settled() -> bool:
        progress = await progress_of(world)
        return progress is not None and not progress.pending and progress.last_tick == tick

    await eventually(settled)


async def after_downtime(world: World, **fields: Any) -> tuple[list[datetime], list[datetime]]:
    """Return the ticks of ten hours without an engine, and those that were fired for them."""
    await publish(world)
    now = datetime.now(UTC)
    down = now - timedelta(hours=10)
    start = down - timedelta(minutes=30)
    record = await put(world, every_seconds=3600.0, starts_at=start, **fields)
    handled = ScheduleProgress(timing=timing_digest(record), handled_until=down)
    await set_progress(world, record, handled)
    late = now - timedelta(seconds=record.grace_seconds)
    missed = list(takewhile(lambda tick: tick <= late, ticks_after(record, down)))
    await world.start_engine()

    async def settled() -> bool:
        progress = await progress_of(world)
        return progress is not None and progress.handled_until > down and not progress.pending

    await eventually(settled)
    return missed, [tick_of(entry) for entry in await invoked(world)]


async def test_ticks_missed_in_downtime_are_skipped(create_world: CreateWorld) -> None:
    _, made_up = await after_downtime(await create_world(), missed="skip", grace_seconds=0.01)
    assert made_up == []


async def test_ticks_missed_in_downtime_are_made_up_for_once(create_world: CreateWorld) -> None:
    missed, made_up = await after_downtime(await create_world(), missed="once", grace_seconds=0.01)
    assert made_up == missed[-1:]


async def test_ticks_missed_in_downtime_are_all_made_up_for_in_order(
    create_world: CreateWorld,
) -> None:
    missed, made_up = await after_downtime(
        await create_world(), missed="all", missed_limit=4, grace_seconds=0.01
    )
    assert made_up == missed[-4:]


async def test_paused_schedule_fires_nothing_until_it_is_resumed(world: World) -> None:
    await publish(world)
    await put(world, missed="all", grace_seconds=0.5)
    await fired(world, 2)

    await control(world, paused=True)
    quiet = await eventually(lambda: _unchanged_for(world, timedelta(seconds=1)))
    resumed_at = datetime.now(UTC)
    await control(world, paused=False)

    ticks = await fired(world, quiet + 2)
    assert all(tick > resumed_at for tick in ticks[quiet:])


async def _unchanged_for(world: World, span: timedelta) -> int:
    """Return how many runs there are, if the latest began so long ago."""
    entries = await invoked(world)
    return len(entries) if datetime.now(UTC) - entries[-1].fact.occurred_at > span else 0


async def test_zone_of_a_schedule_is_the_one_its_cron_is_read_in(world: World) -> None:
    await publish(world)
    await put(world, cron="* * * * * *", timezone="Asia/Kolkata")

    await fired(world, 1)

    fact = (await invoked(world))[0].fact
    assert isinstance(fact, RunInvoked)
    assert isinstance(fact.input, dict)
    assert str(fact.input["local"]).endswith("+05:30")


async def test_tick_without_a_target_is_recorded_as_failed_and_the_next_one_fires(
    world: World,
) -> None:
    await put(world)

    async def failed() -> str:
        progress = await progress_of(world)
        assert progress is not None
        assert progress.failure is not None
        return progress.failure.error.code

    assert await eventually(failed) == "unknown_name"
    await publish(world)
    await fired(world, 1)

    async def well() -> bool:
        progress = await progress_of(world)
        return progress is not None and progress.fired > 0 and progress.failure is None

    await eventually(well)


async def test_deleted_schedule_fires_no_more(world: World) -> None:
    await publish(world)
    await put(world)
    await fired(world, 2)
    await Bucket(world.bus, subjects.SCHEDULES).delete(subjects.schedule_key(TENANT, "often"))
    await eventually(lambda: _unchanged_for(world, timedelta(seconds=1)))


async def test_many_schedules_of_one_moment_are_all_fired_and_none_early(world: World) -> None:
    await publish(world)
    at = datetime.now(UTC) + timedelta(seconds=4)
    bucket = Bucket(world.bus, subjects.SCHEDULES)
    for number in range(200):
        record = ScheduleRecord(
            name=f"s{number}", target="chain", input=INPUT, every_seconds=3600.0, starts_at=at
        )
        key = subjects.schedule_key(TENANT, record.name)
        await bucket.put(key, record.model_dump_json().encode())
    assert datetime.now(UTC) < at

    await fired(world, 200)

    early = [entry for entry in await invoked(world) if entry.fact.occurred_at < at]
    assert early == []
    assert {shard_of(f"{TENANT}.s{number}", 2) for number in range(200)} == {0, 1}
