"""The consumer: acknowledges last, says what errors mean, outlives servers and durables."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from nats.aio.msg import Msg

from penstock.bus.connection import JetStreamError
from penstock.bus.consumer import Delivery
from penstock.bus.topology import ensure_runner_consumer
from penstock.contracts import subjects
from penstock.contracts.errors import (
    ConflictError,
    InvariantError,
    PenstockError,
    RejectedError,
    TransientError,
)
from penstock.contracts.messages import DeadLetter
from penstock.contracts.structs import decode
from penstock.embedded import NatsServer
from tests.integration.bus.conftest import Bench, OpenBench, fact, holds, more_than
from tests.support.waiting import eventually


async def publish(bench: Bench, queue: str, count: int, body: bytes | None = None) -> list[str]:
    names = [bench.step(queue, f"s{number}") for number in range(count)]
    await asyncio.gather(*(bench.writer.append(name, body or fact()) for name in names))
    return names


async def outstanding(bench: Bench, durable: str) -> int:
    info = await bench.consumer_info(durable)
    return int(info["num_ack_pending"]) + int(info["num_pending"])


async def all_done(bench: Bench, durable: str, within: float = 30) -> None:
    async def nothing_left() -> bool:
        return await outstanding(bench, durable) == 0

    await eventually(nothing_left, within=within)


async def dead_letters(bench: Bench, durable: str) -> list[DeadLetter]:
    subject = subjects.dead(subjects.RUNS, durable)
    return [
        decode(DeadLetter, message.body)
        async for page in bench.reader.pages(subjects.DEAD, subject)
        for message in page
    ]


async def no_recreate() -> None:
    raise AssertionError("nothing has vanished")


# -- delivery ------------------------------------------------------------------------------------


async def test_consumer_hands_over_what_was_published_before_and_after_its_start(
    bench: Bench,
) -> None:
    queue, durable = await bench.runner_queue()
    seen: Counter[str] = Counter()

    async def handle(delivery: Delivery) -> None:
        seen[delivery.subject] += 1

    names = await publish(bench, queue, 100)
    await bench.consume(durable, handle)
    later = bench.step(queue, "later", 2)
    await bench.writer.append(later, fact())

    await all_done(bench, durable)
    assert seen == Counter([*names, later])


async def test_delivery_tells_subject_body_headers_sequence_and_time(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()
    seen: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery)

    sequence = await bench.writer.append(
        bench.step(queue, "a"), fact(7), headers={"traceparent": "00-x"}
    )
    await bench.consume(durable, handle)

    (delivery,) = await eventually(lambda: seen)
    stored = await bench.bus.api("STREAM.MSG.GET.RUNS", {"seq": sequence})
    assert (delivery.subject, delivery.body) == (bench.step(queue, "a"), fact(7))
    assert delivery.headers == {"traceparent": "00-x"}
    assert (delivery.stream_seq, delivery.deliveries) == (sequence, 1)
    assert stored["message"]["time"].startswith(
        delivery.stored_at.isoformat(timespec="milliseconds")[:23]
    )


async def test_consumer_acknowledges_only_after_its_handler_has_returned(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()
    go_on = asyncio.Event()
    begun = asyncio.Event()

    async def handle(_delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()

    await bench.consume(durable, handle)
    await publish(bench, queue, 1)
    await asyncio.wait_for(begun.wait(), 30)
    await bench.writer.canary()

    assert (await bench.consumer_info(durable))["num_ack_pending"] == 1
    go_on.set()
    await all_done(bench, durable)


@pytest.mark.parametrize("concurrency", [1, 2, 7])
async def test_consumer_handles_so_many_at_a_time_and_no_more(
    bench: Bench, concurrency: int
) -> None:
    queue, durable = await bench.runner_queue()
    running, most, total = 0, 0, 0

    async def handle(_delivery: Delivery) -> None:
        nonlocal running, most, total
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        total += 1

    await publish(bench, queue, 200)
    await bench.consume(durable, handle, concurrency=concurrency)
    await all_done(bench, durable)

    assert most == concurrency
    assert total == 200


async def test_consumer_holds_no_more_of_the_pool_than_it_can_begin_soon(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()
    stuck = asyncio.Event()

    async def hold(_delivery: Delivery) -> None:
        await stuck.wait()

    done: list[str] = []

    async def handle(delivery: Delivery) -> None:
        done.append(delivery.subject)

    await publish(bench, queue, 50)
    await bench.consume(durable, hold, concurrency=4)
    await eventually(lambda: outstanding(bench, durable))
    await bench.consume(durable, handle, concurrency=4)

    await eventually(lambda: len(done) >= 50 - 8)
    stuck.set()
    await all_done(bench, durable)


# -- error families ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TransientError, ConflictError])
async def test_handler_that_fails_for_now_is_asked_again_after_its_delay(
    bench: Bench, error: type[PenstockError]
) -> None:
    queue, durable = await bench.runner_queue()
    deliveries: list[int] = []
    words: list[bytes] = []

    async def hear(message: Msg) -> None:
        words.append(message.data)

    async def handle(delivery: Delivery) -> None:
        deliveries.append(delivery.deliveries)
        if delivery.deliveries < 3:
            raise error("busy", "later", retry_after_seconds=0.3)

    await bench.bus.subscribe(f"$JS.ACK.{subjects.RUNS}.{durable}.>", hear)
    await publish(bench, queue, 1)
    await bench.consume(durable, handle)
    await eventually(more_than(words, 2))

    assert deliveries == [1, 2, 3]
    assert words == [b'-NAK {"delay": 300000000}'] * 2 + [b"+ACK"]
    assert await dead_letters(bench, durable) == []


@pytest.mark.parametrize("error", [RejectedError, InvariantError])
async def test_handler_that_gives_up_moves_the_message_to_the_dead_letters(
    bench: Bench, error: type[PenstockError]
) -> None:
    queue, durable = await bench.runner_queue()
    calls = 0

    async def handle(_delivery: Delivery) -> None:
        nonlocal calls
        calls += 1
        raise error("unreadable", "what is this")

    (name,) = await publish(bench, queue, 1, body=b'{"x": "\xff"}')
    await bench.consume(durable, handle)
    await all_done(bench, durable)

    (letter,) = await dead_letters(bench, durable)
    assert calls == 1
    assert (letter.subject, letter.stream, letter.consumer) == (name, subjects.RUNS, durable)
    assert (letter.error.code, letter.error.family) == ("unreadable", error.family)
    assert letter.deliveries == 1
    assert letter.body == '{"x": "\ufffd"}'


async def test_handler_with_an_unforeseen_error_is_asked_again_and_others_go_on(
    bench: Bench,
) -> None:
    queue, durable = await bench.runner_queue()
    seen: Counter[str] = Counter()

    async def handle(delivery: Delivery) -> None:
        seen[delivery.subject] += 1
        if delivery.subject.endswith("s0.1") and delivery.deliveries == 1:
            raise ZeroDivisionError

    names = await publish(bench, queue, 5)
    await bench.consume(durable, handle)
    await all_done(bench, durable)

    assert seen == Counter([*names, names[0]])


async def test_message_delivered_too_often_becomes_a_dead_letter_unhandled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.bus.consumer.MAX_DELIVERIES", 2)
    queue, durable = await bench.runner_queue()
    calls = 0

    async def handle(_delivery: Delivery) -> None:
        nonlocal calls
        calls += 1
        raise TransientError("busy", "later", retry_after_seconds=0.01)

    await publish(bench, queue, 1)
    await bench.consume(durable, handle)
    await all_done(bench, durable)

    (letter,) = await dead_letters(bench, durable)
    assert calls == 2
    assert letter.error.code == "deliveries_exhausted"


async def test_message_near_the_payload_limit_becomes_a_dead_letter_too(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()

    async def handle(_delivery: Delivery) -> None:
        raise InvariantError("unreadable", "what is this")

    body = b"\x01" * (bench.bus.max_payload_bytes - 1000)
    await bench.bus.request(bench.step(queue, "a"), body)
    await bench.consume(durable, handle)
    await all_done(bench, durable)

    (letter,) = await dead_letters(bench, durable)
    assert letter.error.code == "unreadable"


# -- long work -----------------------------------------------------------------------------------


async def test_handler_longer_than_ack_wait_keeps_its_message(
    nats_server: NatsServer, open_bench: OpenBench
) -> None:
    bench = await open_bench(nats_server)
    queue, durable = await short_queue(bench)
    calls = 0

    async def handle(_delivery: Delivery) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(3.5)

    await publish(bench, queue, 3)
    await bench.consume(durable, handle, ack_wait_seconds=1.0, concurrency=2)
    await all_done(bench, durable)

    assert calls == 3


async def test_working_handler_sends_in_progress_until_it_is_done(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()
    signs: list[bytes] = []
    done = asyncio.Event()

    async def hear(message: Msg) -> None:
        signs.append(message.data)

    async def handle(_delivery: Delivery) -> None:
        await done.wait()

    await bench.bus.subscribe(f"$JS.ACK.{subjects.RUNS}.{durable}.>", hear)
    await bench.consume(durable, handle, ack_wait_seconds=1.0)
    await publish(bench, queue, 1)
    await eventually(more_than(signs, 3))
    done.set()
    await all_done(bench, durable)

    assert set(signs[:3]) == {b"+WPI"}
    assert signs[-1] == b"+ACK"


async def short_queue(bench: Bench) -> tuple[str, str]:
    """Create a queue whose messages are handed on after one second of silence."""
    settings = bench.settings.model_copy(update={"ack_wait_seconds": 1.0})
    queue = f"q{bench.run_id[:12]}"
    return queue, await ensure_runner_consumer(bench.bus, settings, "tool", queue)


async def test_message_delivered_again_while_it_is_worked_on_is_not_begun_twice(
    nats_server: NatsServer, open_bench: OpenBench
) -> None:
    bench = await open_bench(nats_server)
    queue, durable = await short_queue(bench)
    begun: list[tuple[Delivery, str]] = []
    done = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        begun.append((delivery, delivery.reply))
        await done.wait()

    def again() -> bool:
        return any(delivery.reply != first_reply for delivery, first_reply in begun)

    await publish(bench, queue, 1)
    # It reports no progress for 20 seconds, so the server delivers again after one.
    await bench.consume(durable, handle, ack_wait_seconds=60.0)
    await eventually(again)
    done.set()
    await all_done(bench, durable)

    assert len(begun) == 1


async def test_message_of_a_consumer_that_died_goes_to_another(
    nats_server: NatsServer, open_bench: OpenBench
) -> None:
    dying = await open_bench(nats_server)
    bench = await open_bench(nats_server)
    queue, durable = await short_queue(bench)
    begun = asyncio.Event()

    async def hang(_delivery: Delivery) -> None:
        begun.set()
        await asyncio.Event().wait()

    counts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        counts.append(delivery.deliveries)

    await dying.consume(durable, hang, ack_wait_seconds=1.0)
    await publish(bench, queue, 1)
    await asyncio.wait_for(begun.wait(), 30)
    dying.bus.nc.closing_on_purpose = True
    await dying.bus.nc.close()
    await bench.consume(durable, handle, ack_wait_seconds=1.0)

    await all_done(bench, durable)
    assert counts == [2]


# -- what may vanish -----------------------------------------------------------------------------


async def test_consumer_whose_durable_vanished_makes_it_again(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()
    seen: list[str] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.subject)

    async def recreate() -> None:
        await ensure_runner_consumer(bench.bus, bench.settings, "tool", queue)

    await bench.consume(durable, handle, recreate=recreate)
    await publish(bench, queue, 1)
    await eventually(lambda: seen)

    await bench.bus.api(f"CONSUMER.DELETE.RUNS.{durable}")
    later = bench.step(queue, "later", 2)
    await bench.writer.append(later, fact())

    await eventually(lambda: later in seen)


async def test_consumer_whose_durable_cannot_be_made_at_once_tries_again(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()
    seen: list[str] = []
    failures: list[Exception] = [
        TransientError("no_responders", "not now"),
        JetStreamError(503, 10008, "not now"),
    ]

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.subject)

    async def recreate() -> None:
        if failures:
            raise failures.pop()
        await ensure_runner_consumer(bench.bus, bench.settings, "tool", queue)

    await bench.consume(durable, handle, recreate=recreate)
    await bench.bus.api(f"CONSUMER.DELETE.RUNS.{durable}")
    await publish(bench, queue, 1)

    await eventually(lambda: seen, within=40)


async def test_consumer_goes_on_after_the_server_was_killed(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench
) -> None:
    server = create_nats_server()
    bench = await open_bench(server)
    queue, durable = await bench.runner_queue()
    seen: Counter[str] = Counter()

    async def handle(delivery: Delivery) -> None:
        seen[delivery.subject] += 1

    await bench.consume(durable, handle, recreate=no_recreate)
    for round_ in range(1, 4):
        name = bench.step(queue, "a", round_)
        await bench.writer.append(name, fact())
        await eventually(holds(seen, name))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    name = bench.step(queue, "a", 9)
    await bench.writer.append(name, fact())

    await eventually(lambda: name in seen)
    await all_done(bench, durable)


async def test_consumer_working_while_the_server_restarts_loses_nothing(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench
) -> None:
    server = create_nats_server(durable=True)
    bench = await open_bench(server, ack_wait_seconds=2)
    queue, durable = await bench.runner_queue()
    seen: Counter[str] = Counter()

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.02)
        seen[delivery.subject] += 1

    names = await publish(bench, queue, 300)
    await bench.consume(durable, handle, concurrency=10)
    await eventually(lambda: len(seen) > 50)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)

    await all_done(bench, durable)
    assert set(seen) == set(names)


# -- drain ---------------------------------------------------------------------------------------


async def patient_queue(bench: Bench) -> tuple[str, str]:
    """Create a queue whose messages are handed on by silence only after any wait of a test."""
    bench.settings = bench.settings.model_copy(update={"ack_wait_seconds": 300.0})
    return await bench.runner_queue()


async def test_drain_waits_for_what_has_begun_and_hands_back_the_rest_at_once(
    bench: Bench,
) -> None:
    queue, durable = await patient_queue(bench)
    finished: list[str] = []
    begun = asyncio.Event()

    async def slow(delivery: Delivery) -> None:
        begun.set()
        await asyncio.sleep(0.5)
        finished.append(delivery.subject)

    others: list[str] = []

    async def quick(delivery: Delivery) -> None:
        others.append(delivery.subject)

    names = await publish(bench, queue, 30)
    first = await bench.consume(durable, slow, concurrency=3)
    await asyncio.wait_for(begun.wait(), 30)
    await first.drain()
    await bench.consume(durable, quick)

    await all_done(bench, durable)
    assert len(finished) >= 3
    assert Counter(finished + others) == Counter(names)


async def test_drain_under_load_leaves_nothing_to_wait_for(bench: Bench) -> None:
    queue, durable = await patient_queue(bench)
    seen: Counter[str] = Counter()

    async def handle(delivery: Delivery) -> None:
        seen[delivery.subject] += 1

    total = 0
    for round_ in range(1, 6):
        names = [bench.step(queue, f"s{n}", round_) for n in range(1000)]
        await asyncio.gather(*(bench.writer.append(name, fact()) for name in names))
        total += len(names)
        consumer = await bench.consume(durable, handle, concurrency=32)
        await eventually(more_than(seen, total - 900))
        await consumer.drain()
    await bench.consume(durable, handle, concurrency=32)

    await all_done(bench, durable)
    assert len(seen) == total
    assert set(seen.values()) == {1}


async def test_drain_cancels_what_outlasts_its_grace_and_hands_it_back(bench: Bench) -> None:
    queue, durable = await patient_queue(bench)
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_delivery: Delivery) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    counts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        counts.append(delivery.deliveries)

    await publish(bench, queue, 1)
    consumer = await bench.consume(durable, hang)
    await asyncio.wait_for(begun.wait(), 30)
    await consumer.drain(grace_seconds=0.1)
    await bench.consume(durable, handle)

    await eventually(lambda: counts)
    assert counts == [2]
    assert cancelled.is_set()


async def test_drained_consumer_is_handed_nothing_more(bench: Bench) -> None:
    queue, durable = await bench.runner_queue()
    seen: list[str] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.subject)

    consumer = await bench.consume(durable, handle)
    await consumer.drain()
    await publish(bench, queue, 5)
    await bench.writer.canary()

    info: dict[str, Any] = await bench.consumer_info(durable)
    assert (info["num_pending"], info["num_ack_pending"], info["num_waiting"]) == (5, 0, 0)
    assert seen == []
