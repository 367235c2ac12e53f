"""Key-value buckets against a real server: TTLs, compare-and-set, watches over restarts."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from penstock import clock
from penstock.bus import kv
from penstock.bus.connection import Bus, connect
from penstock.bus.kv import Bucket
from penstock.bus.kv_watch import KvChange
from penstock.contracts.errors import ConflictError, RejectedError, TransientError
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings
from tests.support.waiting import eventually

CreateBucket = Callable[..., Awaitable[Bucket]]


async def make_bucket(bus: Bus, *, storage: str = "file", name: str = "") -> Bucket:
    name = name or f"test_{uuid.uuid4().hex}"
    await bus.api(
        f"STREAM.CREATE.KV_{name}",
        {
            "name": f"KV_{name}",
            "subjects": [f"$KV.{name}.>"],
            "storage": storage,
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": 60_000_000_000,
        },
    )
    return Bucket(bus, name)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    opened = await connect(CoreSettings(nats_url=nats_server.url), name="test")
    yield opened
    await opened.close()


@pytest.fixture
async def bucket(bus: Bus) -> Bucket:
    return await make_bucket(bus)


def shown(changes: list[KvChange]) -> list[tuple[str, bytes | None, str]]:
    return [(change.key, change.value, change.reason) for change in changes]


async def consumers(bus: Bus, bucket: Bucket) -> int:
    return int((await bus.api(f"CONSUMER.LIST.KV_{bucket.name}"))["total"])


# Reading and writing


async def test_value_that_was_put_is_read(bucket: Bucket) -> None:
    assert await bucket.get("a.b") is None

    revision = await bucket.put("a.b", b"1")

    entry = await bucket.get("a.b")
    assert entry == kv.KvEntry(b"1", revision)


async def test_empty_value_is_a_value(bucket: Bucket) -> None:
    await bucket.put("a", b"")

    entry = await bucket.get("a")

    assert entry is not None
    assert entry.value == b""
    assert await bucket.keys() == ["a"]


@pytest.mark.parametrize("key", ["", "a b", "a.*", ">", "a..b", ".a", "a.", "a\r\nb", "a\n"])
async def test_key_that_is_no_subject_is_refused(bucket: Bucket, key: str) -> None:
    with pytest.raises(RejectedError) as caught:
        await bucket.put(key, b"")

    assert caught.value.code == "invalid_key"


async def test_create_refuses_a_key_with_a_value(bucket: Bucket) -> None:
    await bucket.create("a", b"1")

    with pytest.raises(ConflictError) as caught:
        await bucket.create("a", b"2")

    assert caught.value.code == "key_exists"
    entry = await bucket.get("a")
    assert entry is not None
    assert entry.value == b"1"


async def test_create_succeeds_after_deletion(bucket: Bucket) -> None:
    await bucket.create("a", b"1")
    await bucket.delete("a")
    assert await bucket.get("a") is None

    await bucket.create("a", b"2")

    entry = await bucket.get("a")
    assert entry is not None
    assert entry.value == b"2"


async def test_create_succeeds_after_expiry(bucket: Bucket) -> None:
    await bucket.create("a", b"1", ttl_seconds=1)

    async def gone() -> bool:
        return await bucket.get("a") is None

    await eventually(gone)

    await bucket.create("a", b"2")

    entry = await bucket.get("a")
    assert entry is not None
    assert entry.value == b"2"


@pytest.fixture
def later() -> Iterator[Callable[[float], None]]:
    """Let the clock run ahead: what a server forgot to end is still stored then."""
    before = clock.offset_seconds()
    yield lambda seconds: clock.correct(before + seconds)
    clock.correct(before)


async def test_value_that_outlived_its_ttl_is_none(
    bucket: Bucket, later: Callable[[float], None]
) -> None:
    await bucket.put("kept.a", b"1")
    await bucket.put("dead.a", b"1", ttl_seconds=600)
    assert await bucket.keys() == ["dead.a", "kept.a"]

    later(601 + 2)

    assert await bucket.keys() == ["kept.a"]
    assert await bucket.get("dead.a") is None
    assert await bucket.get("kept.a") is not None


async def test_create_replaces_a_value_that_outlived_its_ttl(
    bucket: Bucket, later: Callable[[float], None]
) -> None:
    await bucket.create("a", b"dead", ttl_seconds=600)
    later(601 + 2)

    await bucket.create("a", b"2")

    assert await bucket.get("a") == kv.KvEntry(b"2", 2)


async def test_watch_ends_a_value_that_outlived_its_ttl(
    bucket: Bucket, later: Callable[[float], None]
) -> None:
    changes: list[KvChange] = []
    watch = await bucket.watch(">", changes.append)
    await bucket.put("kept", b"1")
    await bucket.put("a", b"1", ttl_seconds=600)
    await eventually(lambda: len(changes) == 2)

    later(601 + 2)

    await eventually(lambda: len(changes) == 3)
    assert shown(changes)[2] == ("a", None, "expired")
    await bucket.put("a", b"2", ttl_seconds=3600)
    await eventually(lambda: len(changes) == 4)
    assert shown(changes)[3] == ("a", b"2", "put")
    await watch.stop()


async def test_watch_leaves_out_what_outlived_its_ttl_before(
    bucket: Bucket, later: Callable[[float], None]
) -> None:
    changes: list[KvChange] = []
    await bucket.put("kept", b"1")
    await bucket.put("a", b"1", ttl_seconds=600)
    later(601 + 2)

    watch = await bucket.watch(">", changes.append)
    await watch.ready()

    assert shown(changes) == [("kept", b"1", "put")]
    await watch.stop()


async def test_marker_of_a_deletion_ends_by_itself(bus: Bus, bucket: Bucket) -> None:
    await bucket.put("a", b"1")
    await bucket.delete("a")

    found = await bus.api(
        f"STREAM.MSG.GET.KV_{bucket.name}", {"last_by_subj": f"$KV.{bucket.name}.a"}
    )

    assert b"Nats-TTL: 86400s" in base64.b64decode(found["message"]["hdrs"])


async def test_only_one_of_many_creators_wins(bucket: Bucket) -> None:
    await bucket.put("a", b"old")
    await bucket.delete("a")

    results = await asyncio.gather(
        *(bucket.create("a", str(number).encode()) for number in range(20)), return_exceptions=True
    )

    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, ConflictError) for result in results) == 19


async def test_update_of_another_revision_is_refused(bucket: Bucket) -> None:
    first = await bucket.put("a", b"1")
    second = await bucket.update("a", b"2", first)

    with pytest.raises(ConflictError) as caught:
        await bucket.update("a", b"3", first)

    assert caught.value.code == "wrong_revision"
    assert await bucket.get("a") == kv.KvEntry(b"2", second)


async def test_delete_of_another_revision_is_refused(bucket: Bucket) -> None:
    first = await bucket.put("a", b"1")
    await bucket.update("a", b"2", first)

    with pytest.raises(ConflictError):
        await bucket.delete("a", revision=first)

    assert await bucket.get("a") is not None


async def test_update_renews_the_ttl(bucket: Bucket) -> None:
    changes: list[KvChange] = []
    watch = await bucket.watch(">", changes.append)
    revision = await bucket.create("lease", b"1", ttl_seconds=1)

    ends = asyncio.get_running_loop().time() + 2.5

    async def kept_until_the_end() -> bool:
        nonlocal revision
        revision = await bucket.update("lease", b"2", revision, ttl_seconds=1)
        return asyncio.get_running_loop().time() > ends

    await eventually(kept_until_the_end, every=0.3)

    assert "expired" not in [change.reason for change in changes]
    await eventually(lambda: changes[-1].reason == "expired")
    await watch.stop()


async def test_keys_are_those_with_values_that_match(bucket: Bucket) -> None:
    for key in ("b.1", "a.2", "a.1", "a.1.x"):
        await bucket.put(key, b"x" * 1000)
    await bucket.delete("a.2")

    assert await bucket.keys() == ["a.1", "a.1.x", "b.1"]
    assert await bucket.keys("a.*") == ["a.1"]
    assert await bucket.keys("none.*") == []


async def test_keys_leaves_no_consumer(bus: Bus, bucket: Bucket) -> None:
    await bucket.keys()

    assert await consumers(bus, bucket) == 0


async def test_write_whose_answer_was_lost_is_not_taken_for_a_conflict(
    bus: Bus, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, lost = bus.request, 0

    async def lose_first(subject: str, body: bytes = b"", **options: Any) -> Any:
        nonlocal lost
        reply = await request(subject, body, **options)
        if subject.startswith("$KV.") and lost < 1:
            lost += 1
            raise TransientError("request_timeout", "lost")
        return reply

    monkeypatch.setattr(bus, "request", lose_first)

    revision = await bucket.create("a", b"mine")

    assert lost == 1
    assert await bucket.get("a") == kv.KvEntry(b"mine", revision)


# Watching


async def test_watch_gives_what_there_is_then_what_comes(bucket: Bucket) -> None:
    await bucket.put("a", b"1")
    await bucket.put("b", b"1")
    await bucket.put("c", b"1")
    await bucket.delete("c")
    changes: list[KvChange] = []

    watch = await bucket.watch(">", changes.append)
    await asyncio.wait_for(watch.ready(), 30)

    assert shown(changes) == [("a", b"1", "put"), ("b", b"1", "put")]
    await bucket.put("b", b"2")
    await bucket.delete("a")
    await bucket.put("d", b"1", ttl_seconds=1)
    await eventually(lambda: len(changes) == 6)
    assert shown(changes[2:]) == [
        ("b", b"2", "put"),
        ("a", None, "deleted"),
        ("d", b"1", "put"),
        ("d", None, "expired"),
    ]
    await watch.stop()


async def test_watch_of_an_empty_bucket_is_ready_at_once(bucket: Bucket) -> None:
    changes: list[KvChange] = []

    watch = await bucket.watch("x.>", changes.append)

    await asyncio.wait_for(watch.ready(), 30)
    await watch.stop()


async def test_watch_sees_only_what_matches(bucket: Bucket) -> None:
    changes: list[KvChange] = []
    watch = await bucket.watch("a.*", changes.append)

    await bucket.put("b.1", b"")
    await bucket.put("a.1", b"")

    await eventually(lambda: changes)
    assert [change.key for change in changes] == ["a.1"]
    await watch.stop()


async def test_watch_that_is_stopped_leaves_no_consumer(bus: Bus, bucket: Bucket) -> None:
    changes: list[KvChange] = []
    watch = await bucket.watch(">", changes.append)
    await watch.ready()

    await watch.stop()
    await bucket.put("a", b"")

    assert await consumers(bus, bucket) == 0
    assert changes == []
    assert bus.on_reconnect == []


async def test_watch_of_a_large_bucket_gives_every_key(bucket: Bucket) -> None:
    await asyncio.gather(*(bucket.put(f"k.{number}", b"x" * 200) for number in range(3000)))
    found: set[str] = set()

    watch = await bucket.watch(">", lambda change: found.add(change.key))
    await asyncio.wait_for(watch.ready(), 30)

    assert len(found) == 3000
    await watch.stop()


async def test_watch_whose_consumer_vanished_is_renewed_without_repeats(
    bus: Bus, bucket: Bucket
) -> None:
    changes: list[KvChange] = []
    await bucket.put("a", b"1")
    await bucket.put("b", b"1", ttl_seconds=60)
    watch = await bucket.watch(">", changes.append)
    await watch.ready()
    listed = await bus.api(f"CONSUMER.NAMES.KV_{bucket.name}")

    await bus.api(f"CONSUMER.DELETE.KV_{bucket.name}.{listed['consumers'][0]}")
    await bucket.put("a", b"2")
    await bucket.delete("b")
    await bucket.put("c", b"1")

    await eventually(lambda: len(changes) == 5)
    assert sorted(shown(changes[2:]), key=str) == [
        ("a", b"2", "put"),
        ("b", None, "deleted"),
        ("c", b"1", "put"),
    ]
    await watch.stop()


async def test_watch_goes_on_after_a_restart_of_the_server(
    create_nats_server: Callable[..., NatsServer],
) -> None:
    server = create_nats_server()
    bus = await connect(CoreSettings(nats_url=server.url), name="test")
    bucket = await make_bucket(bus)
    changes: list[KvChange] = []
    await bucket.put("a", b"1")
    watch = await bucket.watch(">", changes.append)
    await watch.ready()

    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)

    async def written() -> int:
        try:
            return await bucket.put("a", b"2")
        except TransientError as error:
            raise AssertionError(error.code) from error

    await eventually(written)
    await eventually(lambda: len(changes) == 2)
    assert shown(changes) == [("a", b"1", "put"), ("a", b"2", "put")]
    await watch.stop()
    await bus.close()


async def test_watch_tells_of_keys_that_went_with_the_server(
    create_nats_server: Callable[..., NatsServer],
) -> None:
    server = create_nats_server()
    bus = await connect(CoreSettings(nats_url=server.url), name="test")
    bucket = await make_bucket(bus, storage="memory", name="volatile")
    changes: list[KvChange] = []
    await bucket.put("a", b"1")
    await bucket.put("b", b"1")
    watch = await bucket.watch(">", changes.append)
    await watch.ready()

    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    # A single server forgets streams that are kept in memory, not only their messages.
    await eventually(lambda: bus.nc.is_connected)
    await make_bucket(bus, storage="memory", name="volatile")

    async def written() -> int:
        try:
            return await bucket.put("a", b"1")
        except TransientError as error:
            raise AssertionError(error.code) from error

    await eventually(written)
    await eventually(lambda: len(changes) >= 4)

    last = {change.key: change.value for change in changes}
    assert last == {"a": b"1", "b": None}
    await watch.stop()
    await bus.close()
