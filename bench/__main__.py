"""``python -m bench``: everything in turns, a row per phase, a table at the end."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop

from bench.figures import Results
from bench.flat import measure_flat
from bench.language import measure_language
from bench.options import ROOT, Options, read_options
from bench.profiler import find_py_spy
from bench.raw import measure_raw
from bench.session import open_session
from bench.table import render
from bench.workloads import LANGUAGE, WORKLOADS
from penstock.stack import SERVICES, StackError

RUN: Final = ROOT / "bench/run"


async def measure_all(options: Options, results: Results) -> None:
    """Measure the chosen workloads, repetitions in turns so that a slow minute hits all alike."""
    for _ in range(options.repeat):
        for sync in options.syncs:
            if "raw" in options.workloads:
                with _folder() as folder:
                    await measure_raw(options, sync, results, folder)
            chosen = [WORKLOADS[name] for name in options.workloads if name in WORKLOADS]
            language = tuple(name for name in LANGUAGE if name in options.workloads)
            if chosen or language or "idle" in options.workloads:
                with _folder() as folder:
                    async with open_session(options, sync, results, folder) as session:
                        if "idle" in options.workloads:
                            await session.idle()
                        for workload in chosen:
                            await session.measure(workload.scaled(options.scale))
                        if language:
                            await measure_language(session, language, options.scale)
            if "flat" in options.workloads:
                with _folder() as folder:
                    await measure_flat(options, sync, results, folder)


@contextmanager
def _folder() -> Iterator[Path]:
    """Make an empty folder on the checkout's disk; memory behind it would fake every sync."""
    RUN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUN, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


async def _until_signal(options: Options, results: Results) -> None:
    """Measure; a signal ends all processes in good order."""
    task = asyncio.create_task(measure_all(options, results))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    await task


def main() -> int:
    options = read_options()
    if options.profile is not None:
        known = [service.name for service in SERVICES]
        if options.profile not in known:
            sys.stderr.write(f"--profile {options.profile}: there are {', '.join(known)}\n")
            return 2
        if find_py_spy() is None:
            sys.stderr.write("--profile needs py-spy: install it, for example by pip\n")
            return 2
    results = Results(options.out)
    gc.freeze()
    code = 0
    try:
        uvloop.run(_until_signal(options, results))
    except asyncio.CancelledError:
        code = 130
    except StackError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 1
    print("\n" + render(results.rows, options.syncs))
    return code or int(any(row.get("errors") for row in results.rows))


if __name__ == "__main__":
    sys.exit(main())
