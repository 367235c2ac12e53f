"""What the SDK needs: the dependencies of the distribution itself, and none of its extras."""

import subprocess
import sys

import pytest

EXTRAS = (
    "alembic",
    "asyncpg",
    "cronsim",
    "faststream",
    "fastapi",
    "httpx",
    "jsonpath_rfc9535",
    "jsonschema",
    "jsonschema_rs",
    "re2",
    "opentelemetry",
    "redis",
    "rich",
    "sqlalchemy",
    "typer",
    "uvloop",
    "yaml",
)
WITHOUT_EXTRAS = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_of_the_runner_loads_no_extra() -> None:
    code = f"import sys, penstock.runner; print(sorted(set({EXTRAS!r}) & set(sys.modules)))"
    assert run(code).stdout == "[]\n"


@pytest.mark.parametrize("module", ["penstock.runner.process", "penstock.runner.steps"])
def test_a_process_of_runners_needs_no_extra(module: str) -> None:
    result = run(f"{WITHOUT_EXTRAS}\nimport {module}")
    assert (result.returncode, result.stderr) == (0, "")


def test_command_line_without_its_extra_names_what_to_install() -> None:
    result = run(f"{WITHOUT_EXTRAS}\nfrom penstock.__main__ import main\nmain()")
    assert result.returncode == 1
    assert "pip install 'penstock[cli]'" in result.stderr
