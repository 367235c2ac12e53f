"""Runs that wait for longer than the log keeps anything, with an engine and a projector at work."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from penstock.bus.claims import Claims
from penstock.bus.reader import LogReader
from penstock.contracts import subjects
from penstock.contracts.facts import (
    DefinitionKind,
    RunInvoked,
    RunStatus,
    SignalReceived,
    fact_bytes,
)
from penstock.contracts.ids import run_id_from, shard_of
from penstock.contracts.plan import (
    Plan,
    ToolNode,
    WaitNode,
)
from penstock.contracts.usage import RunLimits
from penstock_archive.settings import ArchiveSettings
from tests.integration.archive.test_keeping import archive, settled
from tests.integration.orchestrator.conftest import NOOP, TENANT, World
from tests.support.waiting import eventually

AGE = timedelta(days=20)
YEAR_SECONDS = 366 * 86_400.0


def steps_around(wait: WaitNode) -> Plan:
    """A step, a wait, another step."""
    return Plan(
        name="patient",
        kind=DefinitionKind.WORKFLOW,
        nodes=(
            ToolNode(id="a", ref="noop", input={}),
            wait,
            ToolNode(id="b", ref="noop", needs=("w",), input={"got": "{{ steps.w }}"}),
        ),
        tools={"noop": NOOP},
        timeout_seconds=YEAR_SECONDS,
        output="{{ steps.b.output }}",
    )


async def begin(world: World, plan: Plan, *, limits: RunLimits | None = None) -> str:
    """Start a run that was asked for long ago; it waits when this returns."""
    await world.put_plan(plan)
    at = datetime.now(UTC) - AGE
    run_id = run_id_from(int(at.timestamp() * 1000), b"0123456789")
    fact = RunInvoked(
        occurred_at=at,
        name=plan.name,
        kind=plan.kind,
        version=1,
        plan_digest=plan.digest(),
        limits=limits or RunLimits(),
    )
    await world.writer.append(subjects.invoke(world.prefix(run_id)), fact_bytes(fact))
    await world.scheduled(run_id, "a")
    await world.report(run_id, "a", output="first")
    await world.until(run_id, lambda state: state.status is RunStatus.WAITING)
    return run_id


async def grow_old(world: World, run_id: str) -> None:
    """Stop the engines, and let the log lose all that it has of the run."""
    await world.stop_engines()
    await eventually(lambda: settled(world.bus))
    wanted = subjects.run_filter(TENANT, shard_of(run_id, world.settings.shards), run_id)
    await world.bus.api(f"STREAM.PURGE.{subjects.RUNS}", {"filter": wanted})
    in_log = LogReader(world.bus, Claims(world.bus, world.settings.claim_threshold_bytes))
    shard = shard_of(run_id, world.settings.shards)
    assert await in_log.read_run(TENANT, shard, run_id) == []


async def assert_done_once(world: World, run_id: str) -> None:
    """The run goes on behind its wait to its end; nothing happens twice."""
    await world.scheduled(run_id, "b")
    await world.report(run_id, "b", output="last")
    ended = await world.ended(run_id)
    assert (ended.status, ended.output) == (RunStatus.DONE, "last")
    await eventually(lambda: settled(world.bus))
    entries = await world.log(run_id)
    happened = Counter(
        (entry.subject.event, entry.subject.step_id)
        for entry in entries
        if entry.subject.event in ("invoke", "step", "result", "end")
    )
    assert happened == {
        ("invoke", ""): 1,
        ("step", "a"): 1,
        ("result", "a"): 1,
        ("step", "b"): 1,
        ("result", "b"): 1,
        ("end", ""): 1,
    }
    numbers = [entry.subject.decision for entry in entries if entry.subject.decision]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_run_older_than_the_log_goes_on_when_its_signal_comes(
    world: World, settings: ArchiveSettings
) -> None:
    async with archive(world.bus, settings):
        await world.start_engine()
        run_id = await begin(world, steps_around(WaitNode(id="w", needs=("a",), signal="go")))
        await grow_old(world, run_id)
        await world.start_engine("engine-2")
        signal = SignalReceived(occurred_at=datetime.now(UTC), name="go", payload=7)
        subject = subjects.signal(world.prefix(run_id), "s1")
        await world.writer.append(subject, fact_bytes(signal))
        await assert_done_once(world, run_id)


async def test_run_older_than_the_log_goes_on_when_its_time_comes(
    world: World, settings: ArchiveSettings
) -> None:
    async with archive(world.bus, settings):
        await world.start_engine()
        run_id = await begin(world, steps_around(WaitNode(id="w", needs=("a",), seconds=3)))
        await grow_old(world, run_id)
        await world.start_engine("engine-2")
        await assert_done_once(world, run_id)


async def test_run_older_than_the_log_ends_at_its_deadline_after_a_restart(
    world: World, settings: ArchiveSettings
) -> None:
    limits = RunLimits(timeout_seconds=AGE.total_seconds() + 4)
    async with archive(world.bus, settings):
        await world.start_engine()
        run_id = await begin(
            world, steps_around(WaitNode(id="w", needs=("a",), signal="go")), limits=limits
        )
        await grow_old(world, run_id)
        await world.start_engine("engine-2")
        ended = await world.ended(run_id)
        assert ended.error is not None
        assert ended.error.code == "run_timeout"
