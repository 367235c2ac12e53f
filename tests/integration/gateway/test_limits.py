"""What a client may take: size and count of headers, time to arrive, streams of one key."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.runners import KeyRecord
from penstock_gateway.core.access import Caller, key_digest
from penstock_gateway.middleware.protocol import MAX_HEAD_BYTES, MAX_HEADERS, LimitedProtocol
from tests.integration.gateway.conftest import CreateGateway, Engine, Running, begin
from tests.support.waiting import eventually

HEAD = b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\n"


async def sent(gateway: Running, *pieces: bytes) -> tuple[bytes, bytes]:
    """Send pieces on one connection; return the answer's first line and what follows."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    for piece in pieces:
        writer.write(piece)
    status = await asyncio.wait_for(reader.readline(), 30)
    rest = await asyncio.wait_for(reader.read(), 30) if b" 4" in status else b""
    writer.close()
    return status, rest


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD, b"x-a: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"),
        (HEAD, b"x-a: " + b"a" * MAX_HEAD_BYTES),  # no line end ever comes
        (HEAD, b"".join(b"x-%d: 1\r\n" % n for n in range(MAX_HEADERS)) + b"\r\n"),
        (b"GET /" + b"a" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",),
    ],
)
async def test_headers_beyond_the_limits_are_refused(
    gateway: Running, pieces: tuple[bytes, ...]
) -> None:
    status, rest = await sent(gateway, *pieces)
    assert status == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    assert rest == b"content-length: 0\r\nconnection: close\r\n\r\n"


async def test_headers_within_the_limits_are_read(gateway: Running) -> None:
    many = b"".join(b"x-%d: 1\r\n" % n for n in range(MAX_HEADERS - 2))
    status, _ = await sent(
        gateway, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n", many, b"\r\n"
    )
    assert status.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (HEAD,),
        (
            (
                b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 100\r\n\r\n"
            ),
            b'{"name"',
        ),
    ],
)
async def test_request_that_does_not_arrive_in_time_is_given_up(
    gateway: Running, pieces: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedProtocol, "arrival_seconds", 0.1)
    status, _ = await sent(gateway, *pieces)
    assert status == b"HTTP/1.1 408 Request Timeout\r\n"


async def test_large_body_may_take_longer_than_a_small_one(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedProtocol, "arrival_seconds", 0.1)
    body = b'{"name": "' + b"x" * 65_536 + b'"}'
    head = HEAD.replace(b"GET", b"POST") + b"content-length: %d\r\n\r\n" % len(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(head + body[:-1])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readline(), 0.5)
    writer.write(body[-1:])
    assert (await reader.readline()).startswith(b"HTTP/1.1 4")
    writer.close()


def key_of(gateway: Running, engine: Engine, name: str, **more: datetime) -> dict[str, str]:
    """Add a key to the mirror, as the registry would; return the header that sends it."""
    caller = Caller(engine.tenant, name, frozenset({"viewer", "operator"}), **more)
    gateway.gateway.keys.values[key_digest(name.encode())] = caller
    return {"authorization": f"Bearer {name}", "accept": "text/event-stream"}


async def test_streams_of_one_key_are_limited_and_counted_down(
    create_gateway: CreateGateway, engine: Engine
) -> None:
    await engine.publish("echo")
    gateway = await create_gateway(sse_streams_per_key=1)
    run_id = await begin(gateway)
    url = f"/v1/runs/{run_id}/events"
    one, other = key_of(gateway, engine, "one"), key_of(gateway, engine, "other")
    async with gateway.client.stream("GET", url, headers=one) as first:
        assert first.status_code == 200
        refused = await gateway.client.get(url, headers=one)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
        async with gateway.client.stream("GET", url, headers=other) as second:
            assert second.status_code == 200
    await eventually(lambda: not gateway.gateway.streams.open_by_key)
    async with gateway.client.stream("GET", url, headers=one) as again:
        assert again.status_code == 200


async def test_stream_of_an_idle_run_ends_when_its_key_is_revoked(
    gateway: Running, engine: Engine
) -> None:
    run_id = await begin(gateway)
    keys, name = Bucket(engine.bus, subjects.KEYS), key_digest(b"revoked")
    record = KeyRecord(key_id=f"k{engine.tenant}", tenant=engine.tenant, roles=("viewer",))
    await keys.put(name, record.model_dump_json().encode())
    await eventually(lambda: name in gateway.gateway.keys.values)
    headers = {"authorization": "Bearer revoked", "accept": "text/event-stream"}
    async with gateway.client.stream("GET", f"/v1/runs/{run_id}/events", headers=headers):
        await eventually(lambda: gateway.gateway.streams.open_streams)
        await keys.delete(name)
        await eventually(lambda: not gateway.gateway.streams.open_streams)


async def test_stream_ends_when_its_key_expires(
    create_gateway: CreateGateway, engine: Engine
) -> None:
    await engine.publish("echo")
    gateway = await create_gateway(sse_keepalive_seconds=0.1)
    run_id = await begin(gateway)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    headers = key_of(gateway, engine, "brief", expires_at=soon)
    async with gateway.client.stream("GET", f"/v1/runs/{run_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        await eventually(lambda: not gateway.gateway.streams.open_streams)
    assert (await gateway.client.get("/v1/runs", headers=headers)).status_code == 401
