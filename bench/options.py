"""What can be asked of ``python -m bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.figures import VARIANTS
from bench.workloads import LANGUAGE, WORKLOADS

ROOT: Final = Path(__file__).resolve().parent.parent
ALL: Final = ("raw", "idle", *WORKLOADS, *LANGUAGE, "flat")
_EPILOG: Final = """\
workloads:
  raw      the same hops with bare nats-py, for those of W1, W2, W2@256 that are measured (or all)
  idle     time from the start of `penstock dev` until it is ready; memory of all processes
  W1       a run of one step, one at a time
  W2       a run of three steps in sequence, 64 in flight; W2@256: 256
  W3       a run of 100 steps side by side and a join, 4 in flight
  W4       a run of 200 pieces of text by SSE, 20 in flight
  map      maps over 1,000 to 10,000 items, one at a time; memory of the engine
  timers   50,000 waits in 5 runs come due at one moment; timers-apart: in 5,000 runs
  archive  W2 with the projector at work and stopped, in turns; its lag
  replicas W2 with one engine and with two, in turns; decisions of each
  flat     W2 on an empty log, then again after it was filled
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The options, read."""

    workloads: tuple[str, ...]
    syncs: tuple[str, ...]
    scale: float
    repeat: int
    out: Path
    facts: int
    quiet_wait_seconds: float
    profile: str | None


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; ends the process where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Penstock as separate processes on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-w", "--workloads", default=",".join(ALL), help="default: all (%(default)s)"
    )
    parser.add_argument("--sync", default=",".join(VARIANTS), help="default: both (%(default)s)")
    parser.add_argument("--scale", type=_positive, default=1.0, help="times the number of runs")
    parser.add_argument(
        "--repeat", type=int, default=1, help="everything so often, in turns; medians are shown"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench/results.jsonl", help="rows are appended to it"
    )
    parser.add_argument(
        "--facts", type=int, default=1_000_000, help="of the filled log (flat), times --scale"
    )
    parser.add_argument(
        "--quiet-wait", type=float, default=60.0, metavar="SECONDS", help="for a quiet machine"
    )
    parser.add_argument(
        "--profile", metavar="PROCESS", help="record one by py-spy into bench/out/ (engine, ...)"
    )
    given = parser.parse_args(arguments)
    return Options(
        workloads=_chosen(parser, "--workloads", given.workloads, ALL),
        syncs=_chosen(parser, "--sync", given.sync, tuple(VARIANTS)),
        scale=given.scale,
        repeat=max(1, given.repeat),
        out=given.out,
        facts=given.facts,
        quiet_wait_seconds=given.quiet_wait,
        profile=given.profile,
    )


def _chosen(
    parser: argparse.ArgumentParser, option: str, text: str, known: tuple[str, ...]
) -> tuple[str, ...]:
    chosen = tuple(name for name in text.split(",") if name)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        parser.error(f"{option}: {', '.join(unknown) or 'none'}; there are {', '.join(known)}")
    return chosen


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value
