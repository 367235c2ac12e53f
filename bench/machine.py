"""The machine under the measurement: CPU, memory, the disk, and whether it is quiet."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psutil

LOCK_FILE: Final = Path(
    os.environ.get("BENCH_LOCK", str(Path(tempfile.gettempdir()) / "penstock-bench.lock"))
)
"""A bench on this machine holds a lock on it meanwhile."""

QUIET_CORES: Final = 0.3
_SAMPLE_SECONDS: Final = 0.7
_PAUSE_SECONDS: Final = 1.5
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_DISK: Final = Path("/sys/block/vda/stat")

Processes = Callable[[], Mapping[str, int]]
"""Returns the process ids of the measured processes, by name."""


class Disk(NamedTuple):
    """Writes that reached the disk since it was started."""

    written_bytes: int
    flushes: int


class Memory(NamedTuple):
    """Resident memory of a process, in MiB."""

    rss_mb: float
    pss_mb: float


def disk() -> Disk | None:
    """Return the writes that reached the disk, or ``None`` where it is not known."""
    try:
        fields = _DISK.read_text(encoding="ascii").split()
        return Disk(int(fields[6]) * 512, int(fields[15]))
    except (OSError, IndexError):
        return None


def busy_seconds() -> float:
    """Return the CPU seconds that everything on this machine has used, steal included."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        user, nice, system, _idle, _wait, *others = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(others)) / _TICKS


def own_seconds() -> float:
    """Return the CPU seconds of this process, the load generator."""
    return time.process_time()


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """Return user and system seconds by name; children without a name count for their parent."""
    named = set(processes.values())
    return {
        name: sum(_seconds(process) for process in _family(pid, named))
        for name, pid in processes.items()
    }


def memory(processes: Mapping[str, int]) -> dict[str, Memory]:
    """Return the resident memory by name, unnamed children included."""
    named = set(processes.values())
    found = {}
    for name, pid in processes.items():
        rss = pss = 0
        for process in _family(pid, named):
            with contextlib.suppress(psutil.Error):
                info = process.memory_full_info()
                rss += info.rss
                pss += info.pss
        found[name] = Memory(round(rss / 2**20, 1), round(pss / 2**20, 1))
    return found


def _family(pid: int, named: set[int]) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    # Those below another named process are that one's.
    others = {
        below.pid for child in children if child.pid in named for below in (child, *_below(child))
    }
    return [process, *(child for child in children if child.pid not in others)]


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    # Children that it has outlived and waited for count for it as well.
    return float(times.user + times.system + times.children_user + times.children_system)


@contextlib.asynccontextmanager
async def quiet(processes: Processes, wait_seconds: float) -> AsyncIterator[None]:
    """Hold the lock, from a moment at which the rest of the machine was quiet.

    Goes on without either after ``wait_seconds``: the row's ``other_cores`` tells.
    """
    deadline = time.monotonic() + wait_seconds
    with LOCK_FILE.open("a") as file:  # noqa: ASYNC230 - empty, and only locked
        while True:
            locked = _lock(file.fileno())
            if (locked and await _others(processes) < QUIET_CORES) or time.monotonic() > deadline:
                break
            if locked:
                fcntl.flock(file, fcntl.LOCK_UN)
            await asyncio.sleep(_PAUSE_SECONDS)
        yield


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _others(processes: Processes) -> float:
    """Return the cores that all other processes use just now."""

    def used_by_others() -> float:
        return busy_seconds() - own_seconds() - sum(cpu_seconds(processes()).values())

    before, begun = used_by_others(), time.perf_counter()
    await asyncio.sleep(_SAMPLE_SECONDS)
    return (used_by_others() - before) / (time.perf_counter() - begun)
