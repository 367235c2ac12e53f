"""The engine's shell on a real server: decisions, retries, crashes between effects, leases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from penstock.bus.writer import Record
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorFamily, ErrorInfo
from penstock.contracts.facts import (
    Decision,
    DefinitionKind,
    RunEnded,
    RunStatus,
    SignalReceived,
    StepResult,
    fact_bytes,
)
from penstock.contracts.ids import shard_of
from penstock.contracts.plan import Plan, WaitNode
from penstock.contracts.usage import RunLimits
from penstock_orchestrator.core.decide import decide
from penstock_orchestrator.engine.engine import Engine
from penstock_orchestrator.engine.runs import Plans
from tests.integration.orchestrator.conftest import TENANT, CreateWorld, World, chain, fan
from tests.support.waiting import eventually

TRANSIENT = ErrorInfo(code="busy", message="try later", family=ErrorFamily.TRANSIENT)
REJECTED = ErrorInfo(code="nonsense", message="no")


async def test_engine_runs_steps_in_order_and_ends_with_the_last_output(world: World) -> None:
    run_id = await world.invoke(chain("a", "b"))
    state = await world.scheduled(run_id, "a")
    assert "b" not in state.steps

    await world.report(run_id, "a", output=1)
    await world.scheduled(run_id, "b")
    await world.report(run_id, "b", output={"answer": 2})

    ended = await world.ended(run_id)
    assert (ended.status, ended.output) == (RunStatus.DONE, {"answer": 2})


async def test_engine_fans_out_and_joins(world: World) -> None:
    run_id = await world.invoke(fan(50))
    await world.until(run_id, lambda s: s.open_steps == 50)

    for number in range(50):
        await world.report(run_id, f"n{number}")

    assert (await world.ended(run_id)).output == "all"
    decisions = {entry.subject.decision for entry in await world.log(run_id)}
    assert decisions == {0, 1, 2}


async def test_transient_failure_is_tried_again_after_a_durable_timer(world: World) -> None:
    run_id = await world.invoke(chain("a"))
    await world.scheduled(run_id, "a")

    await world.report(run_id, "a", error=TRANSIENT)
    state = await world.scheduled(run_id, "a", attempt=2)
    await world.report(run_id, "a", 2, output="at last")

    assert (await world.ended(run_id)).output == "at last"
    assert state.steps["a"].attempt == 2


async def test_rejected_failure_ends_the_run_with_the_steps_error(world: World) -> None:
    run_id = await world.invoke(chain("a", "b"))
    await world.scheduled(run_id, "a")

    await world.report(run_id, "a", error=REJECTED)

    ended = await world.ended(run_id)
    assert ended.status is RunStatus.FAILED
    assert ended.error is not None
    assert (ended.error.code, ended.error.details[0].path) == ("nonsense", "a")


@pytest.mark.parametrize(
    "body",
    [b"\xff no fact", b'{"type":"step.result"}', b'{"claim":"sha256","sha256":"0","size_bytes":1}'],
)
async def test_result_that_cannot_be_read_fails_its_step(world: World, body: bytes) -> None:
    run_id = await world.invoke(chain("a", "b"))
    await world.scheduled(run_id, "a")

    await world.writer.append(subjects.result(world.prefix(run_id), "a", 1), body)

    ended = await world.ended(run_id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (RunStatus.FAILED, "unreadable_result")
    # Every reader of the log sees the same failure.
    assert (await world.state(run_id)).steps["a"].status == "failed"


async def test_transient_failures_are_not_endless(world: World) -> None:
    run_id = await world.invoke(chain("a"))

    for attempt in (1, 2, 3):
        await world.scheduled(run_id, "a", attempt)
        await world.report(run_id, "a", attempt, error=TRANSIENT)

    ended = await world.ended(run_id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (RunStatus.FAILED, "busy")


async def test_cancel_ends_the_run_and_tells_the_runners(world: World) -> None:
    told: list[str] = []

    async def listen(message: object) -> None:
        told.append(str(getattr(message, "subject", "")))

    await world.bus.subscribe(subjects.STOP_SPACE, listen)
    run_id = await world.invoke(chain("a", "b"))
    await world.scheduled(run_id, "a")

    await world.cancel(run_id)

    assert (await world.ended(run_id)).status is RunStatus.CANCELLED
    await eventually(
        lambda: [subjects.parse_stop(subject) for subject in told] == [run_id], within=30
    )
    await world.report(run_id, "a")
    last = (await world.log(run_id))[-1]
    assert isinstance(last.fact, StepResult), "a late outcome is kept, and starts nothing"


async def test_cancel_before_any_engine_ran_starts_nothing(create_world: CreateWorld) -> None:
    world = await create_world()
    run_id = await world.invoke(chain("a"))
    await world.cancel(run_id)

    await world.start_engine()

    assert (await world.ended(run_id)).status is RunStatus.CANCELLED
    log = await world.log(run_id)
    assert "step" not in {entry.subject.event for entry in log}
    ends = [entry.seq for entry in log if entry.subject.event == "end"]
    assert max(entry.seq for entry in log) == ends[0]


async def test_run_without_its_plan_fails_instead_of_hanging(world: World) -> None:
    run_id = await world.invoke(chain("a"), store_plan=False)

    ended = await world.ended(run_id)
    assert ended.error is not None
    assert ended.error.code == "plan_missing"


async def test_run_ends_at_its_deadline_though_nobody_reports(world: World) -> None:
    run_id = await world.invoke(chain("a"), limits=RunLimits(timeout_seconds=0.5))

    ended = await world.ended(run_id)

    assert ended.error is not None
    assert (ended.status, ended.error.code) == (RunStatus.FAILED, "run_timeout")


async def test_expired_step_is_stated_as_failed_and_tried_again(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    await world.start_engine()
    plan = chain("a")
    tool = plan.tools["noop"].model_copy(update={"timeout_seconds": 0.2})
    run_id = await world.invoke(plan.model_copy(update={"tools": {"noop": tool}}))

    state = await world.scheduled(run_id, "a", attempt=2)

    assert state.steps["a"].attempt == 2
    results = [e.fact for e in await world.log(run_id) if isinstance(e.fact, StepResult)]
    assert [r.error.code for r in results if r.error is not None] == ["step_timeout"]


async def test_second_engine_takes_over_when_the_first_is_gone(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    first = await world.start_engine("first")
    run_id = await world.invoke(chain("a", "b"))
    await world.scheduled(run_id, "a")
    second = await world.start_engine("second")
    await first.stop()
    world.engines.remove(first)

    await world.report(run_id, "a")
    await world.scheduled(run_id, "b")
    await world.report(run_id, "b", output="done by another")

    assert (await world.ended(run_id)).output == "done by another"
    await eventually(lambda: second.leases.held == [0, 1])


async def test_two_engines_share_the_shards(create_world: CreateWorld) -> None:
    world = await create_world()
    first = await world.start_engine("first")
    assert first.leases.held == [0, 1]

    second = await world.start_engine("second")

    await eventually(
        lambda: (
            sorted(first.leases.held + second.leases.held) == [0, 1] and len(first.leases.held) == 1
        ),
        within=30,
    )
    runs = [await world.invoke(chain("a")) for _ in range(10)]
    for run_id in runs:
        await world.scheduled(run_id, "a")
        await world.report(run_id, "a")
    for run_id in runs:
        assert (await world.ended(run_id)).status is RunStatus.DONE


async def test_decision_left_half_published_is_completed(create_world: CreateWorld) -> None:
    world = await create_world()
    plan = fan(3)
    run_id = await world.invoke(plan)
    # An engine that dies after the first message of its decision.
    state = await world.state(run_id)
    decided = decide(plan, state, datetime.now(UTC), state.last_seq)
    assert decided is not None
    first = decided.outputs[0]
    await world.writer.append(
        subjects.out(world.prefix(run_id), 1, first.suffix),
        fact_bytes(first.fact),
        fence=subjects.fence(world.prefix(run_id), 1),
    )

    await world.start_engine()

    state = await world.until(
        run_id, lambda s: [p.status for p in s.steps.values()] == ["scheduled"] * 3
    )
    assert state.decisions == 1
    for number in range(3):
        await world.report(run_id, f"n{number}")
    assert (await world.ended(run_id)).status is RunStatus.DONE


async def test_engine_that_lost_the_race_follows_the_other(world: World) -> None:
    run_id = await world.invoke(chain("a", "b"))
    state = await world.scheduled(run_id, "a")
    # Somebody else decides on the outcome of "a" before our engine hears of it.
    now = datetime.now(UTC)
    result = StepResult(
        occurred_at=now,
        kind=state.steps["a"].kind,
        name="noop",
        status="succeeded",
        started_at=now - timedelta(seconds=1),
    )
    subject = subjects.result(world.prefix(run_id), "a", 1)
    await world.writer.append_all([_end_of(world, run_id), Record(subject, fact_bytes(result))])

    ended = await world.ended(run_id)

    assert ended.output == "the other's"
    await eventually(
        lambda: all(
            engine.engine.runs.has_ended(run_id) or not engine.engine.runs.known(run_id)
            for engine in world.engines
        ),
        within=30,
    )
    assert sum(entry.subject.event == "end" for entry in await world.log(run_id)) == 1


def _end_of(world: World, run_id: str) -> Record:
    fact = RunEnded(
        occurred_at=datetime.now(UTC),
        decision=Decision(cause_seq=0),
        status=RunStatus.DONE,
        output="the other's",
    )
    prefix = world.prefix(run_id)
    return Record(subjects.out(prefix, 2, "end"), fact_bytes(fact), subjects.fence(prefix, 2))


async def test_large_outputs_travel_as_claims(world: World) -> None:
    run_id = await world.invoke(chain("a", "b"))
    await world.scheduled(run_id, "a")
    large = "x" * 300_000

    await world.report(run_id, "a", output=large)
    await world.scheduled(run_id, "b")
    await world.report(run_id, "b", output=large)

    assert (await world.ended(run_id)).output == large


async def test_unreadable_input_becomes_a_dead_letter(world: World) -> None:
    run_id = await world.invoke(chain("a"))
    await world.scheduled(run_id, "a")
    subject = subjects.signal(world.prefix(run_id), "s1")

    await world.writer.append(subject, b'{"type":"no such fact"}')

    durable = subjects.engine_consumer(shard_of(run_id, world.settings.shards))

    async def buried() -> bool:
        found = await world.reader.read_message(
            subjects.DEAD, subjects.dead(subjects.RUNS, durable)
        )
        return found is not None and subject.encode() in found.body

    await eventually(buried)
    await world.report(run_id, "a")
    assert (await world.ended(run_id)).status is RunStatus.DONE


async def test_idle_run_is_reloaded_only_if_the_log_has_a_new_fact(
    create_world: CreateWorld,
) -> None:
    world = await create_world()
    plan = Plan(
        name="patient",
        kind=DefinitionKind.WORKFLOW,
        nodes=(WaitNode(id="w", signal="go", timeout_seconds=600.0),),
        timeout_seconds=3600.0,
    )
    run_id = await world.invoke(plan)
    engine = Engine(
        world.bus, world.writer, world.reader, Plans(world.bus), shards=world.settings.shards
    )
    slot = engine.runs.slot(TENANT, shard_of(run_id, world.settings.shards), run_id)

    async def timers() -> int:
        info = await world.bus.api(f"STREAM.INFO.{subjects.TIMERS}")
        return int(info["state"]["last_seq"])

    await engine.wake(slot, datetime.now(UTC))
    decided = await timers()
    await engine.check(slot, datetime.now(UTC))
    repaired = await timers()
    await engine.check(slot, datetime.now(UTC))
    assert decided < repaired == await timers()

    # No consumer delivers it: a wake-up that is lost.
    signal = SignalReceived(occurred_at=datetime.now(UTC), name="go")
    await world.writer.append(subjects.signal(world.prefix(run_id), "s1"), fact_bytes(signal))
    await engine.check(slot, datetime.now(UTC))
    assert (await world.ended(run_id)).status is RunStatus.DONE
