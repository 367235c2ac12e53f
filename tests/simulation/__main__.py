"""Run the simulation: ``python -m tests.simulation --seeds 10000``, ``--seed 123``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.report import Totals, failure_text
from tests.simulation.world import Verdict, simulate

FULL_SIZE = 10_000
HASH_SEED = "0"
"""Maps and sets of the code under test keep an order that depends on it."""


def main(arguments: list[str] | None = None) -> int:
    """Run seeds and print a table; return the exit status."""
    parser = argparse.ArgumentParser(prog="make test-simulation ARGS=...")
    parser.add_argument("--seeds", type=int, default=FULL_SIZE, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone, with its trace")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many")
    given = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        again = [sys.executable, "-m", "tests.simulation", *(arguments or sys.argv[1:])]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": HASH_SEED})
    if given.seed is not None:
        return _replay(given.seed)
    began = time.monotonic()
    totals = Totals()
    for verdict in _verdicts(range(given.first, given.first + given.seeds), given.jobs):
        totals.add(verdict)
        if not verdict.ok:
            _write(failure_text(verdict))
            if len(totals.failed) >= given.failures:
                break
        if totals.seeds % 1000 == 0:
            _write(f"{totals.seeds} seeds, {time.monotonic() - began:.0f} s\n")
    _write(totals.table(time.monotonic() - began))
    return 1 if totals.failed else 0


def _verdicts(seeds: Iterable[int], jobs: int) -> Iterable[Verdict]:
    if jobs <= 1:
        yield from map(simulate, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(simulate, seeds, chunksize=10)


def _replay(seed: int) -> int:
    verdict = simulate(seed)
    _write("\n".join(verdict.trace) + "\n")
    if verdict.ok:
        ended = ", ".join(f"{n} {status}" for status, n in sorted(verdict.statuses.items()))
        faults = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(verdict.faults).items()))
        _write(f"seed {seed} holds: {verdict.facts} facts; runs: {ended}; faults: {faults}\n")
        return 0
    _write(failure_text(verdict, traced=0))
    return 1


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
