"""What may be registered with a runner."""

from __future__ import annotations

import subprocess
import sys

import pytest

from penstock.contracts.errors import RejectedError
from penstock.contracts.facts import StepKind
from penstock.runner import Runner


def test_name_is_taken_only_once() -> None:
    runner = Runner(queue="q")
    runner.tool("a")(lambda: None)
    with pytest.raises(ValueError, match="already"):
        runner.tool("a")(lambda: None)
    runner.step()(lambda: None)
    with pytest.raises(ValueError, match="already"):
        runner.step()(lambda: None)


def test_kinds_are_kept_apart() -> None:
    assert Runner(kind="agent", queue="q").kind is StepKind.AGENT
    with pytest.raises(TypeError, match="no agents"):
        Runner(kind="tool", queue="q").agent("a")
    with pytest.raises(TypeError, match="no tools"):
        Runner(kind="agent", queue="q").tool("a")


def test_names_are_tokens() -> None:
    with pytest.raises(RejectedError):
        Runner(queue="a.b")
    with pytest.raises(RejectedError):
        Runner(queue="q").tool("no spaces")
    with pytest.raises(ValueError, match="at least 1"):
        Runner(queue="q", concurrency=0)


def test_decorated_function_stays_itself() -> None:
    runner = Runner(queue="q")

    @runner.tool("double")
    def double(x: int) -> int:
        return x + x

    assert double(2) == 4
    assert [capability.name for capability in runner.capabilities] == ["double"]


def test_sdk_imports_nothing_heavy() -> None:
    script = (
        "import sys, penstock.runner, penstock.runner.process\n"
        "heavy = {'fastapi', 'faststream', 'sqlalchemy', 'alembic', 'litellm', 'rich', 'httpx',"
        " 'jsonschema', 'jsonschema_rs', 'typer', 'yaml', 'opentelemetry'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
