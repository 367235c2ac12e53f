"""A platform wheel is the pure one with extension modules beside the sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from wheel.wheelfile import WheelFile

from deploy.wheels.build import COMPILED, PURE, platform_wheel, sources

INFO = "thing-1.0.dist-info"


@pytest.fixture
def pure(tmp_path: Path) -> Path:
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with WheelFile(str(path), "w") as wheel:
        wheel.writestr("thing/fast.py", "x = 1\n")
        wheel.writestr(
            f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    return path


def test_platform_wheel_holds_sources_and_extensions(pure: Path, tmp_path: Path) -> None:
    extension = tmp_path / "fast.so"
    extension.write_bytes(b"\x7fELF")

    built = platform_wheel(pure, {"thing/fast.cpython.so": extension})

    assert "-none-any" not in built.name
    with WheelFile(str(built)) as wheel:  # verifies each file against RECORD
        assert wheel.read("thing/fast.py") == b"x = 1\n"
        assert wheel.read("thing/fast.cpython.so") == b"\x7fELF"
        description = wheel.read(f"{INFO}/WHEEL").decode()
    assert "Root-Is-Purelib: false" in description
    assert f"Tag: {built.name.removeprefix('thing-1.0-').removesuffix('.whl')}" in description


def test_every_pattern_of_compiled_modules_matches_one() -> None:
    root = Path(__file__).parents[3]

    empty = [p for patterns in COMPILED.values() for p in patterns if not list(root.glob(p))]

    assert empty == []
    assert {path.name for name in COMPILED for path in sources(name)}.isdisjoint(PURE)
