"""Traits: what few runs have in common, by which filters that match little find them.

Only what does not change any more is a trait: tags from the beginning; from the end on how a run
ended, unless it is done, the code of its error, and its cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.contracts.facts import RunEnded, RunInvoked, RunStatus

ENDINGS: Final = frozenset({RunStatus.FAILED, RunStatus.CANCELLED})
"""Statuses that are traits."""
_CHARACTERS: Final = 256
"""Of a name or value; an index takes no long ones."""


def of_beginning(invoked: RunInvoked) -> Iterator[tuple[str, str]]:
    """Yield the traits that a run has from its beginning."""
    for name, value in invoked.tags.items():
        yield tag(name), text(value)


def of_end(ended: RunEnded) -> Iterator[tuple[str, str]]:
    """Yield the traits that a run has once it has ended."""
    if ended.status in ENDINGS:
        yield "status", ended.status.value
    if ended.error is not None:
        yield "error", text(ended.error.code)
    if ended.usage.cost_usd > 0:
        yield "cost_usd", cost(ended.usage.cost_usd)


def tag(name: str) -> str:
    """Return the trait that a tag is."""
    return text(f"tag.{name}")


def text(value: str) -> str:
    """Return a value as an index takes it."""
    return value.replace("\0", "\ufffd")[:_CHARACTERS]


def cost(usd: float) -> str:
    """Return a cost as text that sorts as the cost does, in whole millionths of a US dollar."""
    return f"{int(usd * 1e6):020d}"
