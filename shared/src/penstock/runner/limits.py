"""Limits: who may ask a provider or work on a queue now, agreed among all runners.

Checked just before the handler is called. A refused step costs nothing: it fails with
``rate_limited``, does not count as a try, and is retried when there may be room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final, Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError

from penstock import clock
from penstock.bus.connection import Bus, JetStreamError
from penstock.bus.kv import Bucket
from penstock.bus.kv_watch import KvChange, Watch
from penstock.contracts import subjects
from penstock.contracts.errors import THROTTLED, PenstockError, TransientError
from penstock.contracts.facts import StepKind
from penstock.contracts.json import Json
from penstock.contracts.runners import BlockRecord
from penstock.runner.rates import LEASE_SECONDS, Rule, name_hash
from penstock.telemetry.logs import EventLog

UNAVAILABLE_SECONDS: Final = 5.0
LONGEST_BLOCK_SECONDS: Final = 3600.0
_APART_SECONDS: Final = 0.05
"""Those who wait for the end of a block come back so far apart, of each process."""

log = EventLog(__name__)


class LimitStore(Protocol):
    """Where the state of limits is, for all processes the same."""

    async def take(self, rule: Rule, holder: str) -> float:
        """Return 0 if ``holder`` may pass, else how many seconds to stay away.

        Raises:
            TransientError: The store does not answer.
        """
        ...

    async def leave(self, rule: Rule, holder: str, tokens: int) -> None:
        """Release the permit and report what the call used.

        Raises:
            TransientError: The store does not answer.
        """
        ...

    async def renew(self, rule: Rule, holders: Sequence[str]) -> None:
        """Keep places that are still needed.

        Raises:
            TransientError: The store does not answer.
        """
        ...

    async def close(self) -> None:
        """Close connections, if there are any."""
        ...


class Permit:
    """Leave to work, until ``leave``."""

    __slots__ = ("_holder", "_limits", "_rules")

    def __init__(self, limits: Limits, rules: Sequence[Rule], holder: str) -> None:
        self._limits = limits
        self._rules = rules
        self._holder = holder

    async def leave(self, tokens: int = 0) -> None:
        """Say that the work is over.

        Args:
            tokens: What it took, in and out.
        """
        await self._limits.leave(self._rules, self._holder, tokens)


class Limits:
    """The limits of one process; shared by all its runners."""

    def __init__(self, bus: Bus, rules: Mapping[str, Rule], store: LimitStore) -> None:
        """Prepare the limits.

        Args:
            bus: Source of providers' requests to pause calls.
            rules: By name of queue, provider or model.
            store: Keeps their state.
        """
        self._bucket = Bucket(bus, subjects.LIMITS)
        self._rules = rules
        self._store = store
        self._blocked: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._held: dict[str, dict[str, None]] = {}
        self._watch: Watch | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to hear of blocks.

        Raises:
            TransientError: The bus does not answer.
        """
        self._watch = await self._bucket.watch(subjects.BLOCK_FILTER, self._on_block)

    async def close(self) -> None:
        """Stop listening and renewing."""
        if self._watch is not None:
            await self._watch.stop()
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._store.close()

    async def enter(self, kind: StepKind, queue: str, config: Json, holder: str) -> Permit | None:
        """Ask for leave to do a step; ``None`` where nothing limits it.

        Args:
            kind: Of the step.
            queue: Of the step.
            config: Of the step; names the model of an agent.
            holder: Names the step.

        Raises:
            TransientError: ``rate_limited``, with the time after which to come again.
        """
        if not self._rules and not self._blocked:
            return None
        provider = provider_of(kind, config)
        if provider is not None:
            self._require_unblocked(provider)
        names = (f"{kind.value}.{queue}", provider, _model_of(kind, config))
        rules = [self._rules[name] for name in names if name is not None and name in self._rules]
        passed: list[Rule] = []
        for rule in rules:
            away = await self._take(rule, holder)
            if away > 0:
                await self.leave(passed, holder, 0)
                raise TransientError(
                    THROTTLED,
                    f"{rule.name} is at its limit; there may be room in {away:.1f} s",
                    retry_after_seconds=round(away, 3),
                )
            passed.append(rule)
        return Permit(self, rules, holder) if rules else None

    async def leave(self, rules: Sequence[Rule], holder: str, tokens: int) -> None:
        """Give back what ``enter`` gave."""
        for rule in rules:
            self._held.get(rule.name, {}).pop(holder, None)
            if rule.places is not None or (rule.tokens is not None and tokens):
                try:
                    await self._store.leave(rule, holder, tokens)
                except TransientError as error:
                    # The place becomes free when its lease has run out.
                    log.warning("limits.not_left", limit=rule.name, reason=str(error))

    async def block(self, kind: StepKind, config: Json, seconds: float) -> None:
        """Keep all runners from a step's provider for a while, at its request."""
        provider = provider_of(kind, config)
        if provider is None:
            return
        seconds = min(seconds, LONGEST_BLOCK_SECONDS)
        until = clock.now() + timedelta(seconds=seconds)
        key = name_hash(provider)
        self._blocked[key] = max(self._blocked.get(key, 0.0), until.timestamp())
        log.info("limits.provider_blocked", provider=provider, seconds=round(seconds, 1))
        record = BlockRecord(name=provider, until=until)
        try:
            await self._bucket.put(
                subjects.block_key(key), record.model_dump_json().encode(), ttl_seconds=seconds
            )
        except (TransientError, JetStreamError) as error:
            # The others will hear it from the provider itself.
            log.warning("limits.block_not_told", provider=provider, reason=str(error))

    def _on_block(self, change: KvChange) -> None:
        key = change.key.rpartition(".")[2]
        if change.value is None:
            self._blocked.pop(key, None)
            return
        try:
            record = BlockRecord.model_validate_json(change.value)
        except ValidationError as error:
            log.warning("limits.block_unreadable", key=change.key, reason=str(error)[:500])
            return
        self._blocked[key] = max(self._blocked.get(key, 0.0), record.until.timestamp())

    def _require_unblocked(self, provider: str) -> None:
        key, now = name_hash(provider), clock.epoch()
        until = self._blocked.get(key)
        if until is None:
            return
        if until <= now:
            self._blocked.pop(key, None)
            self._told.pop(key, None)
            return
        told = max(self._told.get(key, 0.0), until) + _APART_SECONDS
        self._told[key] = told
        raise TransientError(
            THROTTLED,
            f"{provider} asked to be left alone for another {until - now:.1f} s",
            retry_after_seconds=round(told - now, 3),
        )

    async def _take(self, rule: Rule, holder: str) -> float:
        try:
            away = await self._store.take(rule, holder)
        except TransientError as error:
            log.warning("limits.unavailable", limit=rule.name, reason=str(error))
            return UNAVAILABLE_SECONDS
        if away <= 0 and rule.places is not None:
            self._held.setdefault(rule.name, {})[holder] = None
            if self._keeper is None:
                self._keeper = asyncio.create_task(self._keep(), name="limits-keeper")
        return away

    async def _keep(self) -> None:
        """Renew the places of this process, well before they run out."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            for name, holders in list(self._held.items()):
                if not holders:
                    continue
                try:
                    await self._store.renew(self._rules[name], tuple(holders))
                except PenstockError as error:
                    log.warning("limits.not_renewed", limit=name, reason=str(error))


def provider_of(kind: StepKind, config: Json) -> str | None:
    """Return the name of the provider that an agent's step asks; with its host, where it names one.

    ``openai/gpt-5-mini`` is of ``openai``, with an ``api_base`` of ``openai@host:port``: another
    address is another account.
    """
    model = _model_of(kind, config)
    if model is None or not isinstance(config, dict):
        return None
    provider = model.partition("/")[0]
    parameters = config.get("parameters")
    if isinstance(parameters, dict):
        base = parameters.get("api_base")
        if isinstance(base, str) and base:
            return f"{provider}@{urlsplit(base).netloc.rpartition('@')[2]}"
    return provider


def _model_of(kind: StepKind, config: Json) -> str | None:
    if kind is not StepKind.AGENT or not isinstance(config, dict) or config.get("endpoint"):
        return None
    model = config.get("model")
    return model if isinstance(model, str) and model else None
