"""Dispatch windows: limit the published, unfinished steps of each pool in one engine.

The durable consumer of a runner pool is first in, first out, so a fair order needs a queue before
it. Steps beyond their pool's window wait here: runs with a higher priority first, then tenants
round robin, then the runs of a tenant round robin. Every eighth grant goes to a lower priority, so
that none starves.

Pure, and never stored: a run that waited in an engine that died requests its steps again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

SlotT = TypeVar("SlotT", bound=Hashable)

BATCHES: Final = 8
"""A window that was full takes new steps when an eighth of it is free."""
LEAST: Final = {"agent": 64, "run": 1_000_000}
"""Minimum dispatch window by kind, in steps. Agent steps take long; steps of kind ``run`` are
executed by the engine itself and need no runner."""
LEAST_OTHERS: Final = 512
LOWER_EVERY: Final = 8
"""While several priorities wait, one of so many grants goes below the highest priority."""


@dataclass(slots=True, eq=False)
class _Request(Generic[SlotT]):
    """A run with more steps than were granted."""

    slot: SlotT
    tenant: str
    priority: int
    requested: int


@dataclass(slots=True, eq=False)
class _Window(Generic[SlotT]):
    """One queue."""

    size: int
    slots: int = 0
    """Steps that the queue's live runners can execute at a time; 0: no runner takes any."""
    batch: int = 1
    """Steps granted at once, so that their messages are published together."""
    out: int = 0
    """Steps published, or granted and not published yet."""
    held: dict[SlotT, int] = field(default_factory=dict)
    """The same by run."""
    granted: dict[SlotT, int] = field(default_factory=dict)
    """Of these, steps granted to a run and not published yet."""
    requests: dict[SlotT, _Request[SlotT]] = field(default_factory=dict)
    levels: dict[int, OrderedDict[str, OrderedDict[SlotT, _Request[SlotT]]]] = field(
        default_factory=dict
    )
    """Requests by priority, tenant and run; the next one first."""
    grants: int = 0


class Windows(Generic[SlotT]):
    """The dispatch windows of one engine."""

    def __init__(self, *, least: int | None = None, factor: float = 2.0) -> None:
        """Create empty windows.

        Args:
            least: Minimum size of a window, in steps; ``None``: by the kind of the queue's steps.
            factor: Size of a window in slots of the queue's live runners; more than 1, so that
                runners find their next step in the stream when they finish one.
        """
        self._least = least
        self._factor = factor
        self._windows: dict[str, _Window[SlotT]] = {}
        self.just_granted: dict[SlotT, None] = {}
        """What ``pop_granted`` returns next, in order."""

    def resize(self, queue: str, slots: int) -> None:
        """Set the number of steps that the live runners of a queue can execute at a time."""
        window = self._window(queue)
        window.slots = slots
        window.size = max(self._least_of(queue), math.ceil(self._factor * slots))
        window.batch = max(1, window.size // BATCHES)
        self._grant(window)

    def take(self, tenant: str, queue: str, priority: int, slot: SlotT, requested: int) -> int:
        """Return how many steps of a queue a run may schedule now.

        If that is less than requested, the run waits: ``pop_granted`` returns it when steps are
        granted, and it has to call ``take`` again. Each call replaces the run's earlier request.

        Args:
            tenant: Tenant of the run.
            queue: The queue, with its kind.
            priority: Priority of the run.
            slot: The run.
            requested: Number of steps to schedule, beyond those published.
        """
        window = self._windows.get(queue)
        if window is None:
            window = self._window(queue)
        room = window.size - window.out
        if 0 < requested <= room and not window.requests and not window.granted:
            window.out += requested
            window.held[slot] = window.held.get(slot, 0) + requested
            return requested
        return self._take_or_queue(window, _Request(slot, tenant, priority, requested))

    def room(self, queue: str, slot: SlotT) -> int:
        """Return how many steps of a queue ``take`` would grant a run now."""
        window = self._windows.get(queue)
        if window is None:
            window = self._window(queue)
        if window.requests:
            return window.granted.get(slot, 0)
        free = window.size - window.out
        if not window.granted:
            return max(0, free)
        return window.granted.get(slot, 0) + (free if free >= window.batch else 0)

    def wait(self, tenant: str, queue: str, priority: int, slot: SlotT) -> None:
        """Queue a run for a step of a queue: ``pop_granted`` returns it when one is granted.

        Args:
            tenant: Tenant of the run.
            queue: The queue, with its kind.
            priority: Priority of the run.
            slot: The run.
        """
        window = self._window(queue)
        earlier = window.requests.get(slot)
        if earlier is not None:
            if earlier.priority == priority:
                return
            _remove(window, earlier)
        _add(window, _Request(slot, tenant, priority, 1))
        if window.out <= window.size - window.batch:
            self._grant(window)

    def release(self, queue: str, slot: SlotT, count: int = 1) -> None:
        """Release completed steps; those beyond the number counted are ignored."""
        window = self._windows.get(queue)
        if window is None:
            return
        held = window.held.get(slot, 0)
        # A grant that the run has not used yet does not belong to a completed step.
        back = min(held - window.granted.get(slot, 0), count)
        if back == held:
            window.held.pop(slot, None)
        else:
            window.held[slot] = held - back
        window.out -= back
        if window.requests and window.out <= window.size - window.batch:
            self._grant(window)

    def recount(self, slot: SlotT, published: Iterable[str]) -> None:
        """Count a run's published steps again, after a reload.

        Args:
            slot: The run.
            published: The queue of each step that is published and not completed.
        """
        self.drop(slot)
        for queue in published:
            window = self._window(queue)
            window.out += 1
            window.held[slot] = window.held.get(slot, 0) + 1

    def drop(self, slot: SlotT) -> None:
        """Forget a run: it has ended, or another engine leads its shard."""
        self.just_granted.pop(slot, None)
        for queue, window in self._windows.items():
            request = window.requests.get(slot)
            if request is not None:
                _remove(window, request)
            window.granted.pop(slot, None)
            if slot in window.held:
                self.release(queue, slot, window.held[slot])

    def return_unused(self, slot: SlotT) -> None:
        """Take back grants that a run has not used.

        Call it after advancing a run that ``pop_granted`` has returned.
        """
        if slot in self.just_granted:
            return  # granted again meanwhile
        for window in self._windows.values():
            unused = window.granted.pop(slot, 0)
            if unused:
                self._return(window, slot, unused)

    def pop_granted(self) -> list[SlotT]:
        """Return the runs that steps were granted to since the last call, in their order."""
        granted = list(self.just_granted)
        self.just_granted.clear()
        return granted

    def out(self, queue: str) -> int:
        """Return the steps of a queue that are published, or granted."""
        window = self._windows.get(queue)
        return window.out if window is not None else 0

    def waiting(self, queue: str) -> int:
        """Return the steps of a queue that wait here."""
        window = self._windows.get(queue)
        return (
            sum(request.requested for request in window.requests.values())
            if window is not None
            else 0
        )

    def unserved(self) -> dict[str, int]:
        """Return the unfinished steps by queue, of the queues that no runner serves."""
        return {
            queue: window.out + self.waiting(queue)
            for queue, window in self._windows.items()
            if not window.slots and window.out and not queue.startswith("run.")
        }

    def _least_of(self, queue: str) -> int:
        if self._least is not None:
            return self._least
        return LEAST.get(queue.partition(".")[0], LEAST_OTHERS)

    def _window(self, queue: str) -> _Window[SlotT]:
        window = self._windows.get(queue)
        if window is None:
            size = self._least_of(queue)
            window = self._windows[queue] = _Window(size, batch=max(1, size // BATCHES))
        return window

    def _take_or_queue(self, window: _Window[SlotT], request: _Request[SlotT]) -> int:
        slot, requested = request.slot, request.requested
        granted = window.granted.pop(slot, 0)
        earlier = window.requests.get(slot)
        request.requested = requested - granted
        if request.requested <= 0:
            if earlier is not None:
                _remove(window, earlier)
            if request.requested < 0:
                # It requests less than when it began to wait.
                self._return(window, slot, -request.requested)
            return requested
        if earlier is not None and earlier.priority == request.priority:
            earlier.requested = request.requested
        else:
            if earlier is not None:
                _remove(window, earlier)
            _add(window, request)
        if window.out <= window.size - window.batch:
            self._grant(window)
        granted += window.granted.pop(slot, 0)
        self.just_granted.pop(slot, None)
        return granted

    def _return(self, window: _Window[SlotT], slot: SlotT, count: int) -> None:
        window.out -= count
        window.held[slot] -= count
        if not window.held[slot]:
            del window.held[slot]
        self._grant(window)

    def _grant(self, window: _Window[SlotT]) -> None:
        """Grant the free room of a window to the waiting runs."""
        while window.requests and window.out < window.size:
            request = _next_request(window)
            slot = request.slot
            window.out += 1
            window.held[slot] = window.held.get(slot, 0) + 1
            window.granted[slot] = window.granted.get(slot, 0) + 1
            self.just_granted[slot] = None
            request.requested -= 1
            if not request.requested:
                _remove(window, request)


def _add(window: _Window[SlotT], request: _Request[SlotT]) -> None:
    window.requests[request.slot] = request
    tenants = window.levels.setdefault(request.priority, OrderedDict())
    tenants.setdefault(request.tenant, OrderedDict())[request.slot] = request


def _remove(window: _Window[SlotT], request: _Request[SlotT]) -> None:
    del window.requests[request.slot]
    tenants = window.levels[request.priority]
    runs = tenants[request.tenant]
    del runs[request.slot]
    if not runs:
        del tenants[request.tenant]
        if not tenants:
            del window.levels[request.priority]


def _next_request(window: _Window[SlotT]) -> _Request[SlotT]:
    """Return the next request, and move its run and tenant to the end of their queues."""
    levels = window.levels
    priority = max(levels)
    if len(levels) > 1:
        window.grants += 1
        if window.grants % LOWER_EVERY == 0:
            lower = sorted(levels, reverse=True)[1:]
            priority = lower[window.grants // LOWER_EVERY % len(lower)]
    tenants = levels[priority]
    tenant, runs = next(iter(tenants.items()))
    tenants.move_to_end(tenant)
    slot, request = next(iter(runs.items()))
    runs.move_to_end(slot)
    return request
