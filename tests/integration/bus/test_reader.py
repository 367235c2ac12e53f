"""The log reader: whole runs of any length, from any place, and single facts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from penstock.bus.claims import LOST_AFTER_SECONDS
from penstock.bus.topology import ensure
from penstock.bus.writer import Record
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, TransientError
from penstock.contracts.facts import SignalReceived, StepResult
from penstock.contracts.messages import Claim
from penstock.embedded import NatsServer
from tests.integration.bus.conftest import NOW, Bench, OpenBench, fact


async def write(bench: Bench, count: int) -> list[int]:
    return await bench.writer.append_all(
        [Record(bench.signal(f"s{number}"), fact(number)) for number in range(count)]
    )


async def test_read_run_of_which_nothing_is_known_is_empty(bench: Bench) -> None:
    assert await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id) == []


@pytest.mark.parametrize("count", [1, 1000, 1024, 1025, 2600])
async def test_read_run_of_any_length_gives_all_facts_in_order(bench: Bench, count: int) -> None:
    sequences = await write(bench, count)

    entries = await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)

    assert [entry.seq for entry in entries] == sorted(sequences)
    assert {entry.seq: entry.subject.step_id for entry in entries} == {
        sequence: f"s{number}" for number, sequence in enumerate(sequences)
    }


@pytest.mark.parametrize("count", [10, 1500])
async def test_read_run_after_a_sequence_leaves_out_what_is_before(
    bench: Bench, count: int
) -> None:
    sequences = sorted(await write(bench, count))

    async def read(after: int) -> list[int]:
        found = await bench.reader.read_run(
            bench.tenant, bench.shard, bench.run_id, after_seq=after
        )
        return [entry.seq for entry in found]

    assert await read(sequences[4]) == sequences[5:]
    assert await read(sequences[-1]) == []


@pytest.mark.parametrize("count", [10, 1500])
async def test_read_run_after_the_sequence_that_it_must_have_seen_is_empty(
    bench: Bench, count: int
) -> None:
    last = max(await write(bench, count))

    found = await asyncio.wait_for(
        bench.reader.read_run(
            bench.tenant, bench.shard, bench.run_id, after_seq=last, at_least_seq=last
        ),
        2,
    )

    assert found == []


async def test_read_run_that_must_have_seen_its_last_fact_sees_it(bench: Bench) -> None:
    last = max(await write(bench, 3))

    found = await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id, at_least_seq=last)

    assert found[-1].seq == last


async def test_read_run_that_must_have_seen_the_future_lags(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = max(await write(bench, 3))
    real = asyncio.sleep
    monkeypatch.setattr("penstock.bus.reader.asyncio.sleep", lambda _seconds: real(0))

    with pytest.raises(TransientError) as lagging:
        await bench.reader.read_run(
            bench.tenant, bench.shard, bench.run_id, at_least_seq=last + 10**9
        )

    assert lagging.value.code == "read_lags"


async def test_read_run_does_not_see_other_runs(bench: Bench) -> None:
    await write(bench, 2)
    other = subjects.run_prefix(bench.tenant, bench.shard, bench.run_id[:-1] + "-")
    await bench.writer.append(subjects.signal(other, "x"), fact())

    assert len(await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)) == 2


async def test_read_many_runs_at_once_gives_each_its_own_facts(bench: Bench) -> None:
    runs = [f"{bench.run_id[:-4]}{number:04d}" for number in range(200)]
    await asyncio.gather(
        *(
            bench.writer.append(
                subjects.signal(subjects.run_prefix(bench.tenant, 3, run), "x"), fact(run)
            )
            for run in runs
        )
    )

    found = await asyncio.gather(*(bench.reader.read_run(bench.tenant, 3, run) for run in runs))

    payloads = [
        [entry.fact.payload for entry in entries if isinstance(entry.fact, SignalReceived)]
        for entries in found
    ]
    assert payloads == [[run] for run in runs]


async def test_read_run_gives_trace_headers(bench: Bench) -> None:
    await bench.writer.append(bench.signal("a"), fact(), headers={"traceparent": "00-abc-def-01"})

    (entry,) = await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)

    assert entry.traceparent == "00-abc-def-01"


async def test_read_run_reads_claims_among_facts(bench: Bench) -> None:
    await bench.writer.append(bench.signal("a"), fact("x" * 200_000))
    await bench.writer.append(bench.signal("b"), fact("small"))

    entries = await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)

    assert [
        len(entry.fact.payload)
        for entry in entries
        if isinstance(entry.fact, SignalReceived) and isinstance(entry.fact.payload, str)
    ] == [200_000, 5]


async def test_read_run_leaves_out_an_input_that_cannot_be_read(bench: Bench) -> None:
    await bench.writer.append(bench.signal("bad"), b'{"type": "run.hexed"}')
    good = await bench.writer.append(bench.signal("good"), fact())

    found = await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)

    assert [entry.seq for entry in found] == [good]


async def test_read_run_with_a_decision_that_cannot_be_read_says_which(bench: Bench) -> None:
    subject = subjects.out(bench.prefix, 1, "state")
    await bench.writer.append(subject, b'{"type": "run.hexed"}')

    with pytest.raises(InvariantError) as unreadable:
        await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)

    assert unreadable.value.code == "unreadable_fact"
    assert subject in unreadable.value.message


async def test_read_fact_that_cannot_be_read_says_which(bench: Bench) -> None:
    await bench.writer.append(bench.signal("bad"), b"\xff")

    with pytest.raises(InvariantError) as unreadable:
        await bench.reader.read_fact(bench.signal("bad"))

    assert unreadable.value.code == "unreadable_fact"


async def test_read_fact_of_the_leader_sees_what_was_just_written(bench: Bench) -> None:
    for number in range(50):
        sequence = await bench.writer.append(bench.signal(f"s{number}"), fact(number))
        entry = await bench.reader.read_fact(bench.signal(f"s{number}"))
        assert entry is not None
        assert entry.seq == sequence
        assert entry.fact.occurred_at == NOW


async def test_read_fact_that_is_not_stated_is_none(bench: Bench) -> None:
    assert await bench.reader.read_fact(bench.signal("never")) is None


async def test_claim_whose_object_is_missing_is_tried_again_later(bench: Bench) -> None:
    claim = Claim(sha256="0" * 64, size_bytes=5)

    with pytest.raises(TransientError) as missing:
        await bench.claims.get(claim)

    assert missing.value.code == "object_missing"


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"claim"}',
        b'{"type":"claim","sha256":"","size_bytes":1}',
        b'{"type":"claim","sha256":"../x","size_bytes":1}',
        b'{"type":"claim","sha256":"%s","size_bytes":-5}' % (b"0" * 64),
        b'{"type":"claim","sha256":"%s","size_bytes":1e400}' % (b"0" * 64),
        b'{"type":"claim","sha256":"%s","size_bytes":5}' % (b"0" * 64),
    ],
)
async def test_result_by_a_claim_that_leads_nowhere_cannot_be_read(
    bench: Bench, body: bytes
) -> None:
    await bench.bus.request(subjects.result(bench.prefix, "a", 1), body)
    await bench.bus.request(subjects.signal(bench.prefix, "go"), body)
    bench.claims._missing["0" * 64] = time.monotonic() - LOST_AFTER_SECONDS - 1

    found = await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)

    assert len(found) == 1, "an unreadable signal is left out"
    assert isinstance(found[0].fact, StepResult)
    assert found[0].fact.error is not None
    assert found[0].fact.error.code == "unreadable_result"
    again = await bench.reader.decode(subjects.result(bench.prefix, "a", 1), 1, body)
    assert again.fact == found[0].fact


async def test_claim_of_a_body_stored_twice_is_the_same(bench: Bench) -> None:
    body = b"z" * 300_000

    first, second = await bench.claims.put(body), await bench.claims.put(body)

    assert first == second
    assert await bench.claims.get(first) == body


async def test_claim_of_several_megabytes_is_read_whole(bench: Bench) -> None:
    body = bytes(range(256)) * 20_000

    assert await bench.claims.get(await bench.claims.put(body)) == body


async def test_pages_of_a_stream_give_every_message_once(bench: Bench) -> None:
    sequences = await write(bench, 2300)

    seen = [
        message.seq
        async for page in bench.reader.pages(
            subjects.RUNS, subjects.run_filter(bench.tenant, bench.shard, bench.run_id)
        )
        for message in page
    ]

    assert seen == sorted(sequences)


async def test_read_run_while_the_stream_is_away_fails_for_now(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench
) -> None:
    bench = await open_bench(create_nats_server())
    await bench.bus.api("STREAM.DELETE.RUNS")

    with pytest.raises(TransientError):
        await bench.reader.read_run(bench.tenant, bench.shard, bench.run_id)


async def test_claim_while_the_object_store_is_away_is_tried_again_later(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench
) -> None:
    bench = await open_bench(create_nats_server())
    body = fact("x" * 200_000)
    claim = await bench.claims.put(body)
    await bench.bus.api(f"STREAM.DELETE.OBJ_{subjects.ARTIFACTS}")

    with pytest.raises(TransientError):
        await bench.claims.get(claim)
    with pytest.raises(TransientError):
        await bench.writer.append(bench.signal("large"), body)

    await ensure(bench.bus, bench.settings)
    await bench.writer.append(bench.signal("large"), body)
    assert await bench.claims.get(claim) == body
