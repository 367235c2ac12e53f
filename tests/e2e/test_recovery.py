"""Runs that go on from others, bundles and dead letters on the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.bus.connection import connect
from penstock.contracts import subjects
from penstock.contracts.ids import shard_of
from penstock.settings import CoreSettings
from tests.support.installation import Installation
from tests.support.waiting import eventually

RUN_ID = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b")
GROWTH = {"principal": 1000, "rate": 2, "years": 5}

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def penstock(installation: Installation) -> Command:
    """Run the command line against the stack."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock.cli.app"]
        return subprocess.run(
            [*command, "--data-dir", str(installation.data_dir), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment,
        )

    return run


def growth(penstock: Command) -> str:
    started = penstock("invoke", "growth-report", "-i", json.dumps(GROWTH), "--wait", "20")
    assert started.returncode == 0, started.stderr
    return str(RUN_ID.findall(started.stdout)[0])


def new_run(penstock: Command, *arguments: str) -> dict[str, Any]:
    """Start a run that goes on from another one, and return it when it has ended."""
    started = penstock("runs", *arguments, "--json")
    assert started.returncode == 0, started.stderr
    run_id = json.loads(started.stdout)["run_id"]
    penstock("runs", "tail", run_id)
    shown: dict[str, Any] = json.loads(penstock("runs", "show", run_id, "--json").stdout)
    return shown


def test_replay_costs_nothing_until_the_overridden_step(penstock: Command) -> None:
    run_id = growth(penstock)

    same = new_run(penstock, "replay", run_id)
    other = new_run(penstock, "replay", run_id, "--override", "growth=3")

    assert same["output"]["value"] == 32000
    assert same["usage"]["model_calls"] == 0
    assert other["output"]["value"] == 3000
    assert other["usage"]["model_calls"] == 1
    assert other["forked_from"] == {**other["forked_from"], "run_id": run_id, "mode": "replay"}


def test_fork_takes_another_input(penstock: Command) -> None:
    changed = json.dumps({**GROWTH, "principal": 5})

    run = new_run(penstock, "fork", growth(penstock), "-i", changed, "--tag", "why=test")

    assert run["output"]["value"] == 160
    assert run["tags"] == {"why": "test"}


def test_done_run_is_not_retried(penstock: Command) -> None:
    shown = penstock("runs", "retry", growth(penstock))

    assert shown.returncode == 2
    assert "run_succeeded" in shown.stderr


def test_bundle_is_exported_verified_and_imported(penstock: Command, tmp_path: Path) -> None:
    run_id, file = growth(penstock), tmp_path / "run.ndjson"

    exported = penstock("runs", "export", run_id, "-o", str(file))
    assert exported.returncode == 0, exported.stderr
    verified = json.loads(penstock("runs", "verify", str(file), "--json").stdout)
    there = penstock("runs", "import", str(file))
    copy = json.loads(penstock("runs", "import", str(file), "--as-new", "--json").stdout)

    assert (verified["run_id"], verified["status"], verified["plan"]) == (run_id, "done", True)
    assert f"0 of {verified['facts']} facts were new" in there.stdout
    assert copy["run_id"] != run_id
    shown = json.loads(penstock("runs", "show", copy["run_id"], "--json").stdout)
    assert shown["output"]["value"] == 32000
    assert penstock("runs", "export", run_id).stdout.count("\n") == verified["facts"] + 3


def test_bundle_that_was_changed_is_told_by_its_line(penstock: Command, tmp_path: Path) -> None:
    file = tmp_path / "run.ndjson"
    penstock("runs", "export", growth(penstock), "-o", str(file))
    file.write_text(file.read_text().replace('"principal":1000', '"principal":9'))

    for command in (("verify",), ("import",)):
        shown = penstock("runs", *command, str(file))
        assert shown.returncode == 2
        assert "line 3" in shown.stderr


async def test_dead_letters_are_listed_shown_requeued_and_discarded(
    installation: Installation, penstock: Command
) -> None:
    run_id = growth(penstock)
    await poison(installation, run_id)

    async def listed() -> list[dict[str, Any]]:
        shown = await asyncio.to_thread(penstock, "dead", "list", "--run", run_id, "--json")
        found: list[dict[str, Any]] = json.loads(shown.stdout)
        return found

    found: list[dict[str, Any]] = []

    async def there() -> bool:
        found[:] = await listed()
        return bool(found)

    await eventually(there)
    seq = str(found[0]["seq"])
    assert run_id in penstock("dead", "list").stdout
    assert "no fact" in json.loads(penstock("dead", "show", seq).stdout)["body"]
    refused = penstock("dead", "requeue", seq)
    assert (refused.returncode, "history rebuild" in refused.stderr) == (2, True)
    assert penstock("dead", "discard").returncode == 2
    dry = penstock("dead", "discard", "--run", run_id, "--dry-run")
    assert "1 letters would be discarded" in dry.stdout
    assert "1 letters discarded" in penstock("dead", "discard", "--run", run_id).stdout
    assert await listed() == []


async def poison(installation: Installation, run_id: str) -> None:
    """Put something into the log that the projector and the engine cannot read."""
    stack = json.loads((installation.data_dir / "stack.json").read_text())
    settings = CoreSettings(nats_url=stack["nats_url"], data_dir=installation.data_dir)
    bus = await connect(settings, name="test")
    try:
        prefix = subjects.run_prefix("default", shard_of(run_id, settings.shards), run_id)
        await bus.request(subjects.signal(prefix, "poison"), b"no fact")
    finally:
        await bus.close()
