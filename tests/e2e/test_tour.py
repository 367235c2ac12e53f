"""Every command of the README's tour, and of the page on webhooks, works as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.stack import Stack, StackOptions

ROOT = Path(__file__).parents[2]
SECRET = {"PENSTOCK_SECRET_EXAMPLE_WEBHOOK": "secret-of-the-tour"}


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Stack]:
    """A stack as the tour starts it, on free ports."""
    options = StackOptions(data_dir=str(tmp_path / ".penstock"), port=0, nats_port=0)
    with Stack(options, env=SECRET) as stack:
        yield stack


def script_of(page: str) -> str:
    """The commands of a page; those that set up and start are the fixture's work."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    begins = re.compile(r"^make |penstock dev", re.MULTILINE)
    return "".join(block for block in found if not begins.search(block))


def run(script: str, stack: Stack, folder: Path) -> str:
    """Run commands as somebody would who types them into one terminal."""
    (folder / "examples").symlink_to(ROOT / "examples")
    script = script.replace("http://127.0.0.1:8080", stack.url)
    script = script.replace('export PATH="$PWD/.venv/bin:$PATH"', "")
    done = subprocess.run(
        ["bash", "-m", "-e", "-u", "-o", "pipefail", "-c", script],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PENSTOCK_NATS_URL": stack.nats_url,
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tour_of_the_readme_works_as_written(tour: Stack, tmp_path: Path) -> None:
    said = run(script_of("README.md"), tour, tmp_path)

    assert "enough for 50000 households" in said
    assert "Good news: 1000 at a yearly factor of 1.05" in said
    assert "Pay 150?" in said
    assert "consent approved by development" in said
    assert "division_by_zero" in said
    assert "→ 37.5" in said
    assert "run_done              → 50" in said
    assert "Confirmed: flight to Oslo" in said
    assert re.search(r'"status": ?"done"', said)
    assert "event: run_done" in said
    assert '"duplicate":false' in said
    assert '"duplicate":true' in said
    assert '"words": 6' in said
    assert re.search(r"tool\.text .* live", said)
    assert "I took my time and I am still here." in said.splitlines()[-1]
    assert "1" in {str(process.restarts) for process in tour.state.processes.values()}


def test_deliveries_of_the_page_on_webhooks_are_accepted(tour: Stack, tmp_path: Path) -> None:
    commands = "penstock apply -f examples/\n" + script_of("docs/webhooks.md")

    said = run(commands, tour, tmp_path)

    assert said.count('"duplicate":false') == 2
