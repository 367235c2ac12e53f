"""Deliveries: what a message's reply subject tells of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from penstock.bus.consumer import Delivery

NANOS = 1_767_225_600_500_000_000
REPLY = f"$JS.ACK.RUNS.engine_3.4.1234.99.{NANOS}.7"


@pytest.mark.parametrize(
    "reply",
    [
        REPLY,
        f"$JS.ACK.hub.ACCHASH.RUNS.engine_3.4.1234.99.{NANOS}.7",
        f"$JS.ACK._.ACCHASH.RUNS.engine_3.4.1234.99.{NANOS}.7.random",
    ],
    ids=["short", "domain", "domain and random token"],
)
def test_delivery_reads_either_form_of_reply_subject(reply: str) -> None:
    delivery = Delivery("run.x", b"", reply, None, 0.0)

    assert (delivery.deliveries, delivery.stream_seq) == (4, 1234)
    assert delivery.stored_at == datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)


def test_delivery_without_headers_has_none() -> None:
    assert Delivery("run.x", b"", REPLY, None, 0.0).headers == {}
    assert Delivery("run.x", b"", REPLY, b"NATS/1.0\r\na: b\r\n\r\n", 0.0).headers == {"a": "b"}
