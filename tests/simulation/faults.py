"""What goes wrong, how often, and until when; all of it drawn from the seed.

Each seed turns on some kinds of faults and leaves others out (swarm testing): a world in which
everything goes wrong at once hides what one fault alone would show.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

KINDS = (
    "delay",
    "lost_request",
    "lost_ack",
    "lost_delivery",
    "lost_answer",
    "stall",
    "engine_crash",
    "runner_crash",
    "pause",
    "disconnect",
    "no_leader",
    "redelivered_early",
    "deliveries_forgotten",
    "consumer_deleted",
    "server_restart",
    "lagging_read",
    "lease_lost",
    "timer_late",
    "timer_lost",
    "timer_twice",
    "clock_skew",
    "late_result",
    "second_result",
    "late_plan",
)


@dataclass
class Faults:
    """Rates of faults of one seed; ``active`` turns all of them off."""

    random: Random
    active: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    on: frozenset[str] = frozenset()
    base_latency: float = 0.001
    loss: float = 0.0
    delay: float = 0.0

    @classmethod
    def draw(cls, random: Random) -> Faults:
        """Draw which faults a world has, and how heavy they are."""
        share = random.choice([0.0, 0.2, 0.5, 0.8])
        on = frozenset(kind for kind in KINDS if random.random() < share)
        return cls(
            random,
            on=on,
            base_latency=random.choice([0.00005, 0.0005, 0.003, 0.02]),
            loss=random.choice([0.002, 0.01, 0.05]),
            delay=random.choice([0.005, 0.03, 0.1]),
        )

    def happens(self, kind: str, chance: float) -> bool:
        """Tell whether a fault happens here, and count it."""
        if not self.active or kind not in self.on or self.random.random() >= chance:
            return False
        self.counts[kind] += 1
        return True

    def enabled(self, kind: str) -> bool:
        """Tell whether a kind of fault can happen now."""
        return self.active and kind in self.on

    def lost(self, kind: str) -> bool:
        """Tell whether a message gets lost on its way."""
        return self.happens(kind, self.loss)

    def latency(self) -> float:
        """Draw how long a message is under way."""
        random = self.random
        latency = self.base_latency * (0.5 + random.random())
        if self.active and "delay" in self.on and random.random() < self.delay:
            self.counts["delay"] += 1
            latency += random.choice([0.01, 0.1, 1.0, 4.0]) * random.random()
        return latency

    def stall_gap(self) -> int:
        """Draw after how many callbacks a process stalls."""
        if not self.enabled("stall"):
            return -1
        return int(self.random.expovariate(1 / 150))

    def stall_seconds(self) -> float:
        """Draw how long it stalls."""
        if not self.active:
            return 0.0
        self.counts["stall"] += 1
        return self.random.choice([0.001, 0.05, 0.5, 3.0]) * self.random.random()
