"""Records where one process spends its time, by py-spy, which is not among the dependencies."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

RATE: Final = 200
STOP_SECONDS: Final = 30
_SHOWN: Final = 15


def find_py_spy() -> str | None:
    """Return the path of py-spy: the one of this environment, else one on ``PATH``."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")


@contextlib.contextmanager
def recorded(pid: int, file: Path) -> Iterator[None]:
    """Record a process meanwhile into ``file`` (folded stacks), then print where its time went.

    Raises:
        RuntimeError: There is no py-spy, or it could not record.
    """
    if (py_spy := find_py_spy()) is None:
        raise RuntimeError("--profile needs py-spy: install it, for example by pip")
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [py_spy, "record", "--pid", str(pid), "--output", str(file), "--format", "raw"]
    command += ["--rate", str(RATE), "--duration", "unlimited", "--nonblocking"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
    if not file.exists():
        raise RuntimeError(f"py-spy recorded nothing: {said.decode(errors='replace')[-300:]}")
    print(summary(file.read_text(encoding="utf-8")), flush=True)


def summary(folded: str) -> str:
    """Return the functions in which most samples were taken, and under which most were."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        total += int(count)
        alone[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    lines = [f"{total} samples"]
    for title, counted in (("itself", alone), ("with what it calls", within)):
        lines.append(f"  {title}:")
        lines += [
            f"  {count / max(1, total):7.1%} {frame}"
            for frame, count in counted.most_common(_SHOWN)
        ]
    return "\n".join(lines)
