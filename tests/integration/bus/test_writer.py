"""The log writer: unique subjects, fences, order, batches, claims, lost acknowledgements."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from penstock.bus.reader import Stored
from penstock.bus.topology import ensure
from penstock.bus.writer import Record
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, TransientError
from penstock.contracts.facts import StepScheduled, fact_bytes
from penstock.contracts.messages import Claim
from penstock.contracts.structs import decode
from penstock.embedded import NatsServer
from tests.integration.bus.conftest import NOW, Bench, OpenBench, fact, more_than
from tests.support.waiting import eventually

MODES = pytest.mark.parametrize("batches", [False, True], ids=["singles", "batches"])


@pytest.fixture
def nothing_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append is given up before the writer would send it once more."""
    monkeypatch.setattr("penstock.bus.writer._ACK_TIMEOUT_SECONDS", 60.0)


def choose(bench: Bench, batches: bool) -> None:
    if batches:
        bench.batches_only()
    else:
        bench.writer.cost.slow = False


def decision(bench: Bench, number: int, *suffixes: str, body: bytes | None = None) -> list[Record]:
    """Return the messages of a decision, of which the first is fenced."""
    fence = subjects.fence(bench.prefix, number)
    return [
        Record(
            subjects.out(bench.prefix, number, suffix),
            body or fact(suffix),
            fence if index == 0 else None,
        )
        for index, suffix in enumerate(suffixes)
    ]


# -- other streams -------------------------------------------------------------------------------


@MODES
async def test_timers_and_facts_appended_together_are_all_stored(
    bench: Bench, batches: bool, nothing_is_sent_again: None
) -> None:
    choose(bench, batches)
    timers = [
        subjects.timer_set(bench.tenant, bench.shard, bench.run_id, f"t{n}") for n in range(3)
    ]
    schedule = {
        "Nats-Schedule": "@at 2099-01-01T00:00:00Z",
        "Nats-Schedule-Target": subjects.timer_due(bench.tenant, bench.shard, bench.run_id, "t"),
    }
    await bench.writer.append(timers[0], b"{}", headers=schedule)
    facts = [bench.writer.append(bench.signal(f"s{n}"), fact()) for n in range(20)]
    waits = [bench.writer.append(timer, b"{}", headers=schedule) for timer in timers[1:]]
    await asyncio.gather(*facts, *waits)

    assert len(await bench.stored()) == 20
    for timer in timers:
        assert await bench.reader.read_message(subjects.TIMERS, timer) is not None


# -- single messages -----------------------------------------------------------------------------


@MODES
async def test_append_returns_the_stored_sequence_and_keeps_body_and_headers(
    bench: Bench, batches: bool
) -> None:
    choose(bench, batches)
    sequence = await bench.writer.append(
        bench.signal("a"), fact("a"), headers={"traceparent": "00-x"}
    )

    stored = await bench.reader.read_message(subjects.RUNS, bench.signal("a"))

    assert stored is not None
    assert (stored.seq, stored.body) == (sequence, fact("a"))
    assert stored.headers["traceparent"] == "00-x"


@MODES
async def test_append_of_many_at_once_returns_the_sequence_of_each(
    bench: Bench, batches: bool
) -> None:
    choose(bench, batches)
    names = [f"s{number}" for number in range(700)]

    sequences = await asyncio.gather(
        *(bench.writer.append(bench.signal(name), fact(name)) for name in names)
    )

    stored = await bench.stored()
    assert {f"in.signal.{name}": seq for name, seq in zip(names, sequences, strict=True)} == stored


@MODES
async def test_append_to_a_taken_subject_is_refused_as_duplicate(
    bench: Bench, batches: bool
) -> None:
    choose(bench, batches)
    await bench.writer.append(bench.signal("a"), fact(1))

    with pytest.raises(ConflictError) as refused:
        await bench.writer.append(bench.signal("a"), fact(2))

    assert refused.value.code == "duplicate_fact"
    stored = await bench.reader.read_message(subjects.RUNS, bench.signal("a"))
    assert stored is not None
    assert stored.body == fact(1)


@MODES
async def test_append_behind_a_fence_is_refused_whatever_lies_there(
    bench: Bench, batches: bool
) -> None:
    choose(bench, batches)
    fence = subjects.fence(bench.prefix, 1)
    await bench.writer.append(subjects.out(bench.prefix, 1, "state"), fact(1), fence=fence)

    with pytest.raises(ConflictError) as refused:
        await bench.writer.append(subjects.out(bench.prefix, 1, "end"), fact(2), fence=fence)

    assert refused.value.code == "fenced"
    assert list(await bench.stored()) == ["out.1.state"]


async def test_append_where_no_stream_listens_fails_for_now(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.bus.writer._GIVE_UP_SECONDS", 1.0)

    with pytest.raises(TransientError) as unavailable:
        await bench.writer.append("nowhere.at.all", fact())

    assert unavailable.value.code == "append_unavailable"


@MODES
async def test_append_while_the_stream_is_away_succeeds_once_it_is_back(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench, batches: bool
) -> None:
    bench = await open_bench(create_nats_server())
    choose(bench, batches)
    await bench.bus.api("STREAM.DELETE.RUNS")
    append = asyncio.create_task(
        bench.writer.append_all(decision(bench, 1, "step.tool.q.a.1", "step.tool.q.b.1"))
    )
    await asyncio.wait([append], timeout=0.6)
    assert not append.done()

    await ensure(bench.bus, bench.settings)

    sequences = await append
    assert sorted((await bench.stored()).values()) == sorted(sequences)


@MODES
async def test_append_to_a_full_log_is_no_duplicate(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench, batches: bool
) -> None:
    bench = await open_bench(create_nats_server())
    choose(bench, batches)
    await bench.writer.append(bench.signal("first"), fact())
    config = (await bench.bus.api("STREAM.INFO.RUNS"))["config"]
    await bench.bus.api("STREAM.UPDATE.RUNS", {**config, "max_bytes": 1000})

    answers = await asyncio.gather(
        *(bench.writer.append(bench.signal(f"s{n}"), fact("x" * 900)) for n in range(5)),
        bench.writer.append(bench.signal("first"), fact("again")),
        return_exceptions=True,
    )

    assert [getattr(answer, "code", answer) for answer in answers] == [
        *["log_full"] * 5,
        "duplicate_fact",
    ]


async def test_append_by_a_caller_that_went_away_does_not_hurt_the_others(bench: Bench) -> None:
    gone = asyncio.create_task(bench.writer.append(bench.signal("gone"), fact()))
    stays = asyncio.create_task(bench.writer.append(bench.signal("stays"), fact()))
    await asyncio.sleep(0)
    gone.cancel()

    assert await stays > 0
    assert await bench.writer.append(bench.signal("next"), fact()) > 0


async def test_canary_is_acknowledged(bench: Bench) -> None:
    assert 0 < await bench.writer.canary() < 5


# -- decisions -----------------------------------------------------------------------------------


@MODES
async def test_append_all_stores_the_first_message_first(bench: Bench, batches: bool) -> None:
    choose(bench, batches)
    records = decision(bench, 1, *(f"step.tool.q.s{number}.1" for number in range(20)))

    sequences = await bench.writer.append_all(records)

    stored = await bench.stored()
    assert [stored[record.subject.removeprefix(bench.prefix + ".")] for record in records] == (
        sequences
    )
    assert min(sequences) == sequences[0]


@MODES
async def test_append_all_with_a_refused_first_stores_none_of_the_others(
    bench: Bench, batches: bool
) -> None:
    choose(bench, batches)
    await bench.writer.append_all(decision(bench, 1, "step.tool.q.a.1", "step.tool.q.b.1"))

    with pytest.raises(ConflictError) as refused:
        await bench.writer.append_all(decision(bench, 1, "step.tool.q.c.1", "step.tool.q.d.1"))

    assert refused.value.code == "fenced"
    await bench.writer.canary()
    assert set(await bench.stored()) == {"out.1.step.tool.q.a.1", "out.1.step.tool.q.b.1"}


@MODES
async def test_append_all_of_one_message_is_an_append(bench: Bench, batches: bool) -> None:
    choose(bench, batches)

    (sequence,) = await bench.writer.append_all(decision(bench, 1, "end"))

    assert await bench.stored() == {"out.1.end": sequence}


@MODES
async def test_append_all_of_more_than_a_batch_holds_stores_everything(
    bench: Bench, batches: bool
) -> None:
    choose(bench, batches)
    records = decision(bench, 1, *(f"step.tool.q.s{number}.1" for number in range(1500)))

    sequences = await bench.writer.append_all(records)

    stored = await bench.stored()
    assert len(stored) == 1500
    assert sorted(sequences) == sorted(stored.values())


@MODES
async def test_append_all_by_many_writers_of_the_same_decision_lets_one_win(
    open_bench: OpenBench, nats_server: NatsServer, batches: bool
) -> None:
    benches = [await open_bench(nats_server) for _ in range(4)]
    log = benches[0]
    for bench in benches:
        bench.tenant, bench.run_id = log.tenant, log.run_id
        choose(bench, batches)

    for number in range(1, 11):
        answers = await asyncio.gather(
            *(
                bench.writer.append_all(
                    decision(log, number, f"step.tool.q.a{who}.1", f"step.tool.q.b{who}.1")
                )
                for who, bench in enumerate(benches)
            ),
            return_exceptions=True,
        )

        winners = [who for who, answer in enumerate(answers) if isinstance(answer, list)]
        losers = [answer for answer in answers if isinstance(answer, ConflictError)]
        assert len(winners) == 1
        assert {error.code for error in losers} == {"fenced"}
        assert len(losers) == 3
        (who,) = winners
        stored = {name for name in await log.stored() if name.startswith(f"out.{number}.")}
        assert stored == {f"out.{number}.step.tool.q.{x}{who}.1" for x in "ab"}


# -- batches -------------------------------------------------------------------------------------


async def test_batch_is_used_when_forced(bench: Bench) -> None:
    bench.batches_only()

    await asyncio.gather(*(bench.writer.append(bench.signal(f"s{n}"), fact()) for n in range(10)))

    stored = await bench.reader.stored(bench.tenant, bench.shard, bench.run_id)
    assert [message.seq for message in stored] == list(range(stored[0].seq, stored[0].seq + 10))
    assert any("Nats-Batch-Id" in message.headers for message in stored)


async def test_batch_with_a_refused_message_gives_each_message_its_own_answer(
    bench: Bench,
) -> None:
    await bench.writer.append(bench.signal("taken"), fact(0))
    await bench.writer.append(
        subjects.out(bench.prefix, 1, "state"), fact(0), fence=subjects.fence(bench.prefix, 1)
    )
    bench.batches_only()

    good, taken, fenced, decided, better = await asyncio.gather(
        bench.writer.append(bench.signal("good"), fact(1)),
        bench.writer.append(bench.signal("taken"), fact(1)),
        bench.writer.append_all(decision(bench, 1, "step.tool.q.x.1", "step.tool.q.y.1")),
        bench.writer.append_all(decision(bench, 2, "step.tool.q.a.1", "step.tool.q.b.1")),
        bench.writer.append(bench.signal("better"), fact(1)),
        return_exceptions=True,
    )

    stored = await bench.stored()
    assert isinstance(taken, ConflictError)
    assert taken.code == "duplicate_fact"
    assert isinstance(fenced, ConflictError)
    assert fenced.code == "fenced"
    assert isinstance(decided, list)
    assert stored == {
        "in.signal.taken": stored["in.signal.taken"],
        "out.1.state": stored["out.1.state"],
        "in.signal.good": good,
        "in.signal.better": better,
        "out.2.step.tool.q.a.1": decided[0],
        "out.2.step.tool.q.b.1": decided[1],
    }
    assert decided[0] < decided[1]


async def test_batch_with_two_messages_of_one_subject_stores_one_of_them(bench: Bench) -> None:
    bench.batches_only()

    answers = await asyncio.gather(
        *(bench.writer.append(bench.signal("same"), fact(n)) for n in range(5)),
        return_exceptions=True,
    )

    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, ConflictError) for answer in answers) == 4


async def test_batch_of_messages_for_several_streams_stores_them_all(
    bench: Bench, nothing_is_sent_again: None
) -> None:
    bench.batches_only()
    timers = [
        subjects.timer_set(bench.tenant, bench.shard, bench.run_id, f"t{n}") for n in range(5)
    ]

    await asyncio.gather(
        *(bench.writer.append(bench.signal(f"s{n}"), fact()) for n in range(5)),
        *(bench.writer.append(subject, b"{}") for subject in timers),
        *(bench.writer.append(bench.signal(f"u{n}"), fact()) for n in range(5)),
    )

    assert len(await bench.stored()) == 10
    for subject in timers:
        assert await bench.reader.read_message(subjects.TIMERS, subject) is not None


async def test_batch_that_cannot_be_read_leaves_the_next_ones_alone(bench: Bench) -> None:
    await bench.writer.append(bench.signal("taken"), fact(0))
    bench.batches_only()

    for round_ in range(20):
        answers = await asyncio.gather(
            bench.writer.append(bench.signal("taken"), fact(1)),
            *(bench.writer.append(bench.signal(f"r{round_}-{n}"), fact()) for n in range(5)),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [ConflictError] + [int] * 5


# -- claim check ---------------------------------------------------------------------------------


@MODES
async def test_append_above_the_threshold_stores_a_claim_that_reads_as_the_body(
    bench: Bench, batches: bool
) -> None:
    choose(bench, batches)
    body = fact("x" * 300_000)

    sequence = await bench.writer.append(bench.signal("large"), body)

    stored = await bench.reader.read_message(subjects.RUNS, bench.signal("large"))
    assert stored is not None
    assert len(stored.body) < 1000
    assert decode(Claim, stored.body).size_bytes == len(body)
    assert await bench.claims.unpack(stored.body) == body
    entry = await bench.reader.read_fact(bench.signal("large"))
    assert entry is not None
    assert entry.seq == sequence
    assert entry.fact.payload == "x" * 300_000  # type: ignore[union-attr]


async def test_append_at_the_threshold_stores_the_body_itself(bench: Bench) -> None:
    threshold = bench.settings.claim_threshold_bytes
    body = fact("x" * (threshold - len(fact(""))))
    assert len(body) == threshold

    await bench.writer.append(bench.signal("just"), body)

    stored = await bench.reader.read_message(subjects.RUNS, bench.signal("just"))
    assert stored is not None
    assert stored.body == body


async def test_append_all_puts_each_large_body_into_a_claim(bench: Bench) -> None:
    step = StepScheduled(
        occurred_at=NOW, node_id="a", name="a", input="y" * 200_000, expires_at=NOW
    )
    records = decision(bench, 1, "step.tool.q.a.1", "step.tool.q.b.1", body=fact_bytes(step))

    await bench.writer.append_all(records)

    entries = await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)
    assert [entry.fact.input for entry in entries] == [  # type: ignore[union-attr]
        "y" * 200_000
    ] * 2


# -- lost acknowledgements -----------------------------------------------------------------------


@contextmanager
def stopped(server: NatsServer) -> Iterator[None]:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def all_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the seconds after which the writer has sent everything again."""
    monkeypatch.setattr("penstock.bus.writer._ACK_TIMEOUT_SECONDS", 0.5)
    return 2.0


@MODES
async def test_append_to_a_server_that_stands_still_succeeds_once_it_moves(
    create_nats_server: Callable[..., NatsServer],
    open_bench: OpenBench,
    batches: bool,
    all_is_sent_again: float,
) -> None:
    server = create_nats_server()
    bench = await open_bench(server)
    choose(bench, batches)
    with stopped(server):
        appends = [
            asyncio.create_task(bench.writer.append(bench.signal(f"s{n}"), fact(n)))
            for n in range(50)
        ]
        decided = asyncio.create_task(
            bench.writer.append_all(decision(bench, 1, "step.tool.q.a.1", "step.tool.q.b.1"))
        )
        await asyncio.wait(appends, timeout=all_is_sent_again)

    sequences = await asyncio.gather(*appends)
    decided_at = await decided

    stored = await bench.stored()
    assert [stored[f"in.signal.s{n}"] for n in range(50)] == sequences
    assert [stored["out.1.step.tool.q.a.1"], stored["out.1.step.tool.q.b.1"]] == decided_at


@MODES
async def test_append_while_the_server_is_killed_again_and_again_stores_each_fact_once(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench, batches: bool
) -> None:
    server = create_nats_server(durable=True)
    bench = await open_bench(server)
    choose(bench, batches)
    answers: dict[str, int] = {}
    stop = asyncio.Event()

    async def write(who: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = f"w{who}-{number}"
            answers[f"in.signal.{name}"] = await bench.writer.append(bench.signal(name), fact(name))

    writers = [asyncio.create_task(write(who)) for who in range(20)]
    for _ in range(3):
        seen = len(answers)
        await eventually(more_than(answers, seen + 50))
        if batches:
            bench.batches_only()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    seen = len(answers)
    await eventually(lambda: len(answers) > seen + 50)
    stop.set()
    await asyncio.gather(*writers)

    assert await bench.stored() == answers


async def test_append_whose_acknowledgement_was_lost_is_a_conflict_if_others_wrote_it(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench, all_is_sent_again: float
) -> None:
    server = create_nats_server()
    bench = await open_bench(server)
    other = await open_bench(server)
    with stopped(server):
        first = asyncio.create_task(other.writer.append(bench.signal("a"), fact("other")))
        await asyncio.wait([first], timeout=0.2)
        mine = asyncio.create_task(bench.writer.append(bench.signal("a"), fact("mine")))
        await asyncio.wait([mine], timeout=all_is_sent_again)

    answers = await asyncio.gather(first, mine, return_exceptions=True)

    stored: Stored | None = await bench.reader.read_message(subjects.RUNS, bench.signal("a"))
    assert stored is not None
    assert sorted(type(answer).__name__ for answer in answers) == ["ConflictError", "int"]
    winner = "other" if isinstance(answers[0], int) else "mine"
    assert json.loads(stored.body)["payload"] == winner
