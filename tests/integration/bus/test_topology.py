"""Streams, buckets and durables: made once, kept, never changed destructively."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.bus.connection import Bus, connect
from penstock.bus.topology import (
    consumer_table,
    ensure,
    ensure_runner_consumer,
    stream_table,
)
from penstock.contracts import subjects
from penstock.contracts.errors import InvariantError, TransientError
from penstock.embedded import NatsServer
from penstock.settings import CoreSettings

Open = Callable[..., Awaitable[tuple[Bus, CoreSettings]]]


@pytest.fixture
async def open_bus(
    create_nats_server: Callable[..., NatsServer], tmp_path: Path
) -> AsyncIterator[Open]:
    """Connect to an empty server."""
    server = create_nats_server()
    async with AsyncExitStack() as stack:

        async def open_bus(**changes: Any) -> tuple[Bus, CoreSettings]:
            settings = CoreSettings(nats_url=server.url, data_dir=tmp_path, **changes)
            bus = await connect(settings, name="test")
            stack.push_async_callback(bus.close)
            return bus, settings

        yield open_bus


async def picture(bus: Bus, settings: CoreSettings) -> dict[str, Any]:
    """Return all configurations, and when each thing was made."""
    found: dict[str, Any] = {}
    for stream in stream_table(settings):
        info = await bus.api(f"STREAM.INFO.{stream['name']}")
        found[stream["name"]] = (info["config"], info["created"])
    for stream_name, consumer in consumer_table(settings):
        name = consumer["durable_name"]
        info = await bus.api(f"CONSUMER.INFO.{stream_name}.{name}")
        found[f"{stream_name}/{name}"] = (info["config"], info["created"])
    return found


async def test_ensure_on_an_empty_server_makes_all_that_the_tables_name(open_bus: Open) -> None:
    bus, settings = await open_bus()

    await ensure(bus, settings)

    found = await picture(bus, settings)
    assert {"RUNS", "TIMERS", "DELTAS", "DEAD", "KV_plans", "RUNS/projector"} <= set(found)
    runs = found["RUNS"][0]
    assert (runs["max_msgs_per_subject"], runs["discard"], runs["discard_new_per_subject"]) == (
        1,
        "new",
        True,
    )
    assert sum(name.startswith("RUNS/engine_") for name in found) == settings.shards


async def test_ensure_twice_changes_nothing(open_bus: Open) -> None:
    bus, settings = await open_bus()
    await ensure(bus, settings)
    before = await picture(bus, settings)

    await ensure(bus, settings)

    assert await picture(bus, settings) == before


async def test_ensure_by_many_processes_at_once_succeeds_in_all(open_bus: Open) -> None:
    opened = [await open_bus() for _ in range(5)]

    await asyncio.gather(*(ensure(bus, settings) for bus, settings in opened))

    assert len(await picture(*opened[0])) > 20


async def test_ensure_keeps_what_is_stored_and_what_consumers_have_seen(open_bus: Open) -> None:
    bus, settings = await open_bus()
    await ensure(bus, settings)
    await bus.request("run.t.0.R.in.cancel", b"{}")

    await ensure(bus, settings)

    assert (await bus.api("STREAM.INFO.RUNS"))["state"]["messages"] == 1
    assert (await bus.api("CONSUMER.INFO.RUNS.engine_0"))["num_pending"] == 1


async def test_ensure_makes_what_is_missing_again(open_bus: Open) -> None:
    bus, settings = await open_bus()
    await ensure(bus, settings)
    await bus.api("CONSUMER.DELETE.RUNS.engine_3")
    await bus.api("STREAM.DELETE.DELTAS")

    await ensure(bus, settings)

    assert {"RUNS/engine_3", "DELTAS"} <= set(await picture(bus, settings))


async def test_ensure_tries_again_while_streams_have_no_leader(
    open_bus: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, settings = await open_bus()
    refused: set[str] = set()
    api = Bus.api

    async def api_without_leader_at_first(bus: Bus, verb: str, *args: Any, **options: Any) -> Any:
        if verb not in refused:
            refused.add(verb)
            raise TransientError("bus_unavailable", "no leader yet")
        return await api(bus, verb, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Bus, "api", api_without_leader_at_first)
        with pytest.raises(TransientError):
            await ensure(bus, settings, patience_seconds=0)
        await ensure(bus, settings)

    assert (await picture(bus, settings)).keys() >= {subjects.RUNS, subjects.TIMERS}


async def test_ensure_with_another_number_of_shards_is_refused(open_bus: Open) -> None:
    bus, settings = await open_bus()
    await ensure(bus, settings)
    before = await picture(bus, settings)
    _, other = await open_bus(shards=16)

    with pytest.raises(InvariantError) as refused:
        await ensure(bus, other)

    assert refused.value.code == "topology_differs"
    assert "8 shards" in refused.value.message
    assert "PENSTOCK_SHARDS says 16" in refused.value.message
    assert refused.value.details[0].allowed == "8"
    assert await picture(bus, settings) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_msgs_per_subject", 5), ("storage", "memory"), ("subjects", ["run.>", "more.>"])],
)
async def test_ensure_refuses_a_stream_that_differs_in_what_it_means(
    open_bus: Open, field: str, value: object
) -> None:
    bus, settings = await open_bus()
    runs = next(stream for stream in stream_table(settings) if stream["name"] == "RUNS")
    await bus.api("STREAM.CREATE.RUNS", {**runs, field: value})

    with pytest.raises(InvariantError) as refused:
        await ensure(bus, settings)

    assert refused.value.code == "topology_differs"
    assert [detail.path for detail in refused.value.details] == [f"stream RUNS.{field}"]
    assert (await bus.api("STREAM.INFO.RUNS"))["config"][field] == value


async def test_ensure_refuses_a_consumer_with_another_filter(open_bus: Open) -> None:
    bus, settings = await open_bus()
    await ensure(bus, settings)
    await bus.api("CONSUMER.DELETE.RUNS.engine_0")
    await bus.api(
        "CONSUMER.CREATE.RUNS.engine_0",
        {
            "stream_name": "RUNS",
            "config": {
                "durable_name": "engine_0",
                "name": "engine_0",
                "filter_subject": "run.>",
                "ack_policy": "explicit",
                "ack_wait": 10_000_000_000,
                "max_ack_pending": 10_000,
                "max_deliver": -1,
            },
        },
    )

    with pytest.raises(InvariantError) as refused:
        await ensure(bus, settings)

    assert [detail.path for detail in refused.value.details] == [
        "consumer RUNS/engine_0.filter_subject"
    ]


async def test_ensure_updates_what_may_be_updated(open_bus: Open) -> None:
    bus, settings = await open_bus()
    runs = next(stream for stream in stream_table(settings) if stream["name"] == "RUNS")
    await bus.api("STREAM.CREATE.RUNS", {**runs, "max_age": 3_600_000_000_000})
    await bus.request("run.t.0.R.in.cancel", b"{}")

    await ensure(bus, settings)

    info = await bus.api("STREAM.INFO.RUNS")
    assert info["config"]["max_age"] == runs["max_age"]
    assert info["state"]["messages"] == 1


async def test_ensure_follows_a_changed_ack_wait(open_bus: Open) -> None:
    bus, settings = await open_bus()
    await ensure(bus, settings)
    _, slower = await open_bus(ack_wait_seconds=20)

    await ensure(bus, slower)

    info = await bus.api("CONSUMER.INFO.RUNS.engine_0")
    assert info["config"]["ack_wait"] == 20_000_000_000


async def test_ensure_runner_consumer_is_made_once_and_named_after_its_queue(
    open_bus: Open,
) -> None:
    bus, settings = await open_bus()
    await ensure(bus, settings)

    names = await asyncio.gather(
        *(ensure_runner_consumer(bus, settings, "tool", "http") for _ in range(5))
    )

    assert set(names) == {subjects.runner_consumer("tool", "http")}
    info = await bus.api(f"CONSUMER.INFO.RUNS.{names[0]}")
    assert info["config"]["filter_subject"] == subjects.runner_filter("tool", "http")
