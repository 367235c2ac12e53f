"""Rate limits as arithmetic: the rules in ``PENSTOCK_RATE_LIMITS``, and which call may pass when.

Rates are kept by the generic cell rate algorithm: one instant instead of a list of calls. It is
the bucket of tokens that providers describe, which holds ``burst`` and fills steadily.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from penstock.contracts.runners import LimitRecord

LEASE_SECONDS: Final = 30.0
"""How long a place is held without being renewed: a dead process gives its places back then."""
HORIZON_SECONDS: Final = 300.0
"""Refused calls get different retry times, the last of them this far ahead."""
BUSY_SECONDS: Final = 1.0
"""When to come back if all places are taken."""

_PERIODS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_ENTRY: Final = re.compile(
    r"(?P<name>[A-Za-z0-9_.@:/-]+)=(?P<count>[1-9][0-9]{0,11})"
    r"(?:(?P<tokens>t)?/(?P<unit>[smhd])(?::(?P<burst>[1-9][0-9]{0,11}))?)?"
)
FORM: Final = (
    "NAME=60/m, NAME=60/m:10 (at most 10 at once), NAME=90000t/m (tokens), NAME=8 (places)"
)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a period."""

    spacing_seconds: float
    """Time after which one more may pass, in the long run."""
    burst_seconds: float
    """What may be used up at once, as the time in which it fills again."""


@dataclass(frozen=True, slots=True)
class Rule:
    """All limits of one name: a queue, a provider or a model."""

    name: str
    calls: Rate | None = None
    tokens: Rate | None = None
    places: int | None = None
    """How many may be at work at the same time."""

    @property
    def key(self) -> str:
        """The name as a token of a key."""
        return name_hash(self.name)


def name_hash(name: str) -> str:
    """Return what stands for a name in keys."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def read_rules(entries: Iterable[str]) -> dict[str, Rule]:
    """Read the entries of ``PENSTOCK_RATE_LIMITS``.

    Raises:
        ValueError: An entry is invalid, or repeats another one.
    """
    rules: dict[str, Rule] = {}
    for entry in entries:
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise ValueError(f"{entry!r} is no rate limit; write {FORM}")
        name, count = found["name"], int(found["count"])
        rule = rules.get(name, Rule(name))
        if found["unit"] is None:
            field, value = "places", count
            rules[name] = replace(rule, places=value)
        else:
            spacing = _PERIODS[found["unit"]] / count
            rate = Rate(spacing, spacing * int(found["burst"] or count))
            field = "tokens" if found["tokens"] else "calls"
            rules[name] = (
                replace(rule, tokens=rate) if found["tokens"] else replace(rule, calls=rate)
            )
        if getattr(rule, field) is not None:
            raise ValueError(f"{entry!r} repeats a limit of {name}")
    return rules


def admit(rule: Rule, record: LimitRecord, now: float, holder: str) -> tuple[LimitRecord, float]:
    """Return the limit's next state, and how many seconds to stay away: 0 to pass.

    Args:
        rule: The limits.
        record: Their state.
        now: Seconds since the epoch.
        holder: Who asks; holds a place if it may pass and places are limited.
    """
    held = {name: until for name, until in record.held.items() if until > now}
    away = wait_for(rule, record, held, now, holder)
    if away > 0:
        spacing = rule.calls.spacing_seconds if rule.calls is not None else BUSY_SECONDS / 10
        at = min(max(record.free_at, now + away), now + HORIZON_SECONDS)
        return record.model_copy(update={"held": held, "free_at": at + spacing}), at - now
    calls_at = record.calls_at
    if rule.calls is not None:
        calls_at = max(calls_at, now) + rule.calls.spacing_seconds
    if rule.places is not None:
        held[holder] = now + LEASE_SECONDS
    return record.model_copy(update={"held": held, "calls_at": calls_at}), 0.0


def wait_for(
    rule: Rule, record: LimitRecord, held: Mapping[str, float], now: float, holder: str
) -> float:
    """Return in how many seconds there is room, as known now."""
    away = 0.0
    if rule.calls is not None:
        rate = rule.calls
        away = max(record.calls_at, now) + rate.spacing_seconds - rate.burst_seconds - now
    if rule.tokens is not None:
        # What a call takes is known only afterwards: a call passes while any are left.
        away = max(away, record.tokens_at - rule.tokens.burst_seconds - now)
    if rule.places is not None and len(held) >= rule.places and holder not in held:
        away = max(away, BUSY_SECONDS)
    # Sums of spacings are off by some nanoseconds.
    return away if away > 1e-6 else 0.0


def charge(rule: Rule, record: LimitRecord, now: float, holder: str, tokens: int) -> LimitRecord:
    """Return the state after a call: its place is free, its tokens are spent."""
    held = {name: until for name, until in record.held.items() if name != holder and until > now}
    tokens_at = record.tokens_at
    if rule.tokens is not None and tokens:
        tokens_at = max(tokens_at, now) + tokens * rule.tokens.spacing_seconds
    return record.model_copy(update={"held": held, "tokens_at": tokens_at})


def idle_seconds(record: LimitRecord, now: float) -> float:
    """Return after how many seconds the state has no effect any more."""
    last = max(record.calls_at, record.tokens_at, record.free_at, *record.held.values(), now)
    return last - now
