"""Weigh the SDK: build the wheel, install it into a fresh environment, measure it.

``python -m bench.sdk_size`` prints the packages, the size of ``site-packages`` and the time to
import ``penstock.runner``. Dependencies come from the ordinary index.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTS = 15
MOST_PACKAGES = 15
MOST_MEGABYTES = 40.0
MOST_MILLISECONDS = 150.0

TIMED = """
import time
before = time.perf_counter()
import penstock.runner
print((time.perf_counter() - before) * 1000)
"""


def main() -> None:
    """Print the figures; exit with 1 if one is above its limit."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--extra", action="append", default=[], help="install an extra, too")
    arguments.add_argument("--imports", type=int, default=IMPORTS, help="imports to time")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder), options.extra)
        packages = installed(python)
        megabytes = size(python)
        milliseconds = import_times(python, options.imports)
    median = statistics.median(milliseconds)
    for name in packages:
        print(f"  {name}")
    print(f"packages       {len(packages):6d}  (limit {MOST_PACKAGES})")
    print(f"site-packages  {megabytes:6.1f} MB  (limit {MOST_MEGABYTES:g})")
    print(
        f"import         {median:6.0f} ms  median of {len(milliseconds)}, least"
        f" {min(milliseconds):.0f}, most {max(milliseconds):.0f}  (limit {MOST_MILLISECONDS:g})"
    )
    above = (
        len(packages) > MOST_PACKAGES or megabytes > MOST_MEGABYTES or median > MOST_MILLISECONDS
    )
    sys.exit(int(above and not options.extra))


def install(folder: Path, extras: list[str]) -> Path:
    """Build the wheel and install it with its dependencies; return the environment's Python."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    wheels, environment = folder / "wheels", folder / "environment"
    run([uv, "build", "--quiet", "--wheel", "--package", "penstock", "--out-dir", str(wheels)])
    run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)])
    (wheel,) = wheels.glob("*.whl")
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    python = environment / "bin" / "python"
    run([uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), wanted])
    return python


def installed(python: Path) -> list[str]:
    """Return the installed distributions with their versions."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps(sorted(f'{d.name} {d.version}' for d in m.distributions())))"
    )
    names: list[str] = json.loads(run([str(python), "-c", code]))
    return names


def size(python: Path) -> float:
    """Return the size of ``site-packages`` in megabytes, without compiled bytecode."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    files = (path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files) / 1e6


def import_times(python: Path, number: int) -> list[float]:
    """Return how many milliseconds each import took, in a process each."""
    run([str(python), "-c", TIMED])
    return [float(run([str(python), "-c", TIMED])) for _ in range(number)]


def run(command: list[str]) -> str:
    """Run a command in the project's folder and return its output."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout


if __name__ == "__main__":
    main()
