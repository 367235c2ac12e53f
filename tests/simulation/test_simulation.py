"""A few hundred seeds of the simulation; ``make test-simulation`` runs the full size."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import HASH_SEED, main
from tests.simulation.report import failure_text, replay_command
from tests.simulation.world import simulate

SEEDS = os.environ.get("SIMULATION_SEEDS", "300")
COMPARED = 25

pytestmark = pytest.mark.timeout(600)  # a busy machine takes its time


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as the make target does: what depends on hashes must not depend on luck."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONHASHSEED": HASH_SEED, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_installation_keeps_its_promises_in_every_world() -> None:
    done = run_python("-m", "tests.simulation", "--seeds", SEEDS, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_seed_decides_every_byte_of_the_log() -> None:
    code = "from tests.simulation.world import simulate\n"
    code += f"for seed in range({COMPARED}): print(simulate(seed).digest)\n"
    code += f"for seed in range({COMPARED}): print(simulate(seed).digest)"
    digests = run_python("-c", code).stdout.split()
    assert digests[:COMPARED] == digests[COMPARED:]
    assert run_python("-c", code).stdout.split() == digests
    assert len(set(digests)) == COMPARED


def test_failing_seed_is_told_with_its_last_events_and_its_command() -> None:
    verdict = simulate(3)
    verdict.broken.append("something did not hold")
    text = failure_text(verdict)
    assert "something did not hold" in text
    assert replay_command(3) in text
    assert verdict.trace[-1] in text


def test_table_counts_what_happened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", HASH_SEED)
    assert main(["--seeds", "20", "--jobs", "1"]) == 0
    rows: dict[str, str] = {}
    for line in capsys.readouterr().out.strip().splitlines():
        name, value = line.strip("|").split("|")
        rows[name.strip()] = value.strip()
    assert rows["seeds"] == "20"
    assert rows["failed"] == "0"
    assert int(rows["facts"]) > 100
    assert int(rows["crashes"]) > 0


def test_one_seed_is_shown_with_its_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", HASH_SEED)
    assert main(["--seed", "7"]) == 0
    shown = capsys.readouterr().out
    assert "run.acme" in shown or "run.globex" in shown
    assert "seed 7 holds" in shown
