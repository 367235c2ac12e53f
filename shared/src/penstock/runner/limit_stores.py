"""Where rate limits are kept: in a bucket of the bus, or in Redis.

The bucket needs nothing else and is enough for hundreds of calls a second; Redis decides in one
script, by its own clock, for thousands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from pydantic import ValidationError

from penstock import clock
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError, TransientError
from penstock.contracts.runners import LimitRecord
from penstock.runner.rates import (
    BUSY_SECONDS,
    HORIZON_SECONDS,
    LEASE_SECONDS,
    Rule,
    admit,
    charge,
    idle_seconds,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

CONFLICTS: Final = 50
"""Others that may be faster before one has to come back later."""
CONTENDED_SECONDS: Final = 0.25
KEPT_SECONDS: Final = 60.0
REDIS_SECONDS: Final = 2.0
_PREFIX: Final = "{penstock}:limit:"

T = TypeVar("T")


class BucketStore:
    """Limits in bucket ``limits``, changed by compare-and-set."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, subjects.LIMITS)
        self._locks: dict[str, asyncio.Lock] = {}

    async def take(self, rule: Rule, holder: str) -> float:
        """As `LimitStore.take`."""

        def change(record: LimitRecord, now: float) -> tuple[LimitRecord, float]:
            return admit(rule, record, now, holder)

        return await self._change(rule, change, CONTENDED_SECONDS)

    async def leave(self, rule: Rule, holder: str, tokens: int) -> None:
        """As `LimitStore.leave`."""

        def change(record: LimitRecord, now: float) -> tuple[LimitRecord, None]:
            return charge(rule, record, now, holder, tokens), None

        await self._change(rule, change, None)

    async def renew(self, rule: Rule, holders: Sequence[str]) -> None:
        """As `LimitStore.renew`."""

        def change(record: LimitRecord, now: float) -> tuple[LimitRecord, None]:
            kept = dict.fromkeys(holders, now + LEASE_SECONDS)
            return record.model_copy(update={"held": {**record.held, **kept}}), None

        await self._change(rule, change, None)

    async def close(self) -> None:
        """Nothing is open."""

    async def _change(
        self, rule: Rule, change: Callable[[LimitRecord, float], tuple[LimitRecord, T]], given_up: T
    ) -> T:
        key = subjects.limit_key(rule.key)
        # Within a process one after the other: only processes contend.
        async with self._locks.setdefault(rule.name, asyncio.Lock()):
            for _ in range(CONFLICTS):
                try:
                    return await self._try(key, rule, change)
                except ConflictError:
                    continue
                except JetStreamError as error:
                    raise TransientError("limits_unavailable", str(error)) from error
        return given_up

    async def _try(
        self, key: str, rule: Rule, change: Callable[[LimitRecord, float], tuple[LimitRecord, T]]
    ) -> T:
        entry = await self._bucket.get(key)
        now = clock.epoch()
        record, answer = change(_read(rule, entry.value if entry is not None else None), now)
        body = record.model_dump_json().encode()
        ttl = idle_seconds(record, now) + KEPT_SECONDS
        if entry is None:
            await self._bucket.create(key, body, ttl_seconds=ttl)
        else:
            await self._bucket.update(key, body, entry.revision, ttl_seconds=ttl)
        return answer


def _read(rule: Rule, value: bytes | None) -> LimitRecord:
    if value is not None:
        try:
            return LimitRecord.model_validate_json(value)
        except ValidationError:
            # The record has no owner: begin anew rather than block all runners for ever.
            return LimitRecord(name=rule.name)
    return LimitRecord(name=rule.name)


_TAKE: Final = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local holder = ARGV[1]
local spacing, burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens_burst, places = tonumber(ARGV[4]), tonumber(ARGV[5])
local lease, horizon, busy = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local function field(name)
  return tonumber(redis.call('HGET', KEYS[1], name) or '0')
end
local away = 0
local calls_at = math.max(field('calls_at'), now)
if spacing > 0 then away = calls_at + spacing - burst - now end
if tokens_burst > 0 then away = math.max(away, field('tokens_at') - tokens_burst - now) end
if places > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= places and not redis.call('ZSCORE', KEYS[2], holder) then
    away = math.max(away, busy)
  end
end
local answer = 0
if away > 0.000001 then
  local at = math.min(math.max(field('free_at'), now + away), now + horizon)
  local apart = spacing > 0 and spacing or busy / 10
  redis.call('HSET', KEYS[1], 'free_at', string.format('%.6f', at + apart))
  answer = at - now
else
  if spacing > 0 then
    redis.call('HSET', KEYS[1], 'calls_at', string.format('%.6f', calls_at + spacing))
  end
  if places > 0 then
    redis.call('ZADD', KEYS[2], string.format('%.6f', now + lease), holder)
    redis.call('EXPIRE', KEYS[2], math.ceil(lease * 2))
  end
end
local last = math.max(field('calls_at'), field('tokens_at'), field('free_at'), now)
redis.call('EXPIRE', KEYS[1], math.ceil(last - now) + 60)
return string.format('%.6f', answer)
"""
_LEAVE: Final = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
redis.call('ZREM', KEYS[2], ARGV[1])
local spent = tonumber(ARGV[2])
if spent > 0 then
  local at = math.max(tonumber(redis.call('HGET', KEYS[1], 'tokens_at') or '0'), now) + spent
  redis.call('HSET', KEYS[1], 'tokens_at', string.format('%.6f', at))
  redis.call('EXPIRE', KEYS[1], math.ceil(at - now) + 60)
end
return 0
"""
_RENEW: Final = """
local t = redis.call('TIME')
local until_at = tonumber(t[1]) + tonumber(t[2]) / 1000000 + tonumber(ARGV[1])
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[2], string.format('%.6f', until_at), ARGV[i])
end
redis.call('EXPIRE', KEYS[2], math.ceil(tonumber(ARGV[1]) * 2))
return 0
"""


class RedisStore:
    """Limits in Redis: each question is one script, and the server's clock counts."""

    def __init__(self, url: str) -> None:
        """Name the server; nothing is asked of it yet.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``.

        Raises:
            RejectedError: ``redis_not_installed``, or ``invalid_redis_url``.
        """
        try:
            from redis.asyncio import Redis  # noqa: PLC0415 - only where it is configured
            from redis.exceptions import RedisError  # noqa: PLC0415
        except ImportError as error:
            raise RejectedError(
                "redis_not_installed",
                "PENSTOCK_REDIS_URL is set, but the client is missing: install penstock[redis]",
            ) from error
        self._errors = RedisError
        try:
            self._redis: Redis = Redis.from_url(
                url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS
            )
        except ValueError as error:
            # Its text may repeat the URL, which may hold a password.
            raise RejectedError(
                "invalid_redis_url", "PENSTOCK_REDIS_URL is no URL of a Redis server"
            ) from error
        self._take = self._redis.register_script(_TAKE)
        self._leave = self._redis.register_script(_LEAVE)
        self._renew = self._redis.register_script(_RENEW)

    async def take(self, rule: Rule, holder: str) -> float:
        """As `LimitStore.take`."""
        calls, tokens = rule.calls, rule.tokens
        answer = await self._ask(
            self._take,
            rule,
            holder,
            calls.spacing_seconds if calls is not None else 0,
            calls.burst_seconds if calls is not None else 0,
            tokens.burst_seconds if tokens is not None else 0,
            rule.places or 0,
            LEASE_SECONDS,
            HORIZON_SECONDS,
            BUSY_SECONDS,
        )
        return float(answer)

    async def leave(self, rule: Rule, holder: str, tokens: int) -> None:
        """As `LimitStore.leave`."""
        spent = tokens * rule.tokens.spacing_seconds if rule.tokens is not None else 0
        await self._ask(self._leave, rule, holder, spent)

    async def renew(self, rule: Rule, holders: Sequence[str]) -> None:
        """As `LimitStore.renew`."""
        await self._ask(self._renew, rule, LEASE_SECONDS, *holders)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _ask(self, script: Any, rule: Rule, *arguments: str | float) -> Any:
        keys = [f"{_PREFIX}{rule.key}", f"{_PREFIX}{rule.key}:held"]
        try:
            return await cast("Awaitable[Any]", script(keys=keys, args=arguments))
        except (self._errors, OSError) as error:
            raise TransientError("limits_unavailable", f"Redis: {type(error).__name__}") from error
