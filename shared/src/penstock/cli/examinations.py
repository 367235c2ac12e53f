"""The examinations of ``penstock doctor``: services, bus and databases; they change nothing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from statistics import median
from typing import Any, Final, Literal, NamedTuple

import httpx

from penstock import clock, rpc
from penstock.bus.connection import MINIMUM_SERVER, SKEW_SECONDS, JetStreamError
from penstock.bus.kv import Bucket
from penstock.bus.topology import consumer_table, stream_table
from penstock.child import LOOPBACK
from penstock.cli.failure import CommandError
from penstock.cli.wire import Wire, on_wire
from penstock.contracts import subjects
from penstock.contracts.errors import PenstockError
from penstock.contracts.rpc import Definition, DefinitionPage, DocumentKind, ListDefinitions
from penstock.contracts.runners import RunnerRecord
from penstock.target import Target

Level = Literal["ok", "warn", "fail"]

APPENDS: Final = 20
LAG_WARNING: Final = 1000
APPEND_WARNING_SECONDS: Final = 0.25
_PROBE_SECONDS: Final = 3.0
_SECOND_NS: Final = 1_000_000_000


class Finding(NamedTuple):
    """One result of an examination."""

    level: Level
    area: str
    text: str


def examine(target: Target) -> list[Finding]:
    """Run all examinations; an error of one is a finding, so that the others still run."""
    findings = [*_processes(target), *_gateway(target)]
    try:
        return findings + on_wire(target, lambda wire: _bus(wire, target))
    except CommandError as error:
        return [*findings, Finding("fail", "bus", error.message)]


# -- HTTP ------------------------------------------------------------------------------------


def _get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, timeout=_PROBE_SECONDS)
    except httpx.TransportError:
        return None


def _processes(target: Target) -> Iterator[Finding]:
    """Check the readiness of every process of a local stack."""
    stack = target.stack
    if stack is None:
        yield Finding("ok", "stack", f"none in {target.data_dir}: looking at the services alone")
        return
    for name, process in stack.processes.items():
        again = f", started again {process.restarts} times" if process.restarts else ""
        if process.pid is None:
            yield Finding("fail", name, f"is dead{again}")
        elif process.ready is not None:
            answer = _get(f"http://{LOOPBACK}:{process.metrics_port}/readyz")
            if answer is not None and answer.is_success:
                yield from _clock_of(name, answer)
                yield Finding("warn" if again else "ok", name, f"pid {process.pid} is ready{again}")
            else:
                reason = "no answer" if answer is None else answer.text.strip()
                yield Finding("fail", name, f"pid {process.pid} is not ready: {reason}")


def _clock_of(name: str, readiness: httpx.Response) -> Iterator[Finding]:
    """Warn of a process whose clock differs from the bus's."""
    offset = readiness.json().get("clock_offset_seconds", 0.0)
    if abs(offset) >= SKEW_SECONDS:
        yield Finding("warn", name, f"its clock is {_offset_text(offset)} the bus's")


def _offset_text(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'behind' if seconds > 0 else 'ahead of'}"


def _gateway(target: Target) -> Iterator[Finding]:
    answer = _get(f"{target.url}/health")
    if answer is None:
        yield Finding("fail", "gateway", f"no answer at {target.url}/health")
    elif answer.is_success:
        yield Finding("ok", "gateway", f"{target.url} is healthy")
    else:
        yield Finding("fail", "gateway", f"{target.url}/health says {answer.status_code}")


# -- the bus ---------------------------------------------------------------------------------


async def _bus(wire: Wire, target: Target) -> list[Finding]:
    server = wire.bus.nc.connected_server_version
    version = f"{server.major}.{server.minor}.{server.patch}"
    needed = ".".join(map(str, MINIMUM_SERVER))
    findings = [
        Finding("ok", "bus", f"nats-server {version} at {target.nats_url} "
                f"has all that Penstock needs ({needed} or newer)")
    ]  # fmt: skip
    for examination in (
        _clock,
        _durability,
        _streams,
        _consumers,
        _leases,
        _runners,
        _queues,
        _databases,
    ):
        findings += await _guarded(examination, wire, target)
    return findings


async def _guarded(
    examination: Callable[[Wire, Target], AsyncIterator[Finding]], wire: Wire, target: Target
) -> list[Finding]:
    """Run one examination; an error is a finding, so that the others still run."""
    area = examination.__name__.strip("_")
    try:
        return [finding async for finding in examination(wire, target)]
    except (PenstockError, JetStreamError) as error:
        return [Finding("fail", area, str(error))]


async def _clock(wire: Wire, _target: Target) -> AsyncIterator[Finding]:
    """Compare this machine's clock with the bus's."""
    await wire.bus.measure_clock()
    offset = clock.offset_seconds()
    level: Level = "ok" if abs(offset) < SKEW_SECONDS else "warn"
    yield Finding(level, "clock", f"this machine's clock is {_offset_text(offset)} the bus's")


async def _durability(wire: Wire, target: Target) -> AsyncIterator[Finding]:
    """Report when a message is on disk, and how long an append takes."""
    settings = _jetstream_settings(target)
    if settings is None:
        yield Finding("ok", "durability", "unknown: the bus's monitoring HTTP is not known "
                      "(PENSTOCK_NATS_MONITOR_URL)")  # fmt: skip
    elif settings.get("sync_always"):
        yield Finding("ok", "durability", "power-loss safe: sync_interval always")
    else:
        interval = int(settings.get("sync_interval", 0)) / _SECOND_NS
        replicas = wire.settings.streams_replicas
        text = f"written to disk at once, flushed every {interval:g} s"
        if replicas == 1:
            text += ": a power cut may lose that much (`penstock dev --durable`)"
        yield Finding("ok" if replicas > 1 or _is_local(target) else "warn", "durability", text)
    times = []
    subject = subjects.canary("doctor")
    for number in range(APPENDS):
        before = time.perf_counter()
        reply = await wire.bus.request(subject, str(number).encode())
        times.append(time.perf_counter() - before)
        if (refused := json.loads(reply.data).get("error")) is not None:
            yield Finding("fail", "append", f"the canary was refused: {refused}")
            return
    middle, worst = median(times), max(times)
    yield Finding(
        "warn" if worst > APPEND_WARNING_SECONDS else "ok",
        "append",
        f"{middle * 1000:.2f} ms at the median, {worst * 1000:.2f} ms at worst of {APPENDS}",
    )


def _is_local(target: Target) -> bool:
    return target.stack is not None


def _jetstream_settings(target: Target) -> dict[str, Any] | None:
    if target.monitor_url is None:
        return None
    answer = _get(f"{target.monitor_url}/jsz?config=1")
    if answer is None or not answer.is_success:
        return None
    settings: dict[str, Any] = answer.json().get("config") or {}
    return settings


async def _streams(wire: Wire, _target: Target) -> AsyncIterator[Finding]:
    """Compare every stream with the topology's table."""
    total = total_bytes = 0
    wanted = stream_table(wire.settings)
    for want in wanted:
        name = want["name"]
        try:
            info = await wire.bus.api(f"STREAM.INFO.{name}")
        except JetStreamError as error:
            yield Finding("fail", "streams", f"{name}: {error.description}")
            continue
        config, state = info["config"], info["state"]
        total += state["messages"]
        total_bytes += state["bytes"]
        differs = [
            f"{field} is {config.get(field)!r}, not {value!r}"
            for field, value in want.items()
            if isinstance(value, (str, bool)) and (config.get(field) or False) != (value or False)
        ]
        if differs:
            yield Finding("fail", "streams", f"{name}: {'; '.join(differs)}")
        if (cluster := info.get("cluster")) and not cluster.get("leader"):
            yield Finding("fail", "streams", f"{name} has no leader")
        if name == subjects.DEAD and state["messages"]:
            yield Finding("warn", "dead letters", f"{state['messages']} given up on")
    yield Finding(
        "ok", "streams", f"{len(wanted)} looked at: {total} messages, {total_bytes / 2**20:.1f} MiB"
    )


async def _consumers(wire: Wire, _target: Target) -> AsyncIterator[Finding]:
    """Check for each durable consumer that it is read, and its lag."""
    wanted = {(stream, want["durable_name"]) for stream, want in consumer_table(wire.settings)}
    seen: set[tuple[str, str]] = set()
    for stream in (subjects.RUNS, subjects.TIMERS):
        async for info in _consumers_of(wire, stream):
            name = info["name"]
            seen.add((stream, name))
            lag, unacked = info["num_pending"], info["num_ack_pending"]
            load = f"{stream}/{name}: {lag} behind, {unacked} unacknowledged"
            if info["num_redelivered"]:
                load += f", {info['num_redelivered']} delivered again"
            if (lag or unacked) and not info["num_waiting"] and not unacked:
                yield Finding("fail", "consumers", f"{load}, and no consumer reads")
            elif lag > LAG_WARNING or info["num_redelivered"]:
                yield Finding("warn", "consumers", load)
            elif lag or unacked:
                yield Finding("ok", "consumers", load)
    for stream, name in sorted(wanted - seen):
        yield Finding("fail", "consumers", f"{stream}/{name} is missing")
    yield Finding("ok", "consumers", f"{len(seen)} looked at")


async def _consumers_of(wire: Wire, stream: str) -> AsyncIterator[dict[str, Any]]:
    offset = 0
    while True:
        answer = await wire.bus.api(f"CONSUMER.LIST.{stream}", {"offset": offset})
        found = answer.get("consumers") or []
        for info in found:
            if info["config"].get("durable_name"):
                yield info
        offset += len(found)
        if not found or offset >= answer["total"]:
            return


async def _leases(wire: Wire, _target: Target) -> AsyncIterator[Finding]:
    """Check that an engine holds each shard."""
    held = set(await Bucket(wire.bus, subjects.LEASES).keys())
    shards = range(wire.settings.shards)
    free = [shard for shard in shards if subjects.shard_lease_key(shard) not in held]
    if free:
        yield Finding("fail", "leases", f"no engine holds shard {', '.join(map(str, free))}")
    else:
        yield Finding("ok", "leases", f"all {len(shards)} shards are held")


async def _pools(wire: Wire) -> dict[str, int]:
    """Return the number of runners that take steps, by ``{kind}.{queue}``."""
    bucket = Bucket(wire.bus, subjects.RUNNERS)
    pools: dict[str, int] = {}
    for key in await bucket.keys():
        if (entry := await bucket.get(key)) is not None:
            record = RunnerRecord.model_validate_json(entry.value)
            pools[record.pool] = pools.get(record.pool, 0) + (not record.draining)
    return pools


async def _runners(wire: Wire, _target: Target) -> AsyncIterator[Finding]:
    """List the pools of live runners."""
    pools = await _pools(wire)
    if not pools:
        yield Finding("fail", "runners", "none is registered: no step will run")
    else:
        shown = ", ".join(f"{count} of {pool}" for pool, count in sorted(pools.items()))
        yield Finding("ok", "runners", shown)


async def _queues(wire: Wire, target: Target) -> AsyncIterator[Finding]:
    """Report published tools and agents that name a queue without a runner."""
    pools = await _pools(wire)
    for kind in (DocumentKind.AGENT, DocumentKind.TOOL):
        request = ListDefinitions(tenant=target.tenant, kind=kind, limit=1000)
        page = await rpc.call(wire.bus, "registry", "list_definitions", request, DefinitionPage)
        for one in page.items:
            pool = f"{kind}.{_queue_of(one)}"
            if one.status == "published" and pool != f"{kind}." and not pools.get(pool):
                text = f"no runner serves queue {pool}: steps of {kind} {one.name} wait"
                yield Finding("warn", "queues", text)


def _queue_of(definition: Definition) -> str:
    """Return the queue of an agent's or a tool's steps; empty for a tool of the caller."""
    document: Any = definition.document
    spec = document["spec"]
    if definition.kind is DocumentKind.AGENT:
        return str(spec.get("queue", "default"))
    for form, queue in (("builtin", "builtin"), ("http", "http"), ("runner", "")):
        if spec.get(form) is not None:
            return str(spec[form].get("queue", queue))
    return ""


async def _databases(wire: Wire, target: Target) -> AsyncIterator[Finding]:
    """Let both owners of a database read from it."""
    probes: tuple[tuple[Literal["registry", "archive"], str, dict[str, Any]], ...] = (
        ("registry", "list_definitions", {"tenant": target.tenant, "kind": "agent", "limit": 1}),
        ("archive", "list_runs", {"tenant": target.tenant, "limit": 1}),
    )
    for service, verb, request in probes:
        area = f"{service} database"
        before = time.perf_counter()
        try:
            reply = await wire.bus.request(
                subjects.rpc(service, verb), json.dumps(request).encode()
            )
        except PenstockError as error:
            yield Finding("fail", area, error.message)
            continue
        answer = json.loads(reply.data)
        took = (time.perf_counter() - before) * 1000
        if answer.get("ok"):
            yield Finding("ok", area, f"answered in {took:.1f} ms")
        else:
            yield Finding("fail", area, str((answer.get("error") or {}).get("message")))
