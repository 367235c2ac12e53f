"""What an append costs, as measured: the one place that chooses between singles and batches.

An acknowledged single costs the stream ``single`` seconds (an fsync, where it syncs always); an
atomic batch of *n* costs ``batch_base + n * batch_each`` (about five fsyncs, however large). The
figures are moving averages of what this process sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SLOW_SINGLE_SECONDS: Final = 0.000_1
"""Above this an append is bound by syncs: gather messages and consider batches."""

_WEIGHT: Final = 0.1
_HEAVY: Final = 0.5
_INITIAL_BATCH_BASE: Final = 0.002
_BATCH_EACH: Final = 0.000_012
_PROBE_EVERY: Final = 50
_LEAST_PROBE: Final = 4
_LARGEST_PROBE: Final = 64


@dataclass(slots=True)
class CommitCost:
    """Moving averages, in seconds."""

    single: float = 0.000_02
    batch_base: float = _INITIAL_BATCH_BASE
    round_trip: float = 0.000_1
    parallel_groups: int = 1
    slow: bool = False
    _choices: int = 0

    def calibrate(self, *, round_trip: float, append: float) -> None:
        """Start from a lone append and a bare round trip, both measured on an idle connection."""
        self.round_trip = round_trip
        self.single = max(append - round_trip, 0.000_005)
        self.slow = self.single > SLOW_SINGLE_SECONDS

    def batch_pays(self, count: int) -> bool:
        """Return whether ``count`` messages are cheaper as one atomic batch.

        Once in a while the answer is the other one, so that both figures stay true.
        """
        if count < _LEAST_PROBE:
            return count * self.single > self.batch_base + count * _BATCH_EACH
        self._choices += 1
        pays = count * self.single > self.batch_base + count * _BATCH_EACH
        if self._choices % _PROBE_EVERY == 0 and count <= _LARGEST_PROBE:
            return not pays
        return pays

    def observe_group(self, seconds: float, size: int, *, batch: bool) -> None:
        """Note a group that was sent together and is now wholly acknowledged."""
        net = max(seconds - self.round_trip, 0.0)
        if batch:
            base = max(net - size * _BATCH_EACH, 0.000_05)
            self.batch_base += _WEIGHT * (min(base, 0.02) - self.batch_base)
        elif size >= _LEAST_PROBE:
            cost = min(net / size, 0.02)
            self.single += _HEAVY * (cost - self.single)
            self.slow = cost > SLOW_SINGLE_SECONDS / 2
