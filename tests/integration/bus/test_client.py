"""The client: direct subscriptions and publishing in one piece, over reconnects too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from nats.aio.msg import Msg

from penstock.bus.client import header_block, parse_headers
from penstock.embedded import NatsServer
from tests.integration.bus.conftest import Bench, OpenBench, holds
from tests.support.waiting import eventually

Heard = tuple[str, str, bytes, dict[str, str]]


async def listen(bench: Bench, subject: str, **options: Any) -> tuple[list[Heard], Any]:
    heard: list[Heard] = []

    def on_message(subject: str, reply: str, body: bytes, headers: bytes | None) -> None:
        heard.append((subject, reply, bytes(body), parse_headers(headers)))

    return heard, await bench.bus.nc.subscribe_direct(subject, on_message, **options)


async def test_direct_subscription_is_given_all_parts_of_a_message(bench: Bench) -> None:
    heard, _ = await listen(bench, f"{bench.tenant}.>")
    block = header_block({"traceparent": "00-x", "Größe": "früh: spät"})

    bench.bus.nc.publish_now(f"{bench.tenant}.a", "reply.to", b"body \x00\xff\r\n", block)
    bench.bus.nc.publish_now(f"{bench.tenant}.b", "", b"")

    await eventually(lambda: len(heard) == 2)
    assert heard == [
        (
            f"{bench.tenant}.a",
            "reply.to",
            b"body \x00\xff\r\n",
            {"traceparent": "00-x", "Größe": "früh: spät"},
        ),
        (f"{bench.tenant}.b", "", b"", {}),
    ]


async def test_direct_messages_keep_their_order_under_load(bench: Bench) -> None:
    heard, _ = await listen(bench, f"{bench.tenant}.>")

    for number in range(5000):
        bench.bus.nc.publish_now(f"{bench.tenant}.a", "", b"%d" % number)
        if number % 500 == 0:
            await asyncio.sleep(0)

    await eventually(lambda: len(heard) == 5000)
    assert [int(body) for _, _, body, _ in heard] == list(range(5000))


async def test_direct_and_ordinary_subscriptions_live_side_by_side(bench: Bench) -> None:
    heard, _ = await listen(bench, f"{bench.tenant}.direct")
    ordinary: list[bytes] = []

    async def on_message(message: Msg) -> None:
        ordinary.append(message.data)

    await bench.bus.subscribe(f"{bench.tenant}.ordinary", on_message)
    await bench.bus.publish(f"{bench.tenant}.direct", b"1", headers={"a": "b"})
    bench.bus.nc.publish_now(f"{bench.tenant}.ordinary", "", b"2")

    await eventually(lambda: heard and ordinary)
    assert ordinary == [b"2"]
    assert heard == [(f"{bench.tenant}.direct", "", b"1", {"a": "b"})]


async def test_direct_subscription_that_ended_hears_nothing_more(bench: Bench) -> None:
    heard, subscription = await listen(bench, f"{bench.tenant}.a")
    other, _ = await listen(bench, f"{bench.tenant}.a")
    bench.bus.nc.publish_now(f"{bench.tenant}.a", "", b"1")
    await eventually(lambda: heard and other)

    await bench.bus.nc.unsubscribe_direct(subscription)
    bench.bus.nc.publish_now(f"{bench.tenant}.a", "", b"2")

    await eventually(lambda: len(other) == 2)
    assert len(heard) == 1


async def test_direct_subscription_hears_what_was_sent_before_it_ended(bench: Bench) -> None:
    heard, subscription = await listen(bench, f"{bench.tenant}.a")
    for number in range(2000):
        bench.bus.nc.publish_now(f"{bench.tenant}.a", "", b"%d" % number)

    await bench.bus.nc.unsubscribe_direct(subscription)

    assert len(heard) == 2000


async def test_direct_subscriptions_of_a_queue_share_its_messages(bench: Bench) -> None:
    first, _ = await listen(bench, f"{bench.tenant}.a", queue="q")
    second, _ = await listen(bench, f"{bench.tenant}.a", queue="q")

    for _ in range(200):
        bench.bus.nc.publish_now(f"{bench.tenant}.a", "", b"x")

    await eventually(lambda: len(first) + len(second) == 200)
    assert first
    assert second


async def test_message_that_may_wait_goes_out_by_itself(bench: Bench) -> None:
    heard, _ = await listen(bench, f"{bench.tenant}.a")

    bench.bus.nc.publish_now(f"{bench.tenant}.a", "", b"x", urgent=False)

    await eventually(lambda: heard, within=30)


async def test_direct_subscription_goes_on_after_reconnects(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench
) -> None:
    server = create_nats_server()
    bench = await open_bench(server)
    heard, _ = await listen(bench, "a.>")
    for number in range(3):
        await asyncio.to_thread(server.restart)
        await eventually(lambda: bench.bus.nc.is_connected, within=30)

        async def arrives(body: bytes = b"%d" % number) -> bool:
            bench.bus.nc.publish_now("a.b", "", body)
            await asyncio.sleep(0.02)
            return any(found == body for _, _, found, _ in heard)

        await eventually(arrives, within=30)


async def test_reconnect_is_told_to_those_who_asked(
    create_nats_server: Callable[..., NatsServer], open_bench: OpenBench
) -> None:
    server = create_nats_server()
    bench = await open_bench(server)
    told: list[bool] = []
    bench.bus.on_reconnect.append(lambda: told.append(bench.bus.nc.is_connected))

    await asyncio.to_thread(server.restart)

    await eventually(holds(told, True), within=30)


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (None, {}),
        (b"", {}),
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\nA: b\r\nC:d\r\n\r\n", {"A": "b", "C": "d"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503", "Description": ""}),
        (
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 5\r\n\r\n",
            {"Status": "408", "Description": "Request Timeout", "Nats-Pending-Messages": "5"},
        ),
        (b"NATS/1.0\r\nA: x: y\r\nE:\r\n\r\n", {"A": "x: y", "E": ""}),
    ],
)
def test_parse_headers_reads_fields_and_status(
    block: bytes | None, headers: dict[str, str]
) -> None:
    assert parse_headers(block) == headers


def test_header_block_is_read_back() -> None:
    headers = {"traceparent": "00-abc-def-01", "Nats-Expected-Last-Subject-Sequence": "0"}

    assert parse_headers(header_block(headers)) == headers
