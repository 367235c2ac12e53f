"""Windows: how many steps of a queue one engine has out at a time, and whose are next.

The durable of a runner pool is first in, first out, so what is to be shared fairly must wait
before it. Beyond its window a queue's steps wait here: those of runs with a higher priority first,
then tenant by tenant in turn, then run by run. Every eighth place goes to a lower priority, so
that none waits for ever.

Pure and soft: nothing of it is stored. A run that waited in an engine that died asks again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

SlotT = TypeVar("SlotT", bound=Hashable)

BATCHES: Final = 8
"""A window that was full takes new steps when an eighth of it is free."""
LOWER_EVERY: Final = 8
"""Of so many places that are given while several priorities wait, one goes below the highest."""


@dataclass(slots=True, eq=False)
class _Wish(Generic[SlotT]):
    """A run that wants more steps than it was given."""

    slot: SlotT
    tenant: str
    priority: int
    wanted: int


@dataclass(slots=True, eq=False)
class _Window(Generic[SlotT]):
    """One queue."""

    size: int
    batch: int = 1
    """So many places are given at once, so that what they schedule goes out together."""
    out: int = 0
    """Steps that are out, or for which a place is given."""
    held: dict[SlotT, int] = field(default_factory=dict)
    """The same, run by run."""
    given: dict[SlotT, int] = field(default_factory=dict)
    """Of these the places that the run has not taken yet."""
    wishes: dict[SlotT, _Wish[SlotT]] = field(default_factory=dict)
    levels: dict[int, OrderedDict[str, OrderedDict[SlotT, _Wish[SlotT]]]] = field(
        default_factory=dict
    )
    """Wishes by priority, tenant and run, each in the order of their turns."""
    turns: int = 0


class Windows(Generic[SlotT]):
    """The windows of all queues of one engine."""

    def __init__(self, *, least: int | Callable[[str], int] = 256, factor: float = 2.0) -> None:
        """Begin with nothing out.

        Args:
            least: Size of the window of a queue with few runners or none, or what tells it.
            factor: Size of a window in slots of the queue's live runners; more than 1, so that
                runners find their next step in the stream when they have finished one.
        """
        self._least_of = least if callable(least) else lambda _queue: least
        self._factor = factor
        self._windows: dict[str, _Window[SlotT]] = {}
        self._woken: dict[SlotT, None] = {}

    def resize(self, queue: str, slots: int) -> None:
        """Take note of how many steps the live runners of a queue can work at."""
        window = self._window(queue)
        window.size = max(self._least_of(queue), math.ceil(self._factor * slots))
        window.batch = max(1, window.size // BATCHES)
        self._give(window)

    def take(self, tenant: str, queue: str, priority: int, slot: SlotT, wanted: int) -> int:
        """Return how many steps of a queue a run may schedule now.

        If that is less than it wants, it waits: ``next`` names it when there is a place for it,
        and then it asks again. Each call says all that the run wants at that time.

        Args:
            tenant: Whose run it is.
            queue: The queue, with its kind.
            priority: The run's.
            slot: The run.
            wanted: How many steps it would schedule, beyond those that are out.
        """
        window = self._windows.get(queue)
        if window is None:
            window = self._window(queue)
        room = window.size - window.out
        if 0 < wanted <= room and not window.wishes and not window.given:
            window.out += wanted
            window.held[slot] = window.held.get(slot, 0) + wanted
            return wanted
        return self._take_turns(window, _Wish(slot, tenant, priority, wanted))

    def room(self, queue: str, slot: SlotT) -> int:
        """Return how many steps of a queue ``take`` would grant a run at once."""
        window = self._windows.get(queue)
        if window is None:
            window = self._window(queue)
        if window.wishes:
            return window.given.get(slot, 0)
        free = window.size - window.out
        if not window.given:
            return max(0, free)
        return window.given.get(slot, 0) + (free if free >= window.batch else 0)

    def wait(self, tenant: str, queue: str, priority: int, slot: SlotT) -> None:
        """Let a run wait for a place of a queue: ``next`` names it when there is one.

        Args:
            tenant: Whose run it is.
            queue: The queue, with its kind.
            priority: The run's.
            slot: The run.
        """
        window = self._window(queue)
        known = window.wishes.get(slot)
        if known is not None:
            if known.priority == priority:
                return
            _remove(window, known)
        _add(window, _Wish(slot, tenant, priority, 1))
        if window.out <= window.size - window.batch:
            self._give(window)

    def release(self, queue: str, slot: SlotT, count: int = 1) -> None:
        """Take back the places of steps that have come out; more than were given are ignored."""
        window = self._windows.get(queue)
        if window is None:
            return
        held = window.held.get(slot, 0)
        # A place that the run has not taken yet is none of a completed step.
        back = min(held - window.given.get(slot, 0), count)
        if back == held:
            window.held.pop(slot, None)
        else:
            window.held[slot] = held - back
        window.out -= back
        if window.wishes and window.out <= window.size - window.batch:
            self._give(window)

    def hold(self, queue: str, slot: SlotT, count: int) -> None:
        """Note that steps are out which another engine has scheduled, or this one before."""
        if count > 0:
            window = self._window(queue)
            window.out += count
            window.held[slot] = window.held.get(slot, 0) + count

    def drop(self, slot: SlotT) -> None:
        """Forget a run: it has ended, or another engine looks after it."""
        self._woken.pop(slot, None)
        for queue, window in self._windows.items():
            wish = window.wishes.get(slot)
            if wish is not None:
                _remove(window, wish)
            window.given.pop(slot, None)
            if slot in window.held:
                self.release(queue, slot, window.held[slot])

    def settle(self, slot: SlotT) -> None:
        """Take back the places that a run was named for and has not taken: it wants them no more.

        To be called once a run that ``next`` has named has been gone on with.
        """
        if slot in self._woken:
            return  # named again meanwhile
        for window in self._windows.values():
            unused = window.given.pop(slot, 0)
            if unused:
                self._return(window, slot, unused)

    def next(self) -> list[SlotT]:
        """Return the runs for which places have become free, in the order of their turns."""
        if not self._woken:
            return []
        woken = list(self._woken)
        self._woken.clear()
        return woken

    def out(self, queue: str) -> int:
        """Return how many steps of a queue are out, or may go out at once."""
        window = self._windows.get(queue)
        return window.out if window is not None else 0

    def waiting(self, queue: str) -> int:
        """Return how many steps of a queue wait here."""
        window = self._windows.get(queue)
        return sum(wish.wanted for wish in window.wishes.values()) if window is not None else 0

    def _window(self, queue: str) -> _Window[SlotT]:
        window = self._windows.get(queue)
        if window is None:
            size = self._least_of(queue)
            window = self._windows[queue] = _Window(size, max(1, size // BATCHES))
        return window

    def _take_turns(self, window: _Window[SlotT], wish: _Wish[SlotT]) -> int:
        slot, wanted = wish.slot, wish.wanted
        given = window.given.pop(slot, 0)
        known = window.wishes.get(slot)
        wish.wanted = wanted - given
        if wish.wanted <= 0:
            if known is not None:
                _remove(window, known)
            if wish.wanted < 0:
                # It wants less than when it began to wait.
                self._return(window, slot, -wish.wanted)
            return wanted
        if known is not None and known.priority == wish.priority:
            known.wanted = wish.wanted
        else:
            if known is not None:
                _remove(window, known)
            _add(window, wish)
        if window.out <= window.size - window.batch:
            self._give(window)
        given += window.given.pop(slot, 0)
        self._woken.pop(slot, None)
        return given

    def _return(self, window: _Window[SlotT], slot: SlotT, count: int) -> None:
        window.out -= count
        window.held[slot] -= count
        if not window.held[slot]:
            del window.held[slot]
        self._give(window)

    def _give(self, window: _Window[SlotT]) -> None:
        """Give the free places to those that wait."""
        while window.wishes and window.out < window.size:
            wish = _turn(window)
            slot = wish.slot
            window.out += 1
            window.held[slot] = window.held.get(slot, 0) + 1
            window.given[slot] = window.given.get(slot, 0) + 1
            self._woken[slot] = None
            wish.wanted -= 1
            if not wish.wanted:
                _remove(window, wish)


def _add(window: _Window[SlotT], wish: _Wish[SlotT]) -> None:
    window.wishes[wish.slot] = wish
    tenants = window.levels.setdefault(wish.priority, OrderedDict())
    tenants.setdefault(wish.tenant, OrderedDict())[wish.slot] = wish


def _remove(window: _Window[SlotT], wish: _Wish[SlotT]) -> None:
    del window.wishes[wish.slot]
    tenants = window.levels[wish.priority]
    runs = tenants[wish.tenant]
    del runs[wish.slot]
    if not runs:
        del tenants[wish.tenant]
        if not tenants:
            del window.levels[wish.priority]


def _turn(window: _Window[SlotT]) -> _Wish[SlotT]:
    """Return whose turn it is, and let the others of its tenant and level be next."""
    levels = window.levels
    priority = max(levels)
    if len(levels) > 1:
        window.turns += 1
        if window.turns % LOWER_EVERY == 0:
            lower = sorted(levels, reverse=True)[1:]
            priority = lower[window.turns // LOWER_EVERY % len(lower)]
    tenants = levels[priority]
    tenant, runs = next(iter(tenants.items()))
    tenants.move_to_end(tenant)
    slot, wish = next(iter(runs.items()))
    runs.move_to_end(slot)
    return wish
