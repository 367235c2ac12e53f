"""Streams, buckets and durable consumers: one table, applied in one place.

``ensure`` creates missing streams and buckets, raises limits that are safe to raise, and refuses
changes that would destroy or reinterpret stored facts. It may run in every process at every start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Final, Literal, Required, TypedDict

from penstock.bus.connection import Bus, JetStreamError
from penstock.contracts import subjects
from penstock.contracts.errors import ErrorDetail, InvariantError, TransientError
from penstock.settings import CoreSettings
from penstock.telemetry.logs import EventLog

log = EventLog(__name__)

PATIENCE_SECONDS: Final = 20.0
_AGAIN_SECONDS: Final = 0.5
_SECOND: Final = 1_000_000_000
_DAY: Final = 86_400 * _SECOND
_NOT_FOUND: Final = 404
_STREAM_IN_USE: Final = 10058
_CONSUMER_EXISTS: Final = (10148, 10105)

SHARDS_KEY: Final = "penstock.shards"
MAX_ACK_PENDING: Final = 10_000

# Fields that an existing stream or consumer may differ in; they are updated to the table's value.
_UPDATABLE: Final = frozenset(
    {"max_age", "num_replicas", "max_bytes", "description", "ack_wait", "max_ack_pending"}
)


class StreamConfig(TypedDict, total=False):
    """Configuration of a stream, as the JetStream API names it; times in nanoseconds."""

    name: Required[str]
    subjects: Required[list[str]]
    storage: Required[Literal["file", "memory"]]
    retention: Required[Literal["limits"]]
    discard: Required[Literal["old", "new"]]
    discard_new_per_subject: bool
    max_msgs_per_subject: int
    max_age: int
    max_bytes: int
    allow_direct: bool
    allow_atomic: bool
    allow_msg_ttl: bool
    allow_msg_schedules: bool
    allow_rollup_hdrs: bool
    deny_delete: bool
    subject_delete_marker_ttl: int
    republish: dict[Literal["src", "dest"], str]
    metadata: dict[str, str]
    num_replicas: int


class ConsumerConfig(TypedDict):
    """Configuration of a durable consumer, as the JetStream API names it."""

    durable_name: str
    filter_subject: str
    ack_policy: Literal["all", "explicit"]
    deliver_policy: Literal["all"]
    ack_wait: int
    """Nanoseconds."""
    max_deliver: int
    max_ack_pending: int


def stream_table(settings: CoreSettings) -> list[StreamConfig]:
    """Return the configuration of every stream of an installation, buckets included."""
    runs: StreamConfig = {
        "name": subjects.RUNS,
        "subjects": [subjects.RUN_SPACE],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": 1,
        "max_age": 0,  # the engine deletes ended runs; the server would delete open ones too
        "allow_direct": True,
        "allow_atomic": True,
        "republish": {"src": subjects.RUN_SPACE, "dest": subjects.LIVE_SPACE},
        "metadata": {SHARDS_KEY: str(settings.shards)},
    }
    timers: StreamConfig = {
        "name": subjects.TIMERS,
        "subjects": [subjects.TIMER_SPACE],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_age": 400 * _DAY,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
    }
    deltas: StreamConfig = {
        "name": subjects.DELTAS,
        "subjects": [subjects.DELTA_SPACE],
        "storage": "memory",
        "retention": "limits",
        "discard": "old",
        "max_age": 600 * _SECOND,
        "max_bytes": 256 * 2**20,
        "allow_direct": True,
    }
    dead: StreamConfig = {
        "name": subjects.DEAD,
        "subjects": [subjects.DEAD_SPACE],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_age": 30 * _DAY,
        "allow_direct": True,
    }
    canary: StreamConfig = {
        "name": subjects.CANARY,
        "subjects": [subjects.CANARY_SPACE],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_age": 1 * _DAY,
        "allow_direct": True,
    }
    artifacts: StreamConfig = {
        "name": f"OBJ_{subjects.ARTIFACTS}",
        "subjects": [f"$O.{subjects.ARTIFACTS}.C.>", f"$O.{subjects.ARTIFACTS}.M.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": int(settings.object_keep_days * _DAY),
        "allow_direct": True,
        "allow_rollup_hdrs": True,
    }
    buckets = [
        _bucket(subjects.PLANS),
        _bucket(subjects.PUBLISHED),
        _bucket(subjects.RUNNERS),
        _bucket(subjects.KEYS),
        _bucket(subjects.SESSIONS),
        _bucket(subjects.LEASES),
        _bucket(subjects.WEBHOOKS),
        _bucket(subjects.SCHEDULES),
        _bucket(subjects.PENDING),
        _bucket(subjects.TURNS),
        _bucket(subjects.LIMITS),
    ]
    table = [runs, timers, deltas, dead, canary, artifacts, *buckets]
    return [{**stream, "num_replicas": settings.streams_replicas} for stream in table]


def _bucket(name: str) -> StreamConfig:
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": 60 * _SECOND,
    }


def consumer_table(settings: CoreSettings) -> list[tuple[str, ConsumerConfig]]:
    """Return stream and configuration of every durable that the installation itself needs."""
    consumers: list[tuple[str, ConsumerConfig]] = []
    for shard in range(settings.shards):
        consumers.append(
            (
                subjects.RUNS,
                _durable(settings, subjects.engine_consumer(shard), subjects.engine_filter(shard)),
            )
        )
        consumers.append(
            (
                subjects.TIMERS,
                _durable(
                    settings, subjects.timer_consumer(shard), subjects.timer_due_filter(shard)
                ),
            )
        )
    projector: ConsumerConfig = {
        "durable_name": subjects.PROJECTOR,
        "filter_subject": subjects.RUN_SPACE,
        "ack_policy": "all",
        "deliver_policy": "all",
        "ack_wait": 60 * _SECOND,
        "max_deliver": -1,
        "max_ack_pending": 50_000,
    }
    consumers.append((subjects.RUNS, projector))
    return consumers


def _durable(settings: CoreSettings, name: str, subject_filter: str) -> ConsumerConfig:
    return {
        "durable_name": name,
        "filter_subject": subject_filter,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": int(settings.ack_wait_seconds * _SECOND),
        "max_deliver": -1,
        "max_ack_pending": MAX_ACK_PENDING,
    }


async def ensure(
    bus: Bus, settings: CoreSettings, *, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Bring streams, buckets and durables to what the table says.

    Args:
        bus: An open connection.
        settings: What the table depends on.
        patience_seconds: How long to try again while streams or durables have no leader, as
            after the loss of a server of a cluster.

    Raises:
        InvariantError: ``topology_differs`` if something stored would have to be destroyed or
            reinterpreted; the details name each field, its present and its wanted value.
        TransientError: The bus does not answer.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + patience_seconds
    while True:
        try:
            await _all(_ensure_stream(bus, want) for want in stream_table(settings))
            await _all(
                ensure_consumer(bus, stream, want) for stream, want in consumer_table(settings)
            )
        except TransientError as error:
            if loop.time() >= give_up_at:
                raise
            log.warning("bus.topology_delayed", reason=error.message)
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            # The first process of an installation had no stream to ask for the time.
            await bus.measure_clock()
            return


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Wait for all, then raise what the first one that failed raised."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def ensure_runner_consumer(bus: Bus, settings: CoreSettings, kind: str, queue: str) -> str:
    """Create the durable that a runner pool shares, if it is missing; return its name.

    Raises:
        InvariantError: ``topology_differs``.
    """
    name = subjects.runner_consumer(kind, queue)
    await ensure_consumer(
        bus, subjects.RUNS, _durable(settings, name, subjects.runner_filter(kind, queue))
    )
    return name


async def _ensure_stream(bus: Bus, want: StreamConfig) -> None:
    name = want["name"]
    try:
        have = (await bus.api(f"STREAM.INFO.{name}"))["config"]
    except JetStreamError as error:
        if error.code != _NOT_FOUND:
            raise
        try:
            await bus.api(f"STREAM.CREATE.{name}", want, timeout_seconds=15)
        except JetStreamError as created:
            if created.err_code != _STREAM_IN_USE:
                raise
        else:
            return
        # Another process was faster.
        have = (await bus.api(f"STREAM.INFO.{name}"))["config"]
    changes = _differences(f"stream {name}", have, want)
    if changes:
        await bus.api(f"STREAM.UPDATE.{name}", {**have, **changes}, timeout_seconds=15)


async def ensure_consumer(bus: Bus, stream: str, want: ConsumerConfig) -> None:
    """Create a durable if it is missing, or update what may be updated.

    Raises:
        InvariantError: ``topology_differs``.
    """
    name: str = want["durable_name"]
    config: Mapping[str, object] = want
    try:
        have = (await bus.api(f"CONSUMER.INFO.{stream}.{name}"))["config"]
    except JetStreamError as error:
        if error.code != _NOT_FOUND:
            raise
    else:
        changes = _differences(f"consumer {stream}/{name}", have, want)
        if not changes:
            return
        config = {**have, **changes}
    try:
        await bus.api(
            f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}",
            {"stream_name": stream, "config": {**config, "name": name}},
            timeout_seconds=15,
        )
    except JetStreamError as error:
        if error.err_code not in _CONSUMER_EXISTS:
            raise


def _differences(
    what: str, have: Mapping[str, Any], want: Mapping[str, Any]
) -> Mapping[str, object]:
    """Return the fields to update; refuse those that must not be changed."""
    changes: dict[str, object] = {}
    refused: list[ErrorDetail] = []
    for field, wanted in want.items():
        found = have.get(field)
        if field == "metadata":
            shards = (found or {}).get(SHARDS_KEY)
            if shards is not None and shards != wanted[SHARDS_KEY]:
                refused.append(
                    ErrorDetail(
                        path=f"{what}.shards",
                        message=f"the stream was made with {shards} shards, "
                        f"PENSTOCK_SHARDS says {wanted[SHARDS_KEY]}",
                        allowed=shards,
                    )
                )
        elif (found or 0 if isinstance(wanted, (int, bool)) else found) == wanted:
            continue
        elif field in _UPDATABLE:
            changes[field] = wanted
        else:
            refused.append(
                ErrorDetail(
                    path=f"{what}.{field}", message=f"is {found!r}, Penstock needs {wanted!r}"
                )
            )
    if refused:
        raise InvariantError(
            "topology_differs",
            f"{what} exists with another configuration; nothing was changed: "
            + "; ".join(f"{detail.path}: {detail.message}" for detail in refused),
            details=tuple(refused),
        )
    return changes
