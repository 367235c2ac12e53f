"""A platform wheel is the pure one with extension modules beside the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from wheel.wheelfile import WheelFile

from deploy.wheels.build import COMPILED, PURE, ROOT, platform_wheel, sources

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


def suspended_handlers(source: str) -> Iterator[int]:
    """Yield the lines at which a coroutine may be suspended while it handles an exception."""
    for node in ast.walk(ast.parse(source)):
        handlers = [node.body] if isinstance(node, ast.ExceptHandler) else []
        handlers += [node.finalbody] if isinstance(node, ast.Try) else []
        for statement in (each for handler in handlers for each in handler):
            for inner in ast.walk(statement):
                if isinstance(inner, ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Yield):
                    yield inner.lineno


def test_no_compiled_coroutine_is_suspended_while_it_handles_an_exception() -> None:
    # mypyc does not put the exception aside: each later one of any task would hold it for ever.
    found = [
        f"{path}:{line}"
        for name in COMPILED
        for path in sources(name)
        for line in suspended_handlers((ROOT / path).read_text(encoding="utf-8"))
    ]

    assert found == []
    assert list(suspended_handlers("async def f():\n try: x()\n except E:\n  await y()")) == [4]
