"""Concurrency keys on a real server: places are kept although engines die in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import defaultdict
from datetime import UTC, datetime

from penstock.bus.claims import Claims
from penstock.bus.connection import Bus, connect
from penstock.bus.kv import Bucket
from penstock.bus.reader import LogReader
from penstock.bus.writer import LogWriter
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, TransientError
from penstock.contracts.facts import Decision, RunEnded, RunStatus, fact_bytes
from penstock.contracts.ids import shard_of
from penstock.contracts.plan import ConcurrencySpec
from penstock.contracts.turns import TURN_RECORD, TurnRecord
from penstock_orchestrator.engine.admission import Admission
from tests.integration.orchestrator.conftest import TENANT, CreateWorld, World, chain
from tests.support.waiting import eventually

KEY = "deploy/production"
ONE = ConcurrencySpec()


def admission(world: World) -> Admission:
    return Admission(world.bus, world.writer, world.reader, shards=world.settings.shards)


async def ask(world: World, run_id: str, spec: ConcurrencySpec = ONE, **options: int) -> str:
    shard = shard_of(run_id, world.settings.shards)
    given = await admission(world).request(TENANT, run_id, shard, KEY, spec, **options)
    return given.outcome if given.error is None else given.error.code


async def end(writer: LogWriter, world: World, run_id: str) -> None:
    """State a run's end, as an engine would."""
    fact = RunEnded(
        occurred_at=datetime.now(UTC), decision=Decision(cause_seq=0), status=RunStatus.DONE
    )
    prefix = world.prefix(run_id)
    with contextlib.suppress(ConflictError):
        await writer.append(
            subjects.out(prefix, 1, "end"), fact_bytes(fact), fence=subjects.fence(prefix, 1)
        )


async def record(world: World) -> TurnRecord:
    bucket = Bucket(world.bus, subjects.TURNS)
    (name,) = await bucket.keys()
    entry = await bucket.get(name)
    assert entry is not None
    return TURN_RECORD.validate_json(entry.value)


async def invoke(world: World, count: int) -> list[str]:
    return [await world.invoke(chain("a"), store_plan=False) for _ in range(count)]


async def test_admitted_run_finds_the_signal_in_its_log_and_the_next_one_waits(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    first, second = await invoke(world, 2)

    assert await ask(world, first) == "admitted"
    assert await ask(world, second) == "queued"
    assert (await world.state(first)).admitted
    assert not (await world.state(second)).admitted

    await end(world.writer, world, first)
    await admission(world).release(TENANT, first, KEY)
    assert (await world.state(second)).admitted


async def test_asking_and_leaving_again_is_harmless(create_world: CreateWorld) -> None:
    world = await create_world()
    first, second, third = await invoke(world, 3)
    for _ in range(2):
        assert await ask(world, first) == "admitted"
        assert await ask(world, second) == "queued"
    assert await ask(world, third) == "queued"
    for _ in range(2):
        await admission(world).release(TENANT, first, KEY)
    assert (await world.state(second)).admitted
    assert not (await world.state(third)).admitted


async def test_policies_for_one_too_many(create_world: CreateWorld) -> None:
    world = await create_world()
    holder, rejected, cancelled, newest = await invoke(world, 4)
    assert await ask(world, holder) == "admitted"

    assert await ask(world, rejected, ConcurrencySpec(policy="reject")) == "concurrency_limit"

    newcomer = ConcurrencySpec(policy="cancel_newest")
    assert await ask(world, cancelled, newcomer) == "concurrency_limit"
    assert (await world.state(cancelled)).cancel is not None

    assert await ask(world, newest, ConcurrencySpec(policy="cancel_oldest")) == "queued"
    assert (await world.state(holder)).cancel is not None
    await admission(world).release(TENANT, holder, KEY)
    assert (await world.state(newest)).admitted


async def test_higher_priority_is_admitted_first(create_world: CreateWorld) -> None:
    world = await create_world()
    holder, low, high = await invoke(world, 3)
    assert await ask(world, holder) == "admitted"
    assert await ask(world, low) == "queued"
    assert await ask(world, high, priority=10) == "queued"
    await admission(world).release(TENANT, holder, KEY)
    assert (await world.state(high)).admitted


async def test_key_that_nobody_uses_goes_by_itself(create_world: CreateWorld) -> None:
    world = await create_world()
    (run_id,) = await invoke(world, 1)
    await ask(world, run_id)
    await admission(world).release(TENANT, run_id, KEY)
    info = await world.bus.api(
        f"STREAM.MSG.GET.KV_{subjects.TURNS}", {"last_by_subj": f"$KV.{subjects.TURNS}.>"}
    )
    assert (await record(world)).empty
    assert "hdrs" in info["message"], "it has a time to live"


async def test_sweep_frees_places_of_ended_runs_and_tells_who_was_not_told(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    first, second, third = await invoke(world, 3)
    for run_id in (first, second, third):
        await ask(world, run_id)
    # An engine that dies between the end and its effects, twice.
    await end(world.writer, world, first)

    assert await admission(world).sweep() == 1
    assert (await world.state(second)).admitted

    bucket = Bucket(world.bus, subjects.TURNS)
    (name,) = await bucket.keys()
    moved = (await record(world)).model_copy(
        update={"holders": (await record(world)).queue, "queue": ()}
    )
    await bucket.put(name, moved.model_dump_json().encode())
    assert await admission(world).sweep(range(world.settings.shards)) == 0
    assert (await world.state(third)).admitted
    assert await admission(world).sweep([]) == 0


async def test_many_runs_ask_at_once_with_few_writes(create_world: CreateWorld) -> None:
    world = await create_world()
    runs = await invoke(world, 100)
    one = admission(world)
    verdicts = await asyncio.gather(
        *(one.request(TENANT, run_id, shard_of(run_id, 2), KEY, ONE) for run_id in runs)
    )
    assert [verdict.outcome for verdict in verdicts].count("admitted") == 1
    info = await world.bus.api(f"STREAM.INFO.KV_{subjects.TURNS}")
    assert info["state"]["last_seq"] <= 10


class Mortal:
    """What an engine does for runs with a key; it may be killed at any moment."""

    def __init__(self, world: World, runs: list[str], bus: Bus, writer: LogWriter) -> None:
        self.world = world
        self.runs = runs
        self.bus = bus
        self.writer = writer
        reader = LogReader(bus, Claims(bus, world.settings.claim_threshold_bytes))
        self.admission = Admission(bus, writer, reader, shards=world.settings.shards)
        self.task = asyncio.create_task(self.work())

    @classmethod
    async def born(cls, world: World, runs: list[str]) -> Mortal:
        bus = await connect(world.settings, name="mortal")
        claims = Claims(bus, world.settings.claim_threshold_bytes)
        writer = await LogWriter(bus, world.settings, claims).start()
        return cls(world, runs, bus, writer)

    async def work(self) -> None:
        await asyncio.gather(*(self.live(run_id) for run_id in self.runs))

    async def live(self, run_id: str) -> None:
        shard = shard_of(run_id, self.world.settings.shards)
        with contextlib.suppress(TransientError):
            while (state := await self.world.state(run_id)).ended is None:
                if state.admitted:
                    await end(self.writer, self.world, run_id)
                else:
                    await self.admission.request(TENANT, run_id, shard, KEY, ONE)
                    await asyncio.sleep(0.01)
            await self.admission.release(TENANT, run_id, KEY)

    async def die(self) -> None:
        """Stop in the middle of whatever it does."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for line in self.admission._lines.values():
            if line.worker is not None:
                line.worker.cancel()
        await self.bus.close()


async def test_runs_of_one_key_never_overlap_while_engines_are_killed(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    runs = await invoke(world, 50)
    chance = random.Random(7)
    alive: list[Mortal] = []
    sweeper = admission(world)

    async def done() -> int:
        return sum([(await world.state(run_id)).ended is not None for run_id in runs])

    deaths = 0
    while await done() < len(runs):
        alive = [one for one in alive if not one.task.done()]
        if len(alive) < 2:
            part = [run_id for run_id in runs if (await world.state(run_id)).ended is None]
            alive.append(await Mortal.born(world, part))
        await asyncio.sleep(chance.uniform(0.0, 0.15))
        if deaths < 15:
            await alive.pop(chance.randrange(len(alive))).die()
            deaths += 1
        await sweeper.sweep()
    for one in alive:
        await one.die()

    places: dict[str, dict[str, int]] = defaultdict(dict)
    for run_id in runs:
        for entry in await world.log(run_id):
            places[run_id][entry.subject.event] = entry.seq
    spans = sorted((found["signal"], found["end"]) for found in places.values())
    assert len(spans) == 50
    assert deaths >= 5
    for (_, ended), (begun, _) in itertools.pairwise(spans):
        assert ended < begun, "the next one began before the one before had ended"
    await eventually(lambda: _swept(sweeper, world))


async def _swept(sweeper: Admission, world: World) -> bool:
    await sweeper.sweep()
    return (await record(world)).empty
