"""Build a wheel of every package, and platform wheels with hot modules compiled by mypyc.

A platform wheel is the pure one with extension modules beside their sources; Python prefers an
extension module to a source of the same name. pip chooses a platform wheel where one fits and
``py3-none-any`` elsewhere, so a platform without a compiled wheel runs the same code.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from wheel.wheelfile import WheelFile

ROOT: Final = Path(__file__).resolve().parents[2]

_ORCHESTRATOR: Final = "services/orchestrator/src/penstock_orchestrator"
_BUS: Final = "shared/src/penstock/bus"
_RUNNER: Final = "shared/src/penstock/runner"
COMPILED: Final = {
    "penstock": (
        f"{_BUS}/batching.py",
        f"{_BUS}/claims.py",
        f"{_BUS}/consumer.py",
        f"{_BUS}/kv.py",
        f"{_BUS}/kv_watch.py",
        f"{_BUS}/parser.py",
        f"{_BUS}/writer.py",
        f"{_RUNNER}/deltas.py",
        f"{_RUNNER}/stops.py",
        "shared/src/penstock/contracts/subjects.py",
        "shared/src/penstock/runs/state.py",
    ),
    "penstock-orchestrator": (f"{_ORCHESTRATOR}/core/*.py", f"{_ORCHESTRATOR}/engine/*.py"),
}
"""Modules to compile, by distribution, as patterns below the root."""
PURE: Final = frozenset({"__init__.py", "metrics.py", "windows.py"})
"""Modules that stay sources: without work to speed up, or with generic dataclasses that mypyc
compiles into classes that fail at import."""

_SETUP: Final = """
import sys
from mypyc.build import mypycify
from setuptools import setup

group, work, *modules = sys.argv[1:]
options = ["--config-file=pyproject.toml", *modules]
compiled = mypycify(options, debug_level="0", group_name=group, target_dir=f"{work}/c")
setup(
    name=group,
    packages=[],
    ext_modules=compiled,
    script_args=["build_ext", "--build-lib", f"{work}/lib", "--build-temp", f"{work}/temp"],
)
"""


def sources(distribution: str) -> list[Path]:
    """Return the modules of a distribution that are compiled, relative to the root."""
    found = (path for pattern in COMPILED[distribution] for path in ROOT.glob(pattern))
    return sorted(path.relative_to(ROOT) for path in found if path.name not in PURE)


def extensions(distribution: str, work: Path) -> dict[str, Path]:
    """Compile a distribution's modules in ``work``; return the files by their names in a wheel."""
    group = distribution.replace("-", "_")
    modules = map(str, sources(distribution))
    command = [sys.executable, "-c", _SETUP, group, str(work), *modules]
    subprocess.run(command, cwd=ROOT, check=True)
    library = work / "lib"
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    return {str(path.relative_to(library)): path for path in library.rglob(f"*{suffix}")}


def platform_wheel(pure: Path, added: dict[str, Path]) -> Path:
    """Write the wheel ``pure`` with extension modules beside it; return its path."""
    tag = next(sys_tags())
    target = pure.with_name(pure.name.replace("py3-none-any", str(tag)))
    with WheelFile(str(pure)) as before, WheelFile(str(target), "w") as after:
        for item in before.infolist():
            text = before.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                continue  # written anew
            if item.filename.endswith(".dist-info/WHEEL"):
                text = text.replace(b"Tag: py3-none-any", f"Tag: {tag}".encode())
                text = text.replace(b"Root-Is-Purelib: true", b"Root-Is-Purelib: false")
            after.writestr(item, text)
        for name, path in sorted(added.items()):
            after.write(str(path), name)
    return target


def build(target: Path, *, compiled: bool) -> list[Path]:
    """Build the wheels of all packages into the folder ``target``; return their paths."""
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "build", "--quiet", "--all-packages", "--wheel", "--clear"]
    subprocess.run([*command, "--out-dir", str(target)], cwd=ROOT, check=True)
    wheels = sorted(target.glob("*-py3-none-any.whl"))
    for pure in wheels if compiled else ():
        name = canonicalize_name(parse_wheel_filename(pure.name)[0])
        if name in COMPILED:
            with tempfile.TemporaryDirectory() as work:
                platform_wheel(pure, extensions(name, Path(work)))
    return sorted(target.glob("*.whl"))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make wheels ARGS=...", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheels")
    parser.add_argument("--pure", action="store_true", help="build no platform wheels")
    options = parser.parse_args()
    compiler = str(sysconfig.get_config_var("CC") or "cc").split()[0]
    if not options.pure and shutil.which(compiler) is None:
        print(f"No C compiler {compiler!r} found: install one, or pass --pure.", file=sys.stderr)
        return 1
    for wheel in build(options.out, compiled=not options.pure):
        print(f"{wheel.stat().st_size / 1024:8.0f} KiB  {wheel.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
